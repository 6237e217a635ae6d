"""Failovers as jobs: claimed once whatever is lost on the way, taken back only before the claim, followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from secondsite.model import confirmations
from secondsite.model.items import ProtectedState, allowed_operations
from secondsite.model.recovered import Direction, RecoveredSettings
from secondsite.server.calls.service import Calls
from secondsite.server.items.recovered import keep
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import (
    CHANGE_POINT,
    COMMIT,
    ROLL_BACK,
    ChangePoint,
    Commit,
    RollBack,
    said_of,
)
from secondsite.server.operations.failoverparts import Ends
from secondsite.transfer.calls import Answer, Ask
from support.item_failovers import FakeFailovers
from support.items import ItemPlace, a_machine, output

SHOP = a_machine()
SAID = confirmations.taken_over("shop", "gateway-a")


@pytest.fixture
def there(place: ItemPlace) -> FakeFailovers:
    return target(place)


def target(place: ItemPlace) -> FakeFailovers:
    """Of a machine that is protected."""
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    return place.gateways["gateway-b"].failovers


def given(place: ItemPlace) -> dict[str, Any]:
    item = place.item(SHOP.id)
    return {"vault": item.vault_id, "item": item.id, "machine": SHOP.id, "name": "shop", "by": "ann"}


def fail_over(place: ItemPlace, **more: Any) -> str:
    return place.worker.start(FAILOVER, Failover(**{**given(place), "confirm": SAID, **more}))


def commit(place: ItemPlace) -> str:
    return place.worker.start(COMMIT, Commit(**given(place), confirm=confirmations.kept("shop")))


def roll_back(place: ItemPlace) -> str:
    return place.worker.start(ROLL_BACK, RollBack(**given(place), confirm=confirmations.lost("shop")))


def change_point(place: ItemPlace, point: int) -> str:
    asked = ChangePoint(**given(place), point=str(point), confirm=confirmations.lost("shop"))
    return place.worker.start(CHANGE_POINT, asked)


def state(place: ItemPlace) -> str:
    return place.item(SHOP.id).state.value


def possible(place: ItemPlace) -> set[str]:
    """As the routes show it."""
    item = place.item(SHOP.id)
    reachable = any(place.tools.connected(name) for name in (item.source_name, item.target_name))
    return {one.value for one in allowed_operations(item.state, replace(item.facts, reachable=reachable))}


def retry(place: ItemPlace, job: str) -> records.Job:
    with place.database.write() as connection:
        place.worker.jobs.retry(connection, job, "ann")
    return place.run(job)


def cancel(place: ItemPlace, job: str) -> None:
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")


def under_way(place: ItemPlace, job: str, step: str) -> None:
    """Rounds until the step is being done."""
    place.run(
        job,
        until=lambda _job: any(
            one.name == step and one.state.value == "InProgress" for one in place.worker.steps(job)
        ),
    )


def code(job: records.Job) -> str:
    assert job.error is not None
    return job.error.code


def test_site_a_is_gone_and_the_machine_is_taken_over_and_committed(
    place: ItemPlace, there: FakeFailovers
) -> None:
    place.gateways["gateway-a"].here = False
    place.clock.advance(600.0)
    assert (place.item(SHOP.id).rpo_seconds(place.clock.utc()) or 0) > 599
    job = fail_over(place)
    under_way(place, job, "claimed")
    assert state(place) == "UnplannedFailoverInitiated"
    under_way(place, job, "booted")
    assert state(place) == "UnplannedFailoverCompleting"
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert place.item(SHOP.id).rpo_seconds(place.clock.utc()) is None, "its source writes no points any more"
    said = output(done)
    assert said["operation"] == there.begun[0]
    assert (said["point"], said["epoch"], said["loss_seconds"], said["booted_seconds"]) == (7, 2, 20.0, 3.0)
    item = place.item(SHOP.id)
    assert item.state is ProtectedState.UNPLANNED_COMPLETED
    assert item.failover is not None
    assert (item.failover.requested_by, item.failover.loss_seconds) == ("ann", 20.0)
    assert possible(place) == {"changePoint", "commit", "cancelFailover"}
    place.round()
    assert place.item(SHOP.id).health_code == "item.failed-over"
    done = place.run(commit(place))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert output(done)["flattened_bytes"] == 1 << 30
    assert state(place) == "CommitFailoverCompleted"
    assert "disable" in possible(place)
    place.gateways["gateway-a"].here = True
    place.round()
    place.round()
    assert state(place) == "CommitFailoverCompleted", "what the old source says moves nothing"
    with place.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM calls").scalar_one() == 0
    assert "item.failover-found" not in place.codes(), "the server asked for it"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"confirm": ""}, "failover.confirmation-missing"),
        ({"confirm": "shop may run"}, "failover.confirmation-missing"),
        ({"point": "99"}, "point.not-found"),
        ({"network": "nowhere"}, "failover.prerequisites"),
    ],
)
def test_what_was_not_said_or_is_in_the_way_begins_nothing(
    place: ItemPlace, there: FakeFailovers, more: dict[str, str], said: str
) -> None:
    job = place.run(fail_over(place, **more))
    assert (job.state, code(job)) == (JobState.FAILED, said)
    assert there.begun == []
    assert state(place) == "Protected"


def test_how_it_is_to_end_is_passed_on(place: ItemPlace, there: FakeFailovers) -> None:
    ends = Ends(auto_roll_back_after=3600.0, confirm_timer=confirmations.lost("shop"), old_machine="remove")
    assert place.run(fail_over(place, ends=ends)).state is JobState.SUCCEEDED
    [call] = [c for c in place.gateways["gateway-b"].answered if c.method == "POST"]
    body = json.loads(call.body)
    assert (body["autoRollBackAfter"], body["autoCommitAfter"], body["oldMachine"]) == (
        3600.0,
        None,
        "remove",
    )
    with pytest.raises(confirmations.ConfirmationMissing):
        Ends(auto_commit_after=60.0, confirm_timer=confirmations.lost("shop")).require_said("shop")


def test_it_becomes_what_is_kept_for_the_item(place: ItemPlace, there: FakeFailovers) -> None:
    wanted = RecoveredSettings(cpus=2)
    with place.database.write() as connection:
        item = place.item(SHOP.id)
        keep(connection, item, Direction.FORWARD, wanted, by="ann", at="2026-01-01T00:00:00+00:00")
    assert place.run(fail_over(place)).state is JobState.SUCCEEDED
    assert [looked["settings"]["cpus"] for looked in there.checked] == [2]
    [given_there] = there.settings
    assert isinstance(given_there, dict)
    assert given_there["cpus"] == 2


def test_a_stale_report_takes_nothing_back(place: ItemPlace, there: FakeFailovers) -> None:
    """It was on its way while the job was answered."""
    place.run(fail_over(place))
    before = [one.model_copy(update={"state": "Claimed", "serial": 1}) for one in there.reports()]
    gateway = place.gateways["gateway-b"]
    report = gateway.said().model_copy(update={"failovers": tuple(before)})
    place.parts.reports.heard(gateway.who, report)
    place.parts.reports.flush()
    assert state(place) == "UnplannedFailoverCompleted"


@pytest.mark.parametrize("meanwhile", ["another point", "another failover"])
def test_what_was_said_of_one_state_is_not_done_to_another(
    place: ItemPlace, there: FakeFailovers, meanwhile: str
) -> None:
    """As where its approval came hours later, and somebody had gone on at the gateway itself."""
    place.run(fail_over(place))
    item = place.item(SHOP.id)
    assert item.failover is not None
    said: dict[str, Any] = {"failover": said_of(item), "confirm": confirmations.kept("shop")}
    [status] = there.known.values()
    if meanwhile == "another point":
        status["point"] = 3
    else:
        status["id"] = "9" * 32
        there.known = {status["id"]: status}
    commit_it = Commit(**given(place), **said, point=item.failover.point)
    job = place.run(place.worker.start(COMMIT, commit_it))
    assert (job.state, code(job)) == (JobState.FAILED, "item.failover-other")
    assert "commit" not in there.asked
    if meanwhile == "another failover":
        said["confirm"] = confirmations.lost("shop")
        job = place.run(place.worker.start(ROLL_BACK, RollBack(**given(place), **said)))
        assert (job.state, code(job)) == (JobState.FAILED, "item.failover-other")
        assert there.asked == []


def test_what_could_not_be_claimed_is_taken_back_and_tried_again_as_another(
    place: ItemPlace, there: FakeFailovers
) -> None:
    there.claims_badly = 1
    job = place.run(fail_over(place))
    assert (job.state, code(job)) == (JobState.FAILED, "failover.taken-over")
    assert state(place) == "Protected"
    done = retry(place, job.id)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len(set(there.begun)) == 2


def test_after_the_claim_nothing_is_taken_back_and_the_boot_is_tried_again(
    place: ItemPlace, there: FakeFailovers
) -> None:
    there.boots_badly = 2
    job = place.run(fail_over(place))
    assert (job.state, code(job)) == (JobState.FAILED, "fabric.no-room")
    assert state(place) == "UnplannedFailoverCompletionFailed"
    assert possible(place) == {"changePoint", "cancelFailover"}
    place.round()
    assert place.item(SHOP.id).health_code == "item.failover-stopped"
    again = retry(place, job.id)
    assert (again.state, code(again)) == (JobState.FAILED, "fabric.no-room")
    done = retry(place, job.id)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len(there.begun) == 1, "the same failover"
    assert state(place) == "UnplannedFailoverCompleted"


@pytest.mark.parametrize("lost", ["the request", "the answer"])
def test_another_worker_in_the_middle_claims_nothing_twice(
    place: ItemPlace, there: FakeFailovers, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    job = fail_over(place)
    taken = Calls.answer

    def unanswered(calls: Calls, gateway: str, answer: Answer) -> None:
        if not there.begun:
            taken(calls, gateway, answer)

    if lost == "the answer":
        monkeypatch.setattr(Calls, "answer", unanswered)
        for _ in range(40):
            place.round()
            if there.begun:
                break
        assert there.begun
        place.gateways["gateway-b"].kept.clear()  # and the gateway was restarted
        monkeypatch.undo()
    else:
        under_way(place, job, "begin")
    place.clock.advance(6.0)
    assert place.worker.claims.take(1, place.worker.stop)
    place.worker.succeeded_by_a_peer()
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len(there.begun) == 1


def test_cancelled_before_the_claim_it_never_begins_although_its_request_comes_late(
    place: ItemPlace, there: FakeFailovers
) -> None:
    job = fail_over(place)
    under_way(place, job, "begin")
    target = place.gateways["gateway-b"]
    late = [call for call in place.calls.ready(target.who.id, Ask(room=8)) if call.method == "POST"]
    assert len(late) == 1
    cancel(place, job)
    place.calls.forget([call.id for call in late])
    assert place.run(job).state is JobState.CANCELLED
    assert there.answer(late[0])[1]["code"] == "failover.called-off"
    assert there.begun == []
    assert state(place) == "Protected"


def test_cancelled_after_the_claim_it_says_whose_the_machine_is(
    place: ItemPlace, there: FakeFailovers
) -> None:
    job = fail_over(place)
    under_way(place, job, "booted")
    cancel(place, job)
    assert place.run(job).state is JobState.CANCELLED
    assert any("belongs to gateway-b since epoch 2" in line for line in place.worker.log(job))
    for _ in range(4):
        there.work(next(iter(there.known.values())))
        place.round()
    assert state(place) == "UnplannedFailoverCompleted"
    assert possible(place) == {"changePoint", "commit", "cancelFailover"}


def test_another_point_and_back_to_the_source(each_place: ItemPlace) -> None:
    """On each database: what gateways answer and report is kept by SQL of its own."""
    place, there = each_place, target(each_place)
    place.run(fail_over(place))
    done = place.run(change_point(place, 3))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert output(done)["point"] == 3
    assert state(place) == "UnplannedFailoverCompleted"
    done = place.run(roll_back(place))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert output(done)["state"] == "CancelFailoverCompleted"
    assert state(place) == "Protected"
    place.round()
    item = place.item(SHOP.id)
    assert (item.state.value, item.health) == ("Protected", "Normal")
    done = place.run(fail_over(place))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len(set(there.begun)) == 2


@pytest.mark.parametrize(
    ("end", "fault", "stopped_in"),
    [
        (commit, "commits_badly", "CommitFailoverFailedOnRecovery"),
        (roll_back, "rolls_back_badly", "CancelFailoverFailedOnRecovery"),
        (lambda place: change_point(place, 3), "boots_badly", "UnplannedFailoverCompletionFailed"),
    ],
)
def test_what_stopped_is_gone_on_with_by_the_job_tried_again(
    place: ItemPlace,
    there: FakeFailovers,
    end: Callable[[ItemPlace], str],
    fault: str,
    stopped_in: str,
) -> None:
    place.run(fail_over(place))
    setattr(there, fault, 2)
    job = place.run(end(place))
    assert (job.state, code(job)) == (JobState.FAILED, "fabric.no-room")
    assert state(place) == stopped_in
    assert retry(place, job.id).state is JobState.FAILED
    done = retry(place, job.id)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert len(there.asked) == 3, "once for each time it was tried"


def test_what_is_not_as_it_was_asked_for_shows_before_a_commit(
    place: ItemPlace, there: FakeFailovers
) -> None:
    """In the answer to a job, in reports, and in the item's health; with a commit it is accepted."""
    place.run(fail_over(place))
    there.differs = "it has 512 MiB of memory, and 1024 MiB were asked for"
    said = f"It is not what was asked for: memory: {there.differs}."
    assert place.run(change_point(place, 3)).state is JobState.SUCCEEDED
    for _ in range(2):
        item = place.item(SHOP.id)
        assert item.failover is not None
        assert item.failover.note == said
        assert item.health_note.endswith(said)
        place.round()
    assert place.run(commit(place)).state is JobState.SUCCEEDED


