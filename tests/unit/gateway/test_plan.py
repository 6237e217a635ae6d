"""The planner: facts in, one step out. Checkpoints are drawn as their numbers."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from secondsite.gateway.source import plan
from secondsite.gateway.source.plan import (
    Adopt,
    Claim,
    Copy,
    Cycle,
    Drop,
    DropSeeding,
    Facts,
    Hold,
    Pending,
    Seeding,
    Settle,
)
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency
from secondsite.transfer.protocols import Adoption, CommittedPoint, TargetHead

MACHINE = MachineId("7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11")


def c(number: int) -> str:
    return plan.checkpoint_name(1, number, "0badcafe")


def head(point: int | None = None, *, epoch: int = 1, claimant: str | None = "a") -> TargetHead:
    committed = None
    if point is not None:
        committed = CommittedPoint(
            number=point,
            epoch=epoch,
            nonce="0" * 32,
            checkpoint=c(point),
            parent_checkpoint=None,
            asked_at="",
            given_at="",
            committed_at="",
            consistency=Consistency.CRASH,
            disks=(),
        )
    return TargetHead(machine=MACHINE, number=9, epoch=epoch, claimant=claimant, point=committed)


def facts(
    at: TargetHead,
    *checkpoints: int,
    pending: tuple[Pending, ...] = (),
    seeding: Seeding | None = None,
    lost: str = "",
    too_much: str = "",
) -> Facts:
    return Facts("a", at, [c(number) for number in checkpoints], pending, seeding, lost, too_much)


def p(number: int, parent: int | None, *, epoch: int = 1) -> Pending:
    return Pending(epoch, c(number), None if parent is None else c(parent))


NEW = TargetHead(machine=MACHINE)
CASES = {
    "nobody writes it yet": (facts(NEW), Claim),
    "another gateway writes it": (facts(head(4, claimant="b"), 4), Hold),
    "claimed and nothing copied": (facts(head()), Copy),
    "goes on from its point": (facts(head(4), 4, 5), Cycle),
    "the point's checkpoint is gone, an older one stands in": (facts(head(4), 3, 5), Cycle),
    "no checkpoint is as old as the point": (facts(head(4), 5), Copy),
    "sealed instants attach": (facts(head(4), 4, 5, 6, pending=(p(5, 4), p(6, 5))), Cycle),
    "the oldest was committed, its answer lost": (facts(head(4), 4, pending=(p(4, 3), p(5, 4))), Settle),
    "sealed instants of another lineage": (facts(head(4), 4, pending=(p(9, 8),)), Drop),
    "sealed in an older epoch": (facts(head(4, epoch=2), 4, pending=(p(5, 4),)), Drop),
    "a sealed first copy": (facts(head(), 4, pending=(p(4, None),)), Cycle),
    "the target lost all it had": (facts(NEW, 4, pending=(p(5, 4),)), Drop),
    "an interrupted copy goes on": (facts(head(), 2, seeding=Seeding(1, c(2), resync=False)), Copy),
    "its checkpoint died": (facts(head(), seeding=Seeding(1, c(2), resync=False)), DropSeeding),
    "it lost track, and said why": (facts(head(4), lost="killed"), Copy),
    "it lost track of sealed instants, too": (facts(head(4), pending=(p(5, 4),), lost="killed"), Drop),
    "a disk is too much for one capture": (facts(head(4), 4, too_much="vdc"), Copy),
    "what was sealed goes before it": (facts(head(4), 4, 5, pending=(p(5, 4),), too_much="vdc"), Cycle),
    "a copy under way takes it in": (
        facts(head(4), 4, seeding=Seeding(1, c(4), resync=True), too_much="vdc"),
        Copy,
    ),
    "another writes, whatever was lost": (facts(head(4, claimant="b"), lost="killed"), Hold),
    "its epoch is over": (facts(head(epoch=2), 2, seeding=Seeding(1, c(2), resync=False)), DropSeeding),
}


@pytest.mark.parametrize("case", CASES)
def test_next_step(case: str) -> None:
    given, expected = CASES[case]
    assert isinstance(plan.next_step(given), expected)


def test_details_of_steps() -> None:
    assert plan.next_step(facts(head(4), 3, 5)) == Cycle(since=c(3), parent=c(4))
    assert plan.next_step(facts(head(4), 4, 5, pending=(p(5, 4),))) == Cycle(since=c(5), parent=c(5))
    drop = plan.next_step(facts(head(4), 4, pending=(p(5, 4), p(7, 6))))
    assert isinstance(drop, Drop)
    assert drop.count == 1, "only from the gap on"
    resync = plan.next_step(facts(head(4)))
    assert isinstance(resync, Copy)
    assert resync.resync
    assert not resync.resume
    told = plan.next_step(facts(head(4), lost="killed", too_much="vdc"))
    assert told == Copy(resync=True, resume=False, why="killed"), "what is lost comes first"
    assert plan.next_step(facts(head(4), 4, too_much="vdc")) == Copy(resync=True, resume=False, why="vdc")


def test_some_rule_always_has_a_step() -> None:
    for at in (NEW, head(), head(4), head(4, claimant="b")):
        for pending in ((), (p(5, 4),), (p(9, 8),)):
            for lost in ("", "killed"):
                for there in ((), (4,), (4, 5)):
                    assert plan.next_step(facts(at, *there, pending=pending, lost=lost)) is not None


@pytest.mark.parametrize(
    ("there", "committed", "newest", "gone"),
    [
        ([4, 5], 5, 5, [4]),
        ([4, 5, 6, 7, 8, 9], 4, 9, []),  # the committed, four, the newest
        ([4, 5, 6, 7, 8, 9, 10, 11], 4, 11, [5, 6]),
        ([3, 6], 4, 6, []),  # 3 stands in for the committed 4, which is gone
        ([5, 6], 4, 6, []),  # nothing stands in: nothing may go
        ([4, 5], None, 5, []),
    ],
)
def test_what_may_be_forgotten(there: list[int], committed: int | None, newest: int, gone: list[int]) -> None:
    found = plan.to_forget(
        [c(n) for n in there], committed=None if committed is None else c(committed), newest=c(newest)
    )
    assert found == [c(n) for n in gone]


def test_a_checkpoint_of_another_epoch_never_stands_in() -> None:
    """After a failover and back, ours from before it counts nothing of what the other site wrote."""
    ours = plan.checkpoint_name(1, 5, "0" * 8)
    theirs = plan.checkpoint_name(2, 9, "0" * 8)
    assert plan.stand_in(theirs, [ours]) is None
    assert plan.stand_in(theirs, [ours, plan.checkpoint_name(2, 7, "0" * 8)]) == plan.checkpoint_name(
        2, 7, "0" * 8
    )


def offered(identity: str, *, ready: bool, point: int | None = None) -> TargetHead:
    adoption = Adoption(id=identity, disks=(), ready=ready)
    return msgspec.structs.replace(head(point), adoption=adoption)


def test_an_adopted_copy_is_waited_for_and_then_compared_with() -> None:
    waiting = plan.next_step(facts(offered("x", ready=False)))
    assert isinstance(waiting, Adopt)
    assert plan.next_step(facts(offered("x", ready=True))) == Copy(resync=False, resume=False)
    nobody = msgspec.structs.replace(offered("x", ready=False), epoch=0, claimant=None)
    assert isinstance(plan.next_step(facts(nobody)), Claim), "its keys are agreed on by a writer"
    sealed = facts(offered("x", ready=False), 3, pending=(p(3, None),))
    assert isinstance(plan.next_step(sealed), Cycle), "a first copy that is whole is sent"
    there = plan.next_step(facts(offered("x", ready=False, point=3), 3))
    assert isinstance(there, Cycle), "nothing is adopted over a point"


@pytest.mark.parametrize(
    ("compared_with", "offer", "goes_on"),
    [("x", "x", True), ("", "", True), ("", "x", False), ("x", "", False), ("x", "y", False)],
)
def test_a_copy_goes_on_only_over_what_it_was_compared_with(
    compared_with: str, offer: str, goes_on: bool
) -> None:
    """Else its point would hold differences from something else, or everything twice."""
    at = offered(offer, ready=True) if offer else head()
    seeding = Seeding(1, c(2), resync=False, adopted=compared_with)
    step = plan.next_step(facts(at, 2, seeding=seeding))
    assert isinstance(step, Copy if goes_on else DropSeeding)


def test_a_deleted_replica_is_claimed_anew_and_sealed_instants_of_before_go() -> None:
    deleted = head(epoch=3, claimant="")
    assert next_step_of(facts(deleted, 4), floor=0) == Claim("first copy", 0)
    assert isinstance(next_step_of(facts(deleted, 4, pending=(p(5, 4, epoch=2),)), floor=0), Drop)


def test_epochs_are_above_what_the_machine_had_at_another_site() -> None:
    assert next_step_of(facts(NEW), floor=4) == Claim("first copy", 4)
    step = next_step_of(facts(head(epoch=4)), floor=4)
    assert isinstance(step, Claim)
    assert step.above == 4
    assert isinstance(next_step_of(facts(head(epoch=4), 4, pending=(p(5, 4, epoch=4),)), floor=4), Drop)
    assert isinstance(next_step_of(facts(head(epoch=5)), floor=4), Copy), "above it everything goes its way"
    assert isinstance(next_step_of(facts(head(epoch=3, claimant="b")), floor=4), Hold)


def next_step_of(known: Facts, *, floor: int) -> plan.Step:
    return plan.next_step(dataclasses.replace(known, floor=floor))
