"""kill -9 of whole gateways in every step of moving a machine: it ends right, or it is undone.

Both gateways are processes of their own and die by SIGKILL at a mark; their hosts are imaginary and live on.
Held each time: nobody executes whose machine it is not, no two copies execute at once but where the source
cannot know yet, every point holds what the guest had written, a planned move loses nothing, and nothing is
left (pins, exports, machines). All marks by `./run kills`; each on the twin in every run
(tests/unit/gateway/test_failover_model.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secondsite.base.crash import MARKS
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.messages.failover import (
    ChangePoint,
    CommitFailover,
    Decide,
    FailoverStatus,
    PlannedStop,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.gateway.messages.reverse import ReverseRequest, ReverseState
from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, FailoverState, HeldState
from secondsite.model.reversals import reversed_onto
from support.gateway_pair import A, B
from support.kill_sites import KillSites

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
STOP, MOVE, TURN = "5" * 32, "a" * 32, "7" * 32
LOST = confirmations.lost("shop")


@pytest.fixture
def sites() -> Iterator[KillSites]:
    with tempfile.TemporaryDirectory(prefix="ks") as name:
        made = KillSites(Path(name))
        try:
            yield made
        finally:
            made.close()


# what is asked for, each until its end


def _ended(sites: KillSites, wanted: FailoverState) -> FailoverStatus:
    def there(client: FailoverClient) -> bool:
        status = client.failover(MOVE)
        if status.state is FailoverState.FAILED and wanted is FailoverState.COMPLETED:
            return True
        assert status.error is None, f"{status.error}\n{sites.evidence()}"
        return status.state is wanted

    sites.wait("B", there, f"{wanted}")
    return sites.ask("B", lambda client: client.failover(MOVE))


def fail_over(sites: KillSites, *, planned: bool = False) -> FailoverStatus:
    """Taken over; given up before the claim it is asked for once more, as a person does who is told so."""
    kind = FailoverKind.PLANNED if planned else FailoverKind.UNPLANNED
    sentence = confirmations.stopped("shop", A) if planned else confirmations.taken_over("shop", A)
    request = StartFailover(operation=MOVE, point="latest", kind=kind, confirm=sentence)
    sites.ask("B", lambda client: client.start_failover("shop", request))
    status = _ended(sites, FailoverState.COMPLETED)
    if status.state is FailoverState.FAILED:
        assert (status.error or {})["code"] == "failover.interrupted"
        claim = sites.journal.head().claim
        assert claim is not None
        assert claim.claimant == A, "given up before the claim alone"
        assert (sites.journal.state().pins, sites.host_b.recovered()) == ((), [])
        sites.ask("B", lambda client: client.start_failover("shop", request))
        status = _ended(sites, FailoverState.COMPLETED)
    return status


def change_point(sites: KillSites) -> FailoverStatus:
    request = ChangePoint(point="2", confirm=LOST)
    sites.ask("B", lambda client: client.change_point(MOVE, request))
    status = _ended(sites, FailoverState.COMPLETED)
    assert status.point == 2
    return status


def roll_back(sites: KillSites) -> FailoverStatus:
    sites.ask("B", lambda client: client.roll_back(MOVE, RollBackFailover(confirm=LOST)))
    status = _ended(sites, FailoverState.ROLLED_BACK)
    # a source that did not learn of it meanwhile has nothing to be let go from
    sites.wait(
        "A",
        lambda client: {held.state for held in client.held()} <= {HeldState.RETURNED},
        "the source let go",
    )
    sites.wait(
        "A",
        lambda client: client.status().protections[0].state is ProtectionState.PROTECTED,
        "the source protected as before",
    )
    return status


def commit(sites: KillSites) -> FailoverStatus:
    request = CommitFailover(confirm=confirmations.kept("shop"))
    sites.ask("B", lambda client: client.commit_failover(MOVE, request))
    return _ended(sites, FailoverState.COMMITTED)


def stop_in_order(sites: KillSites) -> None:
    request = PlannedStop(operation=STOP)
    sites.ask("A", lambda client: client.stop_in_order("shop", request))
    sites.wait("A", lambda client: client.planned_stop("shop").state == "Completed", "stopped in order")
    stopped = sites.ask("A", lambda client: client.planned_stop("shop"))
    assert stopped.proved
    assert stopped.point is not None
    assert not sites.runs_at_a()
    sites.require_nothing_lost(stopped.point)


def be_held(sites: KillSites) -> None:
    """A's gateway learns of what happened while it was away."""
    sites.wait(
        "A",
        lambda client: (
            [(held.state, bool(held.isolated_at)) for held in client.held()] == [(HeldState.HELD, True)]
        ),
        "held",
    )
    assert not sites.runs_at_a()