def test_a_machine_that_does_not_run_is_not_committed(place: ItemPlace, there: FakeFailovers) -> None:
    place.run(fail_over(place))
    there.runs = False
    job = place.run(commit(place))
    assert (job.state, code(job)) == (JobState.FAILED, "failover.not-running")
    assert state(place) == "UnplannedFailoverCompleted"
    there.runs = True
    assert retry(place, job.id).state is JobState.SUCCEEDED


def by_hand(there: FakeFailovers, place: ItemPlace) -> dict[str, Any]:
    """Somebody sits at gateway B."""
    body = {"operation": "ab" * 16, "point": "latest", "confirm": SAID, "network": "mapped"}
    status, one = there.begin(place.item(SHOP.id).machine, {**body, "requestedBy": "bob"})
    assert status == 202
    return there.known[str(one["id"])]


def test_what_is_done_at_the_gateway_itself_is_followed_and_told(
    place: ItemPlace, there: FakeFailovers
) -> None:
    one = by_hand(there, place)
    place.round()
    assert state(place) == "UnplannedFailoverInitiated"
    for _ in range(4):
        there.work(one)
    place.round()
    assert state(place) == "UnplannedFailoverCompleted", "the claim was not heard of"
    assert place.codes().count("item.failover-found") == 1
    there.ask(one["id"], "commit", {"confirm": confirmations.kept("shop")})
    for _ in range(2):
        there.work(one)
    place.round()
    assert state(place) == "CommitFailoverCompleted"
    assert place.codes().count("item.failover-found") == 1


