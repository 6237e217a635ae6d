"""Two sites, a line, operators and deaths in any order: at most one authoritative copy, at every step.

The code that decides is the product's (`support.failover_twin`). Bugs are planted to see that the walk finds
them. `./run fencing` walks 10,000 times.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from secondsite.base.crash import MARKS
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.failover import fencing
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.failover.run import FailoverRunner
from secondsite.journal import drop
from secondsite.journal.names import log_prefix
from secondsite.model.failover import FAILOVER, FailoverState
from secondsite.model.points import Point
from support.failover_twin import Twin
from support.walking import Deaths, MemoryDirectory, in_turns

WALKS = 10_000 if os.environ.get("SECONDSITE_MATRIX") == "full" else 60
STEPS = 25
OPERATION = "ab" * 16
ENDS = {
    "start": FailoverState.COMPLETED,
    "change": FailoverState.COMPLETED,
    "commit": FailoverState.COMMITTED,
    "roll back": FailoverState.ROLLED_BACK,
}
# By how the names of its marks begin; every mark of a failover is of one of them.
_BOOT = ("failover.after-export", "failover.after-boot", "failover.after-record")
MARKS_OF = {
    "start": ("failover.after-", "failover.before-"),
    "change": ("failover.change-", *_BOOT),
    "commit": ("failover.commit-", "drop."),
    "roll back": ("failover.roll-back-",),
}
OURS = sorted(mark for mark in MARKS if mark.startswith(("failover.", "held.", "drop.")))


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where that can be had: each step syncs its records, which is not what is tested here."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        yield Path(name)


def walk(seed: int) -> list[str]:
    """One history; raises AssertionError where two copies have the authority. Returns what was done."""
    with in_turns(Deaths(), ()):
        return _walk(seed)


def _walk(seed: int) -> list[str]:
    twin = Twin(cast("Path", MemoryDirectory()), seed)
    twin.commit_as_a()
    twin.commit_as_a()
    done: list[str] = []
    for _ in range(STEPS):
        done.append(_step(twin))
        try:
            twin.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, after {done}: {error}") from error
    return done


def _step(twin: Twin) -> str:
    status, chance = twin.status(), twin.chance
    actions: dict[str, Any] = {
        "look": twin.look,
        "commit": twin.commit_as_a,
        "late commit": lambda: twin.commit_as_a(late=True),
        "line": lambda: setattr(twin, "line", not twin.line),
    }
    if twin.a is None:
        actions["start a"] = twin.start_a
    else:
        actions["kill a"] = twin.kill_a
        actions["keep a"] = twin.keep_a
        for held in twin.a.all():
            if held.state.value in ("Held", "Released"):
                actions["discard"] = lambda: twin.decide(release=False)
            if held.state.value == "Held":
                actions["release"] = lambda: twin.decide(release=True)
    if twin.b is None:
        actions["start b"] = twin.start_b
        actions["host b"] = twin.b_fabric.restart_host
    else:
        actions["kill b"] = twin.kill_b
        actions["host b"] = twin.restart_host_b
        operation = f"{len(twin.b.all()):032x}"
        actions["fail over"] = lambda: twin.failover(operation)
        if status is not None:
            points = [str(point.number) for point in twin.journal.points()] or ["1"]  # deleted at a commit
            actions["again"] = lambda: twin.failover(status.id)
            actions["change point"] = lambda: twin.change_point(status.id, chance.choice(points))
            actions["roll back"] = lambda: twin.roll_back(status.id)
            actions["keep it"] = lambda: twin.commit(status.id)
    name = chance.choice(sorted(actions))
    if chance.random() < 0.4:
        twin.kill_at = chance.choice(OURS)
    with contextlib.suppress(SecondsiteError):
        actions[name]()
    shown = f"{name} (to die at {twin.kill_at})" if twin.kill_at else name
    twin.kill_at = ""
    return shown


def test_at_most_one_copy_has_the_authority_in_any_order_of_events() -> None:
    seen: set[str] = set()
    for seed in range(WALKS):
        seen.update(walk(seed))
    for action in (
        "fail over",
        "change point",
        "roll back",
        "keep it",
        "late commit",
        "start b",
        "host b",
        "look",
    ):
        assert action in seen, f"no walk came to {action}"
    assert "host b" in seen, "or to a restart of the hypervisor at B"


@contextlib.contextmanager
def planted(module: Any, name: str, wrong: Any) -> Iterator[None]:
    right = getattr(module, name)
    setattr(module, name, wrong)
    try:
        yield
    finally:
        setattr(module, name, right)


def boots_before_the_claim(runner: FailoverRunner, identity: str) -> None:
    record = runner._records.get(identity)
    point = runner._hands.choose(record.status.machine, record.wanted)
    export = runner._export(record, point)
    if not runner.found(record):
        runner._start(record, runner._spec(record, point, export))
    _TAKE_OVER(runner, identity)


def claims_back_before_the_machine_is_gone(runner: FailoverRunner, identity: str) -> None:
    status = runner._records.get(identity).status
    failoverclaim.give_back(
        runner._hands.journal(status.machine),
        to=status.writer,
        operation=identity,
        name=status.machine_name,
        clock=runner._hands.clock,
    )
    getattr(failoverrun, "crash_point")(failoverrun.ROLL_BACK_CLAIMED)  # noqa: B009 - the twin's
    _ROLL_BACK(runner, identity)


def lifts_what_it_sees_again(self: Any, machine: Any, name: str, claim: Any, head: Any) -> None:
    if claim.reason == FAILOVER and self._records.get(machine) is not None:
        self._fabric.lift_isolation(machine, run=True)
        return
    _LEARN(self, machine, name, claim, head)


def forgets_to_isolate(_self: Any, _held: Any) -> None:
    """The record says held, the machine runs."""


_TAKE_OVER, _ROLL_BACK = FailoverRunner.take_over, FailoverRunner.roll_back
_LEARN = fencing.Fencing._learn
BUGS = [
    (FailoverRunner, "take_over", boots_before_the_claim),
    (FailoverRunner, "roll_back", claims_back_before_the_machine_is_gone),
    (fencing.Fencing, "_learn", lifts_what_it_sees_again),
    (fencing.Fencing, "_isolate", forgets_to_isolate),
]


# The one that takes the walk longest to find: a gateway has to die between two marks of a roll-back.
PICKED = BUGS if WALKS > 1000 else [bug for bug in BUGS if bug[1] != "roll_back"]


@pytest.mark.parametrize(("where", "name", "wrong"), PICKED, ids=[wrong.__name__ for *_, wrong in PICKED])
def test_the_walk_finds_planted_bugs(where: Any, name: str, wrong: Any) -> None:
    found = pytest.raises(AssertionError, match=r"seed \d+, after .*(runs, |is None|assert )")
    with planted(where, name, wrong), found:
        _walk_all()


def _walk_all() -> None:
    for seed in range(1000):
        walk(seed)


@pytest.mark.parametrize("action", list(ENDS))
def test_killed_at_every_mark_it_goes_on_and_ends_as_asked(action: str, root: Path) -> None:
    reached = set()
    for mark in OURS:
        twin = Twin(root / mark)
        first = twin.commit_as_a()
        twin.commit_as_a()
        assert first is not None
        if action != "start":
            twin.failover(OPERATION)
        twin.kill_at = mark
        _act(twin, action, first)
        if twin.b is not None:
            continue  # this action does not come by
        reached.add(mark)
        twin.check()
        twin.start_b()
        twin.check()
        if _state(twin) is FailoverState.FAILED:
            assert mark in ("failover.after-pin", "failover.before-claim"), "given up before the claim alone"
            assert (twin.journal.head().epoch, twin.journal.state().pins) == (1, ())
            _act(twin, action, first)  # the same operation again
        _require_end(twin, action, mark, first)
    # the twin has no segments: that mark is passed in tests/fault/test_failover_crash.py
    expected = {mark for mark in OURS if mark.startswith(MARKS_OF[action])} - {drop.DURING_OBJECTS}
    assert reached == expected


def _act(twin: Twin, action: str, first: Point) -> None:
    if action == "start":
        twin.failover(OPERATION)
    elif action == "change":
        twin.change_point(OPERATION, str(first.number))
    elif action == "commit":
        twin.commit(OPERATION)
    else:
        twin.roll_back(OPERATION)


def test_it_goes_back_to_a_point_with_what_it_wrote_there(root: Path) -> None:
    twin = Twin(root)
    first, second = twin.commit_as_a(), twin.commit_as_a()
    assert first is not None
    assert second is not None
    twin.failover(OPERATION)
    with pytest.raises(InvalidInput, match="nothing that shop wrote there is kept"):
        twin.change_point(OPERATION, str(first.number), with_writes=True)
    twin.change_point(OPERATION, str(first.number))
    twin.kill_at = "failover.change-moved"
    twin.change_point(OPERATION, str(second.number), with_writes=True)
    twin.start_b()
    status = twin.status()
    assert status is not None
    assert (status.state, status.point) == (FailoverState.COMPLETED, second.number)
    [recovered] = twin.b_fabric.recovered()
    booted = twin.b_fabric.recovered_spec(recovered)
    of_second = status.former_writes[0]
    assert (of_second.point, of_second.label) == (second.number, booted.goes_on)
    assert set(of_second.files) <= set(twin.b_fabric.aside), "what was kept stays beside the copy"
    twin.change_point(OPERATION, str(second.number))
    [recovered] = twin.b_fabric.recovered()
    assert twin.b_fabric.recovered_spec(recovered).goes_on is None, "afresh, as was asked for"


def test_what_it_wrote_on_former_points_goes_with_the_commit_or_the_roll_back(root: Path) -> None:
    for end in ("commit", "roll back"):
        twin = Twin(root / end)
        first, second = twin.commit_as_a(), twin.commit_as_a()
        assert first is not None
        assert second is not None
        twin.failover(OPERATION)
        for point in (first, second, first):
            twin.clock.advance(60)
            twin.change_point(OPERATION, str(point.number))
        status = twin.status()
        assert status is not None
        assert [former.point for former in status.former_writes] == [
            second.number,
            first.number,
            second.number,
        ]
        assert len(twin.b_fabric.aside) == 3
        _act(twin, end, first)
        status = twin.status()
        assert status is not None
        assert (status.state, status.former_writes, twin.b_fabric.aside) == (ENDS[end], (), {})


def _state(twin: Twin) -> FailoverState:
    status = twin.status()
    assert status is not None
    return status.state


def _require_end(twin: Twin, action: str, mark: str, first: Point) -> None:
    status = twin.status()
    assert status is not None
    assert (status.state, status.error) == (ENDS[action], None), mark
    assert twin.journal.head().epoch == (3 if action == "roll back" else 2), mark
    assert twin.b_fabric.runs(twin.machine) == (action != "roll back")
    holders = {pin.holder for pin in twin.journal.state().pins}
    assert bool(holders) == (action in ("start", "change")), f"{mark}: {holders}"
    assert len(twin.exports.served) == (action in ("start", "change"))
    if action == "change":
        assert status.point == first.number
    kept = [path for former in status.former_writes for path in former.files]
    assert sorted(twin.b_fabric.aside) == sorted(kept), f"{mark}: what is kept is known, and nothing else is"
    assert len(kept) == (action == "change"), mark
    assert (status.points_deleted_at is not None) == (action == "commit"), mark
    assert bool(twin.journal.points()) == (action != "commit"), mark
    records = len(list(twin.store.list(log_prefix(twin.machine))))
    assert (records == 1) == (action == "commit"), "of deleted points nothing stays"


def test_every_mark_of_a_held_source_is_passed_and_met_again(root: Path) -> None:
    # that one is passed where a machine goes on to a third place (tests/fault/test_failover_kills.py)
    ours = [mark for mark in OURS if mark.startswith("held.") and mark != failoverclaim.HANDED_OVER]
    for mark in ours:
        twin = Twin(root / mark)
        twin.commit_as_a()
        twin.failover("cd" * 16)
        if mark in ("held.decided", "held.decision-done"):
            twin.look()
        twin.kill_at = mark
        with twin.killing():
            if mark in ("held.decided", "held.decision-done"):
                twin.decide(release=True)
            else:
                twin.look()
        assert twin.died, mark
        twin.start_a()
        assert twin.a is not None
        twin.look()
        twin.keep_a()
        decided = mark in ("held.decided", "held.decision-done")
        assert twin.a_fabric.runs(twin.machine) == decided, mark
        assert [held.state.value for held in twin.a.all()] == ["Released" if decided else "Held"]
