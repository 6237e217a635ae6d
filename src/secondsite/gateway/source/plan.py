"""What a protected machine needs next, decided from facts alone: no I/O, no clock, the same answer each time.

Checkpoint names carry a number that only grows, so that of two checkpoints of a machine the older is known
by name. Changes since an older checkpoint contain those since a newer one: a committed checkpoint that is
gone is stood in for by an older one of ours that is still there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secondsite.model.failover import NOBODY
from secondsite.transfer.protocols import Adoption, TargetHead

# Rule 9: the last committed, the newest, and at most four between them.
CHECKPOINTS_BETWEEN_MAX = 4

_NAME = re.compile(r"e(\d{1,8})-c(\d{1,12})-[0-9a-f]{8}\Z")


def checkpoint_name(epoch: int, number: int, chance: str) -> str:
    """``e00000001-c000000000042-1f2e3d4c``: epoch, number in the machine's life, 8 random digits."""
    return f"e{epoch:08d}-c{number:012d}-{chance}"


def checkpoint_number(name: str) -> int:
    """Its number; 0 for a name that is not of this form."""
    found = _NAME.match(name)
    return int(found[2]) if found else 0


@dataclass(frozen=True)
class Pending:
    """A sealed shipment of an earlier time."""

    epoch: int
    checkpoint: str
    parent: str | None


@dataclass(frozen=True)
class Seeding:
    """A first copy or resynchronisation that was interrupted: what its shipment notes."""

    epoch: int
    checkpoint: str  # changes of every slice are counted from it
    resync: bool
    adopted: str = ""  # the adopted copy it was compared with


@dataclass(frozen=True)
class Facts:
    """Everything the decision rests on."""

    us: str  # our name, as the target knows us
    head: TargetHead
    checkpoints: Sequence[str]  # usable at the source, oldest first
    pending: Sequence[Pending] = ()  # oldest first
    seeding: Seeding | None = None
    lost: str = ""  # why the source knows of no change any more, where it said so
    too_much: str = ""  # why the next instant cannot be captured at once, where that was tried
    ordered: str = ""  # why somebody wants everything compared
    floor: int = 0  # the machine's highest epoch in any other journal, where that may matter
    taken: tuple[str, int] | None = None  # who took it over, also where its target is another, and the epoch


@dataclass(frozen=True)
class Claim:
    """Nobody writes this machine yet, or not above every epoch it had: ask to be the writer."""

    reason: str
    above: int = 0


@dataclass(frozen=True)
class Hold:
    """Another gateway is the writer: capture nothing until a person decides."""

    claimant: str
    epoch: int


@dataclass(frozen=True)
class Drop:
    """Shipments that can never be committed, counted from the newest; then plan again."""

    count: int
    why: str


@dataclass(frozen=True)
class Settle:
    """The oldest shipment was committed and its acknowledgement lost: drop it, plan again."""


@dataclass(frozen=True)
class DropSeeding:
    """The interrupted copy cannot go on where it stopped; then plan again."""

    why: str


@dataclass(frozen=True)
class Adopt:
    """The target was given a copy to begin with: come to terms, and wait until it is ready."""

    adoption: Adoption


@dataclass(frozen=True)
class Copy:
    """Read everything in slices, closed by increments; `resync`: the target holds an older state."""

    resync: bool
    resume: bool
    why: str = ""


@dataclass(frozen=True)
class Cycle:
    """Go on with increments: the next is counted from `since` and follows the point or shipment `parent`."""

    since: str
    parent: str


Step = Claim | Hold | Drop | Settle | Adopt | DropSeeding | Copy | Cycle


def next_step(facts: Facts) -> Step:
    """What to do now: the first rule that has a step."""
    steps = (rule(facts) for rule in RULES)
    return next(step for step in steps if step is not None)


def is_held(us: str, head: TargetHead) -> bool:
    """Whether another writer is the machine's authority."""
    return bool(head.claimant) and head.claimant != us


def _another_writes(facts: Facts) -> Step | None:
    head = facts.head
    if head.claimant is not None and is_held(facts.us, head):
        return Hold(head.claimant, head.epoch)
    return Hold(*facts.taken) if facts.taken is not None else None


def _nobody_writes(facts: Facts) -> Step | None:
    if facts.head.epoch and facts.head.claimant != NOBODY:
        return None
    if facts.pending:
        return Drop(len(facts.pending), "the target knows nothing of the machine")
    return Claim("first copy", facts.floor)


def _epochs_went_back(facts: Facts) -> Step | None:
    """A source that is held remembers the epoch that held it: a later failover has to be above that."""
    if facts.head.epoch > facts.floor or not facts.floor:
        return None
    if facts.pending:
        return Drop(len(facts.pending), f"the machine had epoch {facts.floor} at another site")
    return Claim(f"above epoch {facts.floor} of another site", facts.floor)