def release(sites: KillSites) -> None:
    request = Decide(epoch=2, confirm=confirmations.released("shop", B))
    sites.ask("A", lambda client: client.release_held("shop", request))
    sites.wait("A", lambda client: client.held()[0].state is HeldState.RELEASED, "released")
    sites.wait("A", lambda _: sites.runs_at_a(), "the released one runs")


def discard(sites: KillSites) -> None:
    request = Decide(epoch=2, confirm=confirmations.discarded("shop"))
    sites.ask("A", lambda client: client.discard_held("shop", request))
    sites.wait("A", lambda client: client.held()[0].state is HeldState.DISCARDED, "discarded")
    assert not sites.runs_at_a()


def reverse(sites: KillSites) -> None:
    request = ReverseRequest(operation=TURN, confirm=reversed_onto("shop"))
    sites.ask("A", lambda client: client.reverse("shop", request))
    _turned(sites, ReverseState.READY)
    assert not sites.runs_at_a()
    [held] = sites.ask("A", lambda client: client.held())
    assert held.state is HeldState.REVERSED
    assert sites.ask("A", lambda client: list(client.status().protections)) == []
    claim = sites.journal_at_a.head().claim
    assert claim is not None
    assert (claim.number, claim.epoch, claim.claimant, claim.nonce) == (1, 3, B, TURN), "claimed once"


def take_back(sites: KillSites) -> None:
    sites.ask("A", lambda client: client.take_back("shop"))
    _turned(sites, ReverseState.TAKEN_BACK)
    assert not sites.runs_at_a()
    [held] = sites.ask("A", lambda client: client.held())
    assert held.state is HeldState.HELD
    sites.wait("A", lambda client: len(client.status().protections) == 1, "its protection as before")
    claim = sites.journal_at_a.head().claim
    assert claim is not None
    assert claim.claimant != B, "the other site may not begin any more"


def _turned(sites: KillSites, state: ReverseState) -> None:
    def there(client: FailoverClient) -> bool:
        status = client.reversal("shop")
        assert status.error is None, f"{status.error}\n{sites.evidence()}"
        return status.state is state

    sites.wait("A", there, f"{state}")


@dataclass(frozen=True)
class Step:
    """Something that is asked for, after what has to be there, and the marks at which a gateway dies."""

    name: str
    act: Callable[[KillSites], object]
    before: tuple[Callable[[KillSites], object], ...] = ()
    at_a: tuple[str, ...] = ()
    at_b: tuple[str, ...] = ()
    a_away: bool = False  # A's gateway is not there until it is over

    def kills(self) -> list[tuple[str, str]]:
        return [*(("A", mark) for mark in self.at_a), *(("B", mark) for mark in self.at_b)]


def _marks(*prefixes: str) -> tuple[str, ...]:
    return tuple(sorted(mark for mark in MARKS if mark.startswith(prefixes)))


def _until_held(sites: KillSites) -> None:
    fail_over(sites)
    be_held(sites)


def _planned(sites: KillSites) -> FailoverStatus:
    return fail_over(sites, planned=True)


