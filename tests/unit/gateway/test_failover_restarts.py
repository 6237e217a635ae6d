"""A machine that was taken over and ends by itself before its commit: started again, or left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.gateway.failover import restarts as failoverrestarts
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.model.failover import FailoverState
from support.failover_twin import Twin

OPERATION = "ab" * 16


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    made = Twin(tmp_path)
    made.commit_as_a()
    made.failover(OPERATION)
    return made


def look(twin: Twin, seconds: float = failoverrestarts.LOOK_SECONDS) -> FailoverStatus:
    assert twin.b is not None
    twin.clock.advance(seconds)
    twin.b.tick()
    twin.settle()
    found = twin.status()
    assert found is not None
    return found


def told(twin: Twin, code: str) -> int:
    return twin.events.codes().count(code)


def test_after_a_restart_of_its_host_it_waits_for_its_gateway_and_its_export(twin: Twin) -> None:
    twin.kill_b()
    twin.b_fabric.restart_host()
    [export] = twin.exports.served.values()
    twin.exports.served.clear()
    assert not twin.b_fabric.runs(twin.machine), "nothing starts it with its host"
    twin.start_b()
    for _ in range(3):
        look(twin)
    assert not twin.b_fabric.runs(twin.machine)
    assert told(twin, "failover.not-restarted") == 1
    twin.exports.served[export.id] = export
    twin.b_fabric.run_fails = "the host is full"
    look(twin)
    assert told(twin, "failover.not-restarted") == 2
    twin.b_fabric.run_fails = ""
    look(twin)
    assert not twin.b_fabric.runs(twin.machine), "not at once again"
    status = look(twin, failoverrestarts.RETRY_SECONDS)
    assert twin.b_fabric.runs(twin.machine)
    assert (status.state, status.restarts, status.restarted_at is not None) == (
        FailoverState.COMPLETED,
        1,
        True,
    )
    assert told(twin, "failover.restarted") == 1
    twin.check()


def test_one_that_was_shut_down_stays_off_whatever_restarts(twin: Twin) -> None:
    twin.b_fabric.switch_off_recovered(twin.machine)
    for _ in range(2):
        assert look(twin).off_at is not None
    assert told(twin, "failover.off") == 1
    twin.kill_b()
    twin.b_fabric.restart_host()  # which does not know any more how it ended
    twin.start_b()
    assert not twin.b_fabric.runs(twin.machine)
    look(twin)
    assert not twin.b_fabric.runs(twin.machine)
    [recovered] = twin.b_fabric.recovered()
    twin.b_fabric.run_recovered(recovered)  # by a person
    assert look(twin).off_at is None
    twin.b_fabric.restart_host()
    look(twin)
    assert twin.b_fabric.runs(twin.machine), "it was wanted again"


def test_one_that_is_being_rolled_back_is_not_started_again(twin: Twin) -> None:
    twin.kill_at = "failover.roll-back-intended"
    twin.roll_back(OPERATION)
    twin.b_fabric.restart_host()
    twin.b_fabric.fail_removal("the host does not answer")
    twin.start_b()
    status = look(twin)
    assert (status.state, twin.b_fabric.runs(twin.machine)) == (FailoverState.ROLLING_BACK, False)
    assert told(twin, "failover.restarted") == 0
    twin.roll_back(OPERATION)
    assert look(twin).state is FailoverState.ROLLED_BACK


def test_a_commit_goes_on_where_its_host_restarted(twin: Twin) -> None:
    twin.kill_at = "failover.commit-intended"
    twin.commit(OPERATION)
    twin.b_fabric.restart_host()
    twin.start_b()
    status = look(twin)
    assert (status.state, status.restarts) == (FailoverState.COMMITTED, 1)
    twin.check()


def test_one_that_ends_again_and_again_is_left_to_a_person(twin: Twin) -> None:
    for _ in range(failoverrestarts.STARTS_MAX):
        twin.b_fabric.restart_host()
        look(twin)
        assert twin.b_fabric.runs(twin.machine)
    twin.b_fabric.restart_host()
    for _ in range(3):
        look(twin)
    assert not twin.b_fabric.runs(twin.machine)
    assert told(twin, "failover.not-restarted") == 1
    look(twin, failoverrestarts.STARTS_SECONDS)
    assert twin.b_fabric.runs(twin.machine), "an hour later it is tried again"
