"""What a source's cycle calls to get one instant to the target: `Shipper` and its `Shipment`s.

The implementation is `sender.LinkShipper` (cache volume, connections, retries). The order of a cycle:

    shipment = shipper.begin(machine, epoch)
    shipment.add(ref, data)            # for each sealed segment, from any thread; bytes leave at once
    shipment.seal(proposal)            # the instant is complete and survives a restart of this gateway
    point = shipment.commit(cancel)    # waits until the target holds everything, then commits
    # now, and only now, the older checkpoint may be forgotten

Segments stay in memory while the link keeps up and go to the cache volume when it does not, and at `seal`
at the latest; a segment the target acknowledged as durable no longer needs its bytes here. What is lost with
the cache volume is captured again from the last committed checkpoint: nothing is forgotten before a commit.
"""

from __future__ import annotations

import threading
from typing import Protocol

from secondsite.model.ids import MachineId
from secondsite.model.points import PointProposal, SegmentRef
from secondsite.transfer.protocols import CommittedPoint


class Shipment(Protocol):
    """The segments of one instant of one machine on their way."""

    @property
    def machine(self) -> MachineId:
        """Whose."""

    @property
    def epoch(self) -> int:
        """The epoch its segments belong to."""

    @property
    def number(self) -> int:
        """Grows with each `begin`; shipments of a machine are committed in this order."""

    @property
    def proposal(self) -> PointProposal | None:
        """What was sealed; None while the shipment is open."""

    @property
    def refs(self) -> tuple[SegmentRef, ...]:
        """The segments added, in the order of adding; after a restart those that are not lost."""

    @property
    def note(self) -> bytes:
        """What `set_note` kept last; empty at first. A first copy keeps its slices here."""

    def set_note(self, note: bytes, *, wait: bool = False, cancel: threading.Event | None = None) -> None:
        """Keep a few bytes (at most 64 KiB) durable with the shipment, together with `refs` so far.

        Returns once every segment added so far is at the target or in the cache, so that a note that says
        "slice 7 is done" is true after a restart. `wait` and `cancel` as in `add`.
        """

    def add(
        self,
        ref: SegmentRef,
        data: bytes | bytearray | memoryview,
        *,
        wait: bool = False,
        cancel: threading.Event | None = None,
    ) -> None:
        """Hand over one sealed segment; `data` must not change afterwards. Thread-safe.

        `wait=False`: raises CacheFull when neither memory nor cache has room (pause capture then).
        `wait=True`: blocks until there is room (a first copy's slices). Raises TransferCancelled when
        `cancel` is set, and the target's refusal when a segment was refused for good.
        """

    def seal(
        self, proposal: PointProposal, *, wait: bool = False, cancel: threading.Event | None = None
    ) -> None:
        """No more segments; everything not acknowledged yet is on the cache volume when this returns.

        `wait` and `cancel` as in `add`.
        """

    def commit(self, cancel: threading.Event | None = None) -> CommittedPoint:
        """Wait until all is at the target, commit, and remove the shipment from the cache.

        Retries what can be retried for as long as it takes (`cancel` ends it). Raises what cannot be retried,
        e.g. code ``chain.epoch-superseded``; the shipment is then still there, to be discarded by the caller.
        Commit an earlier shipment of the same machine first.
        """

    def discard(self) -> None:
        """Drop it: nothing more is sent, its bytes leave the cache."""


class Shipper(Protocol):
    """Ships segments of many machines over one link."""

    def begin(self, machine: MachineId, epoch: int) -> Shipment:
        """Start a shipment. Raises CacheFull at once when the cache is at its limit."""

    def shipments(self, machine: MachineId) -> list[Shipment]:
        """Unfinished ones, oldest first; also those from before a restart."""

    def reopen(self, shipment: Shipment) -> Shipment:
        """Go on with an open shipment from its last note, also after an error that ended it.

        Segments added after the note are dropped: whoever keeps a note does again what follows it.
        """

    def has_room(self, size_bytes: int) -> bool:
        """Whether the cache could take so much more; ask before a cycle begins."""

    @property
    def queued_bytes(self) -> int:
        """Bytes added and not acknowledged yet, all machines."""

    @property
    def sent_bytes(self) -> int:
        """Segment bytes acknowledged since the start, all machines."""

    def close(self) -> None:
        """Stop the workers; sealed shipments stay in the cache."""