def _adopted_copy(facts: Facts) -> Step | None:
    adoption = facts.head.adoption
    if adoption is None or adoption.ready or facts.pending or facts.head.point is not None:
        return None  # a first copy that is whole already is sent
    return Adopt(adoption)


def _interrupted(facts: Facts) -> Step | None:
    seeding = facts.seeding
    if seeding is None:
        return None
    if seeding.epoch != facts.head.epoch or facts.pending:
        return DropSeeding("the target has moved on")
    if not seeding.resync and facts.head.point is not None:
        return DropSeeding("the target has a point that came another way")
    adopted = facts.head.adoption.id if facts.head.adoption is not None else ""
    if not seeding.resync and seeding.adopted != adopted:
        lacks = "the target has a copy to begin with now: only what differs from it is sent"
        return DropSeeding(lacks if adopted else "the adopted copy it was compared with is gone")
    if seeding.checkpoint not in facts.checkpoints:
        return DropSeeding(facts.lost or "the checkpoint its slices are counted from is gone")
    return Copy(resync=seeding.resync, resume=True)


def _nothing_there(facts: Facts) -> Step | None:
    return Copy(resync=False, resume=False) if _tip(facts) is None else None


def _untracked(facts: Facts) -> Step | None:
    tip = _tip(facts)
    if tip is None or stand_in(tip, facts.checkpoints) is not None:
        return None
    why = facts.lost or "the source no longer tracks changes since the last point"
    if facts.pending:
        return Drop(len(facts.pending), why)
    return Copy(resync=True, resume=False, why=why)


def _all_in_slices(facts: Facts) -> Step | None:
    why = facts.too_much or facts.ordered
    if not why or facts.pending:
        return None  # what is pending is sent first
    return Copy(resync=True, resume=False, why=why)


def _go_on(facts: Facts) -> Step | None:
    tip = _tip(facts)
    assert tip is not None, "the rules before this one see to it"
    since = stand_in(tip, facts.checkpoints)
    assert since is not None
    return Cycle(since=since, parent=tip)


def _tip(facts: Facts) -> str | None:
    """The newest captured instant."""
    if facts.pending:
        return facts.pending[-1].checkpoint
    return facts.head.point.checkpoint if facts.head.point else None


def _unfit(facts: Facts) -> Step | None:
    """What is wrong with the pending shipments, if anything: they must be one chain from the head."""
    newest = facts.head.point.checkpoint if facts.head.point else None
    for index, shipment in enumerate(facts.pending):
        left = len(facts.pending) - index
        if shipment.epoch != facts.head.epoch:
            return Drop(left, f"they are of epoch {shipment.epoch}, the target is at {facts.head.epoch}")
        if index == 0 and shipment.checkpoint == newest:
            return Settle()
        if shipment.parent is None and index == 0:
            newest = shipment.checkpoint
            continue
        if shipment.parent != newest:
            return Drop(left, "they do not follow the newest point")
        newest = shipment.checkpoint
    return None


def stand_in(tip: str, checkpoints: Sequence[str]) -> str | None:
    """The checkpoint to count changes from that contain all since `tip`: itself, or the newest older one.

    Of the same epoch: another epoch's writer may have been another site, whose changes ours never saw.
    """
    if tip in checkpoints:
        return tip
    number, epoch = checkpoint_number(tip), tip.partition("-")[0]
    older = [
        name
        for name in checkpoints
        if 0 < checkpoint_number(name) <= number and name.partition("-")[0] == epoch
    ]
    return max(older, key=checkpoint_number, default=None)


def to_forget(checkpoints: Sequence[str], *, committed: str | None, newest: str | None) -> list[str]:
    """Which of our checkpoints may go, oldest first.

    All that are older than what stands for the committed one; of those between it and the newest, the
    oldest beyond four: the source needs them only to count less when the newest ones are lost.
    """
    if committed is None:
        return []
    kept = stand_in(committed, checkpoints)
    if kept is None:
        return []
    numbers = {name: checkpoint_number(name) for name in checkpoints}
    gone = [name for name in checkpoints if 0 < numbers[name] < numbers[kept]]
    upper = numbers.get(newest, max(numbers.values()) + 1) if newest else max(numbers.values()) + 1
    between = [name for name in checkpoints if numbers[kept] < numbers[name] < upper]
    surplus = len(between) - CHECKPOINTS_BETWEEN_MAX
    return gone + (sorted(between, key=lambda n: numbers[n])[:surplus] if surplus > 0 else [])


# In this order; the last always has a step.
RULES: tuple[Callable[[Facts], Step | None], ...] = (
    _another_writes,
    _nobody_writes,
    _epochs_went_back,
    _unfit,
    _adopted_copy,
    _interrupted,
    _nothing_there,
    _untracked,
    _all_in_slices,
    _go_on,
)
