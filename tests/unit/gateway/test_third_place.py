"""A machine that went on to a third place: what lies at the places of before moves nobody."""

from __future__ import annotations

import pytest

from secondsite.gateway.messages.failover import Decide, PlannedStop
from secondsite.gateway.messages.failovererrors import AlreadyTakenOver
from secondsite.model.confirmations import released
from secondsite.model.failover import REVERSE, HeldState
from secondsite.model.points import known_epoch
from support.circle_site import A, B, C, Site
from support.circle_twin import CircleTwin, circle_twin


def three(twin: CircleTwin) -> tuple[Site, Site, Site]:
    """The first site, where it is protected to, and the third."""
    a = twin.sites[A]
    b = a.target
    assert b is not None, "it is protected from the beginning"
    [c] = [other for other in twin.others(a) if other is not b]
    return a, b, c


def over(twin: CircleTwin, source: Site, target: Site) -> None:
    """Protected, taken over and committed; the source is held."""
    source.protects = None
    twin._protect_to(source, target)
    for _ in range(3):
        twin.cycle(source)
    twin.fail_over(target, "remove" if target.fencing.get(twin.machine) else None)
    status = target.status()
    assert status is not None
    twin.commit(target, status)
    twin.head(source)
    held = source.fencing.get(twin.machine)
    assert held is not None
    assert held.state is HeldState.HELD


def test_protected_to_where_it_was_once_it_is_not_held_by_the_claim_of_then() -> None:
    with circle_twin() as twin:
        a, b, c = (twin.sites[name] for name in (A, B, C))
        over(twin, a, c)
        over(twin, c, b)
        twin._protect_to(b, c)
        twin.cycle(b)
        assert b.fabric.runs(twin.machine), "the newest authority, which c's old claim says nothing about"
        assert b.fencing.all() == []
        assert (c.seen.head().epoch, b.seen.head().epoch) == (2, 4)
        twin.check()


def test_a_stop_of_before_lets_no_held_machine_run_whoever_its_target_is_now() -> None:
    with circle_twin() as twin:
        a, b, c = (twin.sites[name] for name in (A, B, C))
        a.protects = None
        twin._protect_to(a, b)
        for _ in range(3):
            twin.cycle(a)
        request = PlannedStop(operation="5" * 32, seconds_max=2, prove=False)
        twin.ask(a, lambda: a.stops.start(twin.machine, "shop", request))
        assert a.stops.get(twin.machine).state == "Completed"
        twin.fail_over(b, None, planned=True)
        twin.head(a)
        a.protects = None
        twin._protect_to(a, c)  # by a server that was restored; nobody claimed the machine there
        with pytest.raises(AlreadyTakenOver, match="gateway-b in epoch 2"):
            a.stops.cancel(twin.machine)
        other = PlannedStop(operation="6" * 32)
        with pytest.raises(AlreadyTakenOver, match="gateway-b in epoch 2"):
            a.stops.start(twin.machine, "shop", other)
        assert not a.fabric.runs(twin.machine)
        twin.check()


def test_what_is_held_makes_no_points_at_another_place_either() -> None:
    """A server restored from a backup of before wants the machine protected from where it is held now."""
    with circle_twin() as twin:
        a, b, c = three(twin)
        over(twin, a, b)
        a.protects = None
        twin._protect_to(a, c)
        for _ in range(3):
            twin.cycle(a)
        assert c.seen.head().claim is None
        said = Decide(epoch=2, confirm=released("shop", b.name))
        twin.ask(a, lambda: a.fencing.release(twin.machine, said))
        twin.cycle(a)
        assert c.seen.head().epoch == 3, "a person wants it to be a machine again: above what took it over"


@pytest.mark.parametrize("times", [1, 2, 3])
def test_reversals_taken_back_hold_nobody_who_took_the_machine_over_later(times: int) -> None:
    """Each raises the epoch of its store, and none says more about who has the machine than the first."""
    with circle_twin() as twin:
        a, b, c = three(twin)
        over(twin, a, b)
        for source, target in ((a, b), (b, a)):  # home, and away once more
            twin.reverse(source)
            over(twin, target, source)
        for _ in range(times):
            twin.reverse(a)
            twin.take_back(a)
        claim = a.seen.head().claim
        assert claim is not None
        assert (claim.claimant, claim.reason, claim.epoch) == (b.name, REVERSE, 6 + 2 * times)
        assert known_epoch(claim) == 6, "b took it over in that epoch, and nobody did since"
        over(twin, b, c)
        taken = c.seen.head().epoch
        assert taken == 8
        c.protects = None
        twin._protect_to(c, a)
        twin.cycle(c)
        c.keep()
        assert c.fabric.runs(twin.machine), f"{c.name} took it over in epoch {taken}, after {claim}"
        assert c.fencing.all() == []
        twin.check()
        c.fencing.taken_here = lambda _: 6  # before b did, or in the same epoch elsewhere: nobody knows
        twin.cycle(c)
        assert [(held.epoch, held.known_epoch) for held in c.fencing.all()] == [(claim.epoch, 6)]
        assert not c.fabric.runs(twin.machine)


def test_a_reversal_that_is_taken_back_lets_no_source_of_before_be_the_machine_again() -> None:
    """It was away all the time: the store it writes to is all that can tell it that others took over."""
    with circle_twin() as twin:
        a, b, c = (twin.sites[name] for name in (A, B, C))
        a.protects = None
        twin._protect_to(a, b)
        for _ in range(3):
            twin.cycle(a)
        twin.cut.add(frozenset({A, B}))
        twin.fail_over(b, None)
        status = b.status()
        assert status is not None
        twin.commit(b, status)
        over(twin, b, c)
        twin.reverse(b)
        held = b.fencing.get(twin.machine)
        assert held is not None
        assert held.state is HeldState.REVERSED
        twin.take_back(b)
        twin.cut.clear()
        for _ in range(3):
            twin.cycle(a)
            a.keep()
        assert b.seen.head().claim is not None
        assert not a.fabric.runs(twin.machine), f"it is {C}'s, and {b.seen.head().claim} says otherwise"
        claim = b.seen.head().claim
        assert claim is not None
        assert (claim.claimant, claim.reason) == (C, REVERSE)
        assert b.fencing.elsewhere(twin.machine) == (C, held.epoch)
        # and it can be reversed onto again
        twin.reverse(b)
        assert b.seen.head().epoch == claim.epoch + 1
        twin.check()
