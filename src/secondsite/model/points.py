"""Recovery points and epoch claims: the two kinds of record that share one sequence of numbers a machine."""

from __future__ import annotations

import enum

import msgspec

from secondsite.model.failover import REVERSE
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.signals import Signals


class Consistency(enum.Enum):
    """What a point's instant promises (names of the field; labels are earned, architecture's rule 14)."""

    CRASH = "CrashConsistent"
    FILE_SYSTEM = "FileSystemConsistent"
    APPLICATION = "ApplicationConsistent"


class SegmentRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A segment as a manifest or a span names it."""

    disk: DiskId
    id: SegmentId
    epoch: int
    stored_bytes: int  # the object's size
    data_bytes: int  # guest bytes it describes, zeros included
    hash: str  # blake3 of the whole object, 64 hexadecimal digits
    merged: str | None = None  # the span whose merge wrote it; None: it came from the source
    key_id: KeyId | None = None  # the data key it is sealed with; None: the disk's first, as its point says

    def sealed_by(self, state: DiskState) -> KeyId:
        """The data key to open it with. state: the disk at a point that names it."""
        return self.key_id if self.key_id is not None else state.key_id


class DiskState(msgspec.Struct, frozen=True, kw_only=True):
    """One disk at a point."""

    id: DiskId
    size_bytes: int
    key_id: KeyId  # the first data key of the disk: what is derived from it never changes
    # Position-bound multiset hash of the disk's content, 32 hexadecimal digits; None: not known yet.
    fingerprint: str | None = None


class PointProposal(msgspec.Struct, frozen=True, kw_only=True):
    """What a source asks to have committed: all that a manifest holds but its place in the chain."""

    machine: MachineId
    machine_name: str
    epoch: int
    nonce: str  # 32 hexadecimal digits, random: a proposal sent twice is committed once
    checkpoint: str  # the source's own name of the instant, kept until the point is committed
    parent_checkpoint: str | None  # the instant the changes are counted from; None: a first copy
    asked_at: str  # RFC 3339 UTC, when the instant was asked for
    given_at: str  # and when it was given
    consistency: Consistency
    disks: tuple[DiskState, ...]
    segments: tuple[SegmentRef, ...]  # in writing order: later ones win
    definition: bytes  # a sealed `Definition`, see journal.manifest
    changed_bytes: int = 0  # as the source's tracking counted, before hashing dropped anything
    frozen_seconds: float | None = None
    # What was written, for the detector; unset in records of before (and not written there: same bytes).
    signals: Signals | msgspec.UnsetType = msgspec.UNSET
    # A first copy sends no holes, so nothing may lie beneath it; asked when it is committed, never recorded.
    # A text: likewise, but it was sent over the adopted copy of this id, which the target puts beneath it.
    # Who knows of no adopted copies cannot parse that, and so never takes what was sent for the whole.
    fresh: bool | str | msgspec.UnsetType = msgspec.UNSET


class Point(PointProposal, frozen=True, kw_only=True):
    """A committed recovery point."""

    number: int
    previous_hash: str  # blake3 of the record with the number before; 64 zeros for number 1
    committed_at: str

    @property
    def sent_bytes(self) -> int:
        """Stored bytes of its segments."""
        return sum(segment.stored_bytes for segment in self.segments)

    @property
    def measured(self) -> Signals | None:
        """Its signals, if its source measured them."""
        return None if isinstance(self.signals, msgspec.UnsetType) else self.signals


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """An epoch claim: from its number on, only points of its epoch count.

    An epoch is one more than the one before. Where a machine has gone to and fro between stores, the first
    claim of a store leaps over the epochs that were the other's: over all stores, a machine's never go back.
    """

    machine: MachineId
    machine_name: str
    number: int
    previous_hash: str
    epoch: int
    claimant: str  # who writes from now on, e.g. a gateway's name
    reason: str  # first copy, resync, failover, reversal, roll-back
    nonce: str
    claimed_at: str
    # the epoch in force before, where epochs between the two were another store's; left out: one less
    former: int | msgspec.UnsetType = msgspec.UNSET
    # of a reversal, and of one taken back: the highest epoch then known in which somebody had the machine, of
    # which those of reversals taken back are none; left out: `known_epoch` tells it
    known: int | msgspec.UnsetType = msgspec.UNSET


def known_epoch(claim: Claim) -> int:
    """Up to which epoch a claim knows whose the machine is: who took it over in a later one came later.

    Its own epoch, for who claims for itself. A reversal is made for another, above all that was known, and
    again and again where it is taken back: its epoch grows though nobody took the machine over meanwhile.
    """
    if not isinstance(claim.known, msgspec.UnsetType):
        return claim.known
    return claim.epoch - (claim.reason == REVERSE)


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for the changes of all points from `first` to `last` once only `last` is kept."""

    machine: MachineId
    id: str  # `journal.names.span_id`
    first: int  # the number after the point listed before
    last: int  # the point that stays
    segments: tuple[SegmentRef, ...]  # in writing order: later ones win
    points: int  # how many points it was made of, `last` included
    # stored bytes of those points as they came from the source, for what a policy costs; 0: not known
    arrived_bytes: int = 0
    made_at: str


Record = Point | Claim
ZERO_HASH = "0" * 64