_TAKEN = _marks("failover.after-", "failover.before-")
_CYCLE = ("cycle.after-capture", "cycle.before-seal", "cycle.after-seal", "replicate.after-commit")
_RECEIVED = (
    "receive.after-publish",
    "commit.before-manifest",
    "commit.after-manifest",
    "receive.after-commit",
)
_SERVED = ("export.after-pin", "export.after-spec", "export.after-process")
_BOOT = tuple(mark for mark in _TAKEN if mark.split("-")[-1] in ("export", "boot", "record"))
_FORTH = tuple(mark for mark in _marks("reverse.") if not mark.startswith("reverse.back-"))
STEPS = [
    Step("unplanned", fail_over, at_b=(*_TAKEN, "claim.after-record", *_SERVED), a_away=True),
    Step("change", change_point, (fail_over,), at_b=(*_marks("failover.change-"), *_BOOT, *_SERVED)),
    Step("roll-back", roll_back, (fail_over,), at_b=(*_marks("failover.roll-back-"), "claim.after-record")),
    Step(
        "roll-back of a moved one", roll_back, (stop_in_order, _planned), at_b=_marks("failover.roll-back-")
    ),
    Step("stop", stop_in_order, at_a=(*_marks("planned."), *_CYCLE), at_b=_RECEIVED),
    Step("planned", _planned, (stop_in_order,), at_a=_marks("held.i"), at_b=(*_TAKEN, "claim.after-record")),
    Step("commit", commit, (fail_over,), at_b=_marks("failover.commit-", "drop.")),
    Step("held", _until_held, at_a=_marks("held.i")),
    Step("release", release, (fail_over, be_held), at_a=_marks("held.d")),
    Step("discard", discard, (fail_over, be_held), at_a=_marks("held.d")),
    Step("reverse", reverse, (fail_over, be_held, commit), at_a=_FORTH),
    Step("take back", take_back, (fail_over, be_held, commit, reverse), at_a=_marks("reverse.back-")),
]
PICKED = [("unplanned", "B", "failover.after-claim"), ("stop", "A", "planned.last-point")]
ALL = [(step.name, site, mark) for step in STEPS for site, mark in step.kills()]


def test_every_mark_of_a_failover_is_killed_at() -> None:
    ours = {mark for mark in MARKS if mark.startswith(("failover.", "held.", "planned.", "reverse."))}
    # passed where there is a third place: tests/unit/gateway/test_hand_over.py
    assert ours - {failoverclaim.HANDED_OVER} == ours & {mark for _, _, mark in ALL}
    assert set(PICKED) <= set(ALL)


@pytest.mark.parametrize(("name", "site", "mark"), ALL if FULL else PICKED)
def test_a_gateway_that_is_killed_anywhere_ends_it_right(
    name: str, site: str, mark: str, sites: KillSites
) -> None:
    step = next(step for step in STEPS if step.name == name)
    for _ in range(2):
        sites.write()
        sites.take_point()
    sites.write()  # in no point: what an unplanned failover loses, and a planned one does not
    if step.a_away:
        sites.stop("A")
    for act in step.before:
        act(sites)
    sites.arm(site, mark)
    step.act(sites)
    if name == "planned":
        be_held(sites)
    sites.require_died(site, mark)
    if step.a_away:
        sites.start("A")
        be_held(sites)
    _require_right(sites, name)


def _require_right(sites: KillSites, name: str) -> None:
    sites.require_rightful(released=name == "release")
    sites.require_points_right()
    # the second of two that ran at once: B where A could not know yet, and a released A by a person's word
    seconds = sites.seconds()
    if name in ("stop", "planned", "roll-back of a moved one"):
        assert seconds == [], "a machine that was stopped in order never runs twice"
    elif name == "release":
        assert [second.site for second in seconds][-1:] == ["A"]
    else:
        assert {second.site for second in seconds} <= {"B"}, seconds
    gone = name in ("roll-back", "roll-back of a moved one")
    committed = name in ("commit", "reverse", "take back")
    standing = name != "stop" and not committed and not gone
    head, pins = sites.journal.head(), sites.journal.state().pins
    assert head.claim is not None
    assert head.claim.epoch == (3 if gone else 1 if name == "stop" else 2)
    assert (len(sites.host_b.recovered()), len(pins)) == ((1, 2) if standing else (0, 0))
    assert len(sites.host_b.kept) == committed
    exports = sites.ask("B", lambda client: client.exports("shop"))
    assert len(exports) == standing
    if gone:
        assert sites.runs_at_a()
        sites.write()
        number = sites.take_point()
        sites.require_nothing_lost(number)
        assert sites.journal.point(number).epoch == 3
    if name == "planned":
        sites.require_nothing_lost(sites.ask("B", lambda client: client.failover(MOVE)).point)
    if name == "stop":
        assert sites.ask("A", lambda client: client.cancel_stop("shop")).state == "Cancelled"
        assert sites.runs_at_a()
