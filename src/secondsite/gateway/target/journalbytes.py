"""What the segments of a machine's journal take in the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.journal.chain import Journal
from secondsite.model.ids import MachineId
from secondsite.model.points import Point

# A journal of a day has 17,280 points: whoever asks more often is told what was counted then.
COUNTED_SECONDS = 60.0


def segment_bytes(points: Sequence[Point]) -> int:
    """Of all segments that points name, each counted once."""
    return sum({(one.disk, one.id): one.stored_bytes for point in points for one in point.segments}.values())


class JournalBytes:
    """Counts journals for Prometheus, each at most once a minute. Thread-safe."""

    def __init__(self, journal: Callable[[MachineId], Journal], clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: dict[MachineId, tuple[float, int]] = {}  # bounded: `of` forgets who was not asked for

    def of(self, machines: Sequence[MachineId]) -> dict[MachineId, int]:
        """Of each machine whose journal can be read; what the bases hold is not in it."""
        with self._lock:
            now = self._clock.monotonic()
            before, self._counted = self._counted, {}
            for machine in machines:
                known = before.get(machine)
                if known is None or now - known[0] >= COUNTED_SECONDS:
                    counted = self._count(machine)
                    if counted is None:
                        continue
                    known = (now, counted)
                self._counted[machine] = known
            return {machine: counted for machine, (_, counted) in self._counted.items()}

    def _count(self, machine: MachineId) -> int | None:
        try:
            journal = self._journal(machine)
            return segment_bytes(journal.points_after(journal.state().promoted))
        except SecondsiteError:
            return None  # told as `secondsite_replica_damaged`