def test_a_server_that_was_away_for_all_of_it_finds_it_committed_and_asks_for_nothing_old(
    place: ItemPlace, there: FakeFailovers
) -> None:
    """As after a restore from an old backup: the item says Protected, the store knows better."""
    one = by_hand(there, place)
    job = fail_over(place)  # asked for on old knowledge
    for _ in range(4):
        there.work(one)
    refused = place.run(job)
    assert (refused.state, code(refused)) == (JobState.FAILED, "item.transition")
    assert state(place) == "UnplannedFailoverCompleted", "what was taken back is not the other one"
    there.ask(one["id"], "commit", {"confirm": confirmations.kept("shop")})
    for _ in range(2):
        there.work(one)
    place.round()
    place.round()
    assert state(place) == "CommitFailoverCompleted"
    assert there.begun == [one["id"]]


def test_a_failover_whose_claim_is_no_more_the_newest_is_history(
    place: ItemPlace, there: FakeFailovers
) -> None:
    """Committed long ago, protected again in the first direction since: its record is still there."""
    one = by_hand(there, place)
    one |= {"state": "CommitFailoverCompleted", "epoch": 2}
    target = place.gateways["gateway-b"]
    target.replicas[SHOP.id] = target.replicas[SHOP.id].model_copy(update={"epoch": 5})
    place.round()
    place.round()
    assert state(place) == "Protected"
