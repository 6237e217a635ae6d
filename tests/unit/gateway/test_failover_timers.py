"""Failovers that end by themselves, in virtual time: told before, cancelled, begun anew, across restarts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput
from secondsite.base.units import GIB
from secondsite.fabrics.base import Flattening, Recovered, Shape
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.messages.failover import CancelTimer, CommitFailover, FailoverStatus, StartFailover
from secondsite.model import confirmations
from secondsite.model.confirmations import ConfirmationMissing
from secondsite.model.failover import AUTO_COMMIT_BYTES_PER_SECOND, FailoverState
from support.failover_twin import NAME, A, Twin

OPERATION = "ab" * 16
HOUR = 3600.0


class JumpyClock(FakeClock):
    """Its time of day can be set; the one that only grows cannot."""

    jump = timedelta(0)

    def utc(self) -> datetime:
        return super().utc() + self.jump


class Timed:
    """A failover with a timer at site B."""

    def __init__(
        self, root: Path, *, auto: str, clock: FakeClock | None = None, rate: int | None = None
    ) -> None:
        self.twin = Twin(root, clock=clock) if clock is not None else Twin(root)
        self.points = [self.twin.commit_as_a(), self.twin.commit_as_a()]
        self.twin._ask(lambda b: b.start(self.twin.machine, request(auto, rate=rate)))

    def pass_by(self, seconds: float) -> FailoverStatus:
        """Time passes, a tenth at a time, and the gateway looks each time."""
        assert self.twin.b is not None
        until = self.twin.clock.monotonic() + seconds
        while (left := until - self.twin.clock.monotonic()) > 0:
            self.twin.clock.advance(min(left, seconds / 10))
            self.look()
        return self.status

    def look(self) -> None:
        assert self.twin.b is not None
        self.twin.b.tick()
        self.twin.settle()

    @property
    def status(self) -> FailoverStatus:
        found = self.twin.status()
        assert found is not None
        return found

    def told(self) -> list[str]:
        return [code for code in self.twin.events.codes() if code.startswith("failover.timer-")]


def request(
    auto: str, *, after: float = HOUR, said: str | None = None, rate: int | None = None
) -> StartFailover:
    sentence = confirmations.kept(NAME) if auto == "commit" else confirmations.lost(NAME)
    return StartFailover(
        operation=OPERATION,
        point="latest",
        confirm=confirmations.taken_over(NAME, A),
        auto_commit_after=after if auto == "commit" else None,
        auto_roll_back_after=after if auto == "roll back" else None,
        confirm_timer=sentence if said is None else said,
        bytes_per_second=rate,
    )


@pytest.mark.parametrize(
    ("auto", "end"), [("commit", FailoverState.COMMITTED), ("roll back", FailoverState.ROLLED_BACK)]
)
def test_it_ends_by_itself_and_says_so_before(auto: str, end: FailoverState, tmp_path: Path) -> None:
    timed = Timed(tmp_path, auto=auto)
    timed.look()
    assert timed.status.timer is not None
    assert timed.status.timer.due_at is not None
    assert timed.told() == ["failover.timer-set"]
    timed.pass_by(HOUR - 700)
    assert timed.told() == ["failover.timer-set"]
    timed.pass_by(110)
    assert timed.told() == ["failover.timer-set", "failover.timer-soon"]
    timed.twin.kill_b()
    timed.twin.start_b()
    assert timed.pass_by(580).state is FailoverState.COMPLETED
    assert timed.told() == ["failover.timer-set", "failover.timer-soon"], "once, also across a restart"
    status = timed.pass_by(60)
    assert (status.state, status.ended_by) == (end, "its timer")
    assert timed.told()[-1] == "failover.timer-acts"
    assert status.timer is not None
    assert status.timer.acted_at is not None
    timed.twin.check()


def test_what_came_due_while_no_gateway_ran_is_done_by_the_next(tmp_path: Path) -> None:
    timed = Timed(tmp_path, auto="roll back")
    timed.look()
    timed.twin.kill_b()
    timed.twin.clock.advance(2 * HOUR)
    timed.twin.start_b()
    timed.look()
    assert timed.status.state is FailoverState.ROLLED_BACK
    assert timed.told()[-2:] == ["failover.timer-soon", "failover.timer-acts"]


def test_another_point_begins_its_time_anew_and_a_person_ends_it(tmp_path: Path) -> None:
    timed = Timed(tmp_path, auto="commit")
    timed.pass_by(HOUR - 60)
    first = timed.points[0]
    assert first is not None
    timed.twin.change_point(OPERATION, str(first.number))
    assert timed.pass_by(HOUR - 60).state is FailoverState.COMPLETED
    assert timed.told().count("failover.timer-set") == 2
    assert timed.twin.b is not None
    for _ in range(2):
        cancelled = timed.twin.b.cancel_timer(OPERATION, CancelTimer(requested_by="ann")).timer
        assert cancelled is not None
        assert cancelled.cancelled_by == "ann"
    assert timed.pass_by(10 * HOUR).state is FailoverState.COMPLETED
    assert timed.told().count("failover.timer-cancelled") == 1
    timed.twin.commit(OPERATION)
    assert timed.status.state is FailoverState.COMMITTED


def test_a_machine_that_does_not_run_is_not_committed_until_it_does(tmp_path: Path) -> None:
    timed = Timed(tmp_path, auto="commit")
    timed.look()
    timed.twin.b_fabric.switch_off_recovered(timed.twin.machine)
    status = timed.pass_by(2 * HOUR)
    assert status.state is FailoverState.COMPLETED
    assert status.timer is not None
    assert "does not run" in status.timer.waits
    assert timed.told().count("failover.timer-waits") == 1
    [recovered] = timed.twin.b_fabric.recovered()
    timed.twin.b_fabric.run_recovered(recovered)
    timed.look()
    assert timed.status.state is FailoverState.COMMITTED


def test_one_that_is_not_what_was_asked_for_is_left_to_a_person(tmp_path: Path) -> None:
    timed = Timed(tmp_path, auto="commit")
    timed.look()
    shape = Shape(cpus=1, memory_bytes=GIB // 2, nics=())
    timed.twin.b_fabric.shapes[timed.twin.machine] = shape
    status = timed.pass_by(2 * HOUR)
    assert status.state is FailoverState.COMPLETED
    assert status.timer is not None
    assert "it has 512 MiB of memory, and 1024 MiB were asked for" in status.timer.waits
    assert timed.told().count("failover.timer-waits") == 1
    timed.twin.commit(OPERATION)
    assert timed.status.state is FailoverState.COMMITTED, "a person may, who read what differs"


@pytest.mark.parametrize("jump", [timedelta(days=2), timedelta(days=-2)])
def test_a_time_of_day_that_jumps_does_not_shorten_it(jump: timedelta, tmp_path: Path) -> None:
    clock = JumpyClock()
    timed = Timed(tmp_path, auto="roll back", clock=clock)
    timed.look()
    clock.jump = jump
    assert timed.pass_by(HOUR - 1).state is FailoverState.COMPLETED


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: request("commit", said=""), ConfirmationMissing),
        (lambda: request("roll back", said=confirmations.kept(NAME)), ConfirmationMissing),
        (lambda: structs.replace(request("commit"), auto_roll_back_after=HOUR), InvalidInput),
    ],
)
def test_what_it_will_do_is_said_at_the_start(
    wrong: Callable[[], StartFailover], error: type[Exception], tmp_path: Path
) -> None:
    twin = Twin(tmp_path)
    twin.commit_as_a()
    assert twin.b is not None
    with pytest.raises(error):
        twin.b.start(twin.machine, wrong())
    assert (twin.b.all(), twin.journal.head().epoch) == ([], 1), "nothing was begun"


@pytest.mark.parametrize("by", ["itself", "a person", "a person with a rate"])
@pytest.mark.parametrize("rate", [None, 250_000_000])
def test_disks_are_copied_at_the_rate_of_the_failover(
    by: str, rate: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(tmp_path, auto="commit", rate=rate)
    timed.look()
    rates: list[int | None] = []
    flatten = MemoryFabric.flatten

    def seen(fabric: MemoryFabric, recovered: Recovered, *, bytes_per_second: int | None) -> Flattening:
        rates.append(bytes_per_second)
        return flatten(fabric, recovered, bytes_per_second=bytes_per_second)

    monkeypatch.setattr(MemoryFabric, "flatten", seen)
    shown = timed.status.timer
    assert shown is not None
    assert shown.bytes_per_second == (rate or AUTO_COMMIT_BYTES_PER_SECOND), "shown before"
    [told] = [one.text for one in timed.twin.events.all if one.code == "failover.timer-set"]
    assert f"at {shown.bytes_per_second / 1e6:,.0f} MB/s at most" in told
    own = 1_000_000 if by == "a person with a rate" else None
    if by == "itself":
        timed.pass_by(HOUR + 60)
    else:
        said = CommitFailover(confirm=confirmations.kept(NAME), bytes_per_second=own)
        timed.twin._ask(lambda b: b.commit(OPERATION, said))
        timed.twin.settle()
    assert timed.status.state is FailoverState.COMMITTED
    assert set(rates) == {shown.bytes_per_second if by == "itself" else own or rate}


def test_what_commits_by_itself_says_how_fast_before_it_is_begun(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.commit_as_a()
    assert twin.b is not None
    for rate, told in ((None, "copied at 100 MB/s at most"), (5_000_000, "copied at 5 MB/s at most")):
        with pytest.raises(ConfirmationMissing) as caught:
            twin.b.start(twin.machine, request("commit", said="", rate=rate))
        assert told in " ".join(caught.value.sentences())
