"""At the source: what the target lost of its newest point, or holds wrong, and is sent with the next cycle.

The target says what it lacks in every answer that names its newest point (`protocols.Repair`). The ranges are
read again at the next instant and sent whole: the sub-block table says what the target was given, not what it
still has (rule 1). While they are on their way the target goes on asking, which is not listened to. What a
verification found to differ (`deepverify`) is sent in the same way, and forgotten once that is a point.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from secondsite.base.units import GIB, SUB_BLOCK_BYTES, format_bytes
from secondsite.model.events import EventSink, Severity
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.transfer.protocols import REPAIR_VERSION, CommittedPoint

Ranges = Mapping[DiskId, Extents]

# Of what differs: what one capture reads in a second or two. The rest follows with the next.
DIFFERING_BYTES_MAX = 1 * GIB


class Mending:
    """Of one machine. Thread-safe: the capturing thread takes, the committing one learns."""

    def __init__(self, machine: MachineId, name: str, events: EventSink) -> None:
        self._machine, self._name, self._events = machine, name, events
        self._lock = threading.Lock()
        self._wanted: dict[DiskId, Extents] = {}
        self._differing: dict[DiskId, Extents] = {}
        self._sent: Ranges = {}  # of these, with the instant below
        self._sent_with = ""  # the checkpoint of the instant that carries them

    def asked(self, point: CommittedPoint | None) -> None:
        """The target's head, with nothing of ours on its way."""
        with self._lock:
            self._sent_with = ""
            self._take(point)

    def committed(self, point: CommittedPoint) -> None:
        """The answer to a commit."""
        with self._lock:
            if self._sent_with and point.checkpoint != self._sent_with:
                return  # it was captured before what is on its way
            if self._sent_with:
                for disk, where in self._sent.items():
                    self._differing[disk] = self._differing[disk].subtract(where)
            self._sent_with = ""
            self._take(point)

    def given_up(self) -> None:
        """What is on its way will not be committed."""
        with self._lock:
            self._sent_with = ""

    def next(self) -> Ranges:
        """What the cycle that begins now is to send again."""
        with self._lock:
            if self._sent_with:
                return {}
            asked = dict(self._wanted)
            for disk, where in self._bounded().items():
                asked[disk] = asked[disk].union(where) if disk in asked else where
            return asked

    def found(self, disk: DiskId, where: Extents) -> None:
        """A verification says that the target holds other bytes there than the source."""
        with self._lock:
            known = self._differing.get(disk)
            self._differing[disk] = known.union(where) if known is not None else where

    def differing(self) -> dict[DiskId, Extents]:
        """What was found to differ and is no point yet."""
        with self._lock:
            return {disk: where for disk, where in self._differing.items() if len(where)}

    def _bounded(self) -> dict[DiskId, Extents]:
        left, part = DIFFERING_BYTES_MAX, {}
        for disk, where in self._differing.items():
            if left > 0 and len(where):
                part[disk], _ = where.take(left)
                left -= part[disk].total_bytes
        return part

    def captured(self, checkpoint: str, ranges: Ranges) -> None:
        """The cycle is sealed and carries them."""
        if not ranges:
            return
        with self._lock:
            self._sent_with = checkpoint
            self._sent = {d: where for d, where in ranges.items() if d in self._differing}
            why = " and ".join(
                ["the target lost them"] * bool(self._wanted)
                + ["a verification found other bytes at the target"] * bool(self._sent)
            )
        count = sum(where.total_bytes for where in ranges.values())
        text = f"{format_bytes(count)} of {self._name} are sent again: {why}"
        self._events.emit("repair.sent", Severity.WARNING, text, machine=self._machine, bytes=count)

    def _take(self, point: CommittedPoint | None) -> None:
        repair = point.repair if point is not None else None
        self._wanted = {}
        if repair is None or repair.version > REPAIR_VERSION:
            return  # a newer target may mean something else by it: it asks for what we can read, or waits
        for disk, numbers in repair.ranges.items():
            where = Extents.of(zip(numbers[::2], numbers[1::2], strict=False))
            if len(where):
                self._wanted[disk] = where


def of_disk(ranges: Ranges, disk: DiskId, size_bytes: int) -> Extents:
    """Of one disk as it is now, in whole sub-blocks."""
    where = ranges.get(disk)
    return where.align(SUB_BLOCK_BYTES, size_bytes).clip(0, size_bytes) if where else Extents.empty()
