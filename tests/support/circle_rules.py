"""What must hold at every moment of a walk of `circle_twin`, whatever happened in whatever order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from secondsite.model.failover import (
    DELETED,
    FAILOVER,
    MIGRATED,
    MOVED,
    NOBODY,
    REVERSE,
    ROLL_BACK,
    FailoverState,
    HeldState,
)
from secondsite.model.points import Claim

if TYPE_CHECKING:
    from support.circle_site import Site
    from support.circle_twin import CircleTwin

# Claims in which nobody writes: of what was reversed onto nobody does who was taken over since.
_NO_WRITER = {MIGRATED, DELETED, REVERSE}


def check(twin: CircleTwin) -> None:
    """At most one authoritative copy, epochs that never go back, and always something to go on from."""
    heads = {name: site.seen.head().claim for name, site in twin.sites.items()}
    for name, claim in heads.items():
        if claim is not None:
            _epochs(twin, twin.sites[name], claim)
    for site in twin.sites.values():
        _runs_by_right(twin, site, heads)
        _as_recorded(twin, site, heads[site.name])
        _held_by_right(twin, site, heads[site.name])
    _something_is_left(twin)


def _held_by_right(twin: CircleTwin, site: Site, own: Claim | None) -> None:
    """Nobody is isolated who took the machine over last: what was claimed for others since knows of less."""
    if not site.up or own is None or own.reason not in MOVED or own.claimant != site.name:
        return
    moved = (claim for claim in twin.claims.values() if claim.reason in {*MOVED, ROLL_BACK})
    if any(claim.epoch >= own.epoch and claim != own for claim in moved):
        return  # somebody else did, and may have given it back
    for held in site.fencing.all():
        assert held.state is not HeldState.HELD or held.epoch < own.epoch, f"{own} is in force, and {held}"


def _epochs(twin: CircleTwin, site: Site, claim: Claim) -> None:
    known = twin.claims.setdefault((site.name, claim.epoch), claim)
    assert known == claim, f"epoch {claim.epoch} of {site.name} was given twice: {known}, {claim}"
    newest = max(epoch for name, epoch in twin.claims if name == site.name)
    assert newest == claim.epoch, f"{site.name} went back from epoch {newest} to {claim}"
    for (name, epoch), other in twin.claims.items():
        if name != site.name and epoch == claim.epoch:
            clear = not {claim.claimant, other.claimant} - {NOBODY} or claim.claimant == other.claimant
            # two that only copy, or are given nothing to write, take nothing from each other
            weak = FAILOVER not in (claim.reason, other.reason) or {claim.reason, other.reason} & _NO_WRITER
            assert clear or weak, f"epoch {epoch} is {claim} at {site.name} and {other} at {name}"


def _runs_by_right(twin: CircleTwin, site: Site, heads: Mapping[str, Claim | None]) -> None:
    """Nobody runs it who was told that another took it over; what was taken over runs beneath its claim."""
    own = heads[site.name]
    runs = site.fabric.runs(twin.machine)
    for other in twin.others(site) if runs and site.up else ():
        theirs = heads[other.name]
        if theirs is None or theirs.reason not in MOVED or theirs.claimant == site.name:
            continue
        older = own is None or own.epoch < theirs.epoch or own.reason not in MOVED
        told = theirs.epoch in site.learnt and theirs.epoch > max(site.released, default=0)
        assert not (older and told), f"{site.name} runs, and its gateway knows of {theirs}"
    _moved_with_nothing_lost(twin, site, heads)
    for recovered in site.fabric.recovered():
        assert own is not None
        assert (own.claimant, own.reason) == (site.name, "failover"), f"{recovered.name} runs beneath {own}"


def _moved_with_nothing_lost(twin: CircleTwin, site: Site, heads: Mapping[str, Claim | None]) -> None:
    """Told or not, the source does not run beneath a claim that is said to have lost nothing."""
    own, status = heads[site.name], site.status()
    if own is None or status is None or status.id != own.nonce or status.stop is None:
        return
    assert status.loss_seconds == 0 or status.points_tried, "nothing was, and nobody turned to another point"
    source = twin.sites[status.writer]
    back = heads[source.name]  # it may have taken the machine over again, with the other site still up
    taken = back is not None and back.reason in MOVED and back.claimant == source.name
    later = taken and back is not None and back.epoch > own.epoch
    again = own.epoch in source.released or source is site or later
    assert again or not source.fabric.runs(twin.machine), f"{source.name} runs, and {own} lost nothing"


def _as_recorded(twin: CircleTwin, site: Site, mine: Claim | None) -> None:
    if not site.up:
        return
    isolated = site.fabric.isolated(twin.machine)
    stopped = isolated is not None and isolated.startswith("it was stopped to be moved")
    for held in site.fencing.all():
        if held.state is HeldState.REPLACED:
            assert isolated is None or stopped, "it isolates what took its place"
    status = site.status()
    if status is None or status.state not in (FailoverState.COMPLETED, FailoverState.COMMITTED):
        return
    held_now = site.fencing.get(twin.machine)
    if mine is not None and mine.nonce == status.id and held_now is not None:
        lost = held_now.epoch > mine.epoch or mine.nonce in site.burnt
        here = site.fabric.life(twin.machine) and (isolated is None or stopped)
        assert lost or here, f"{site.name} took it over ({mine}), and it is not here: {held_now}, {isolated}"


def _something_is_left(twin: CircleTwin) -> None:
    """Nobody removed the last copy: the machine at its authority, or points to make it from."""
    newest = max(
        (claim for claim in twin.claims.values() if claim.claimant),
        key=lambda claim: (claim.epoch, claim.reason in MOVED),
        default=None,
    )
    if newest is None:
        return
    places = twin.sites.values()
    points = any(one.seen.points() for one in places)
    assert points or any(one.fabric.life(twin.machine) for one in places), "nothing is left"
    if newest.reason in MOVED:
        site = twin.sites[newest.claimant]
        assert site.fabric.life(twin.machine) or site.seen.points(), f"of {newest} nothing is left"
