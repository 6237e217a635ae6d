"""Segments that wait to leave, and which of them is next: some machines have a bandwidth of their own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secondsite.model.ids import MachineId
from secondsite.model.points import SegmentRef
from secondsite.transfer.bandwidth import MachineLimits, NoLimits

if TYPE_CHECKING:
    from secondsite.transfer.sender import _Shipment

# How often what waits for its machine's own limit is looked at; it may leave that much later.
LOOK_SECONDS = 0.25


@dataclass(eq=False)
class Item:
    """One segment that the target does not have yet."""

    shipment: _Shipment
    order: int
    ref: SegmentRef
    data: bytes | bytearray | memoryview | None  # None: it is in the cache
    busy: bool = False  # a worker is sending it
    mismatches: int = 0
    tries: int = 0
    failures_before: int = 0  # of the link when a worker took it


@dataclass
class Totals:
    """Figures of a shipper, changed under its lock."""

    memory_bytes: int = 0
    queued_bytes: int = 0
    sent_bytes: int = 0
    failures: int = 0  # of the link in a row; 0: the last try worked
    slow: bool = False  # the link was too slow lately to wait for
    queue: deque[Item] = field(
        default_factory=deque
    )  # bounded: memory by memory_bytes, the rest by the cache


class Turns:
    """Of the workers of one shipper, whose lock guards every call.

    A machine whose own limit is used up waits without a worker, and of all workers one is left to machines
    that have no limit: they would wait behind the others else.
    """

    def __init__(self, limits: MachineLimits | None, connections: int) -> None:
        self._limits = limits or NoLimits()
        self._limited_max = max(1, connections - 1)
        self._limited: set[Item] = set()  # under way for machines that have a limit

    def next(self, queue: deque[Item]) -> Item | None:
        """Take out the first that may leave now; None: none may."""
        full = len(self._limited) >= self._limited_max
        must_wait: dict[MachineId, bool] = {}
        for number, item in enumerate(queue):
            machine = item.shipment.machine
            if machine not in must_wait:
                limit = self._limits.of(machine)
                must_wait[machine] = limit is not None and (full or limit.seconds_left() > 0)
            if not must_wait[machine]:
                del queue[number]
                return item
        return None

    def begin(self, item: Item) -> None:
        """A worker sends it."""
        item.busy = True
        if self._limits.of(item.shipment.machine) is not None:
            self._limited.add(item)

    def end(self, item: Item) -> None:
        """Its worker, if it had one, is free."""
        item.busy = False
        self._limited.discard(item)
