"""The gateway's recent events: numbered, in memory, and in the process's log."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from secondsite.base.clock import Clock
from secondsite.model.events import Event, Severity

log = logging.getLogger("secondsite.events")

# A machine in trouble tells each kind of trouble once; thousands are weeks of a bad link.
EVENTS_MAX = 5000

_LEVELS = {
    Severity.INFORMATION: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


class EventLog:
    """An `EventSink` that can be read from a number on. Thread-safe; never blocks or fails its caller."""

    def __init__(self, clock: Clock, *, events_max: int = EVENTS_MAX) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._events: deque[tuple[int, Event]] = deque(maxlen=events_max)

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        """See `EventSink`."""
        at = self._clock.utc().isoformat(timespec="milliseconds")
        event = Event(at=at, code=code, severity=severity, text=text, machine=machine, data=data)
        with self._lock:
            self._number += 1
            self._events.append((self._number, event))
        log.log(_LEVELS[severity], "%s: %s", code, text)

    def since(self, number: int, limit: int) -> Sequence[tuple[int, Event]]:
        """Events with a number above `number`, oldest first, at most `limit`."""
        with self._lock:
            found = [entry for entry in self._events if entry[0] > number]
        return found[:limit]
