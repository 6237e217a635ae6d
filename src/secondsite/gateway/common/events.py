"""The gateway's recent events: numbered, in memory, on disk for its server, and in the process's log."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secondsite.base.clock import Clock
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.model.events import Event, Severity

log = logging.getLogger("secondsite.events")

# A machine in trouble tells each kind of trouble once; thousands are weeks of a bad link.
EVENTS_MAX = 5000

_LEVELS = {
    Severity.INFORMATION: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


@dataclass(frozen=True)
class EventFigures:
    """Counts since the gateway began. untold: of this run, what its server does not have; None: no server."""

    by_severity: Mapping[Severity, int]
    untold: int | None


class EventLog:
    """An `EventSink` that can be read from a number on. Thread-safe; never blocks or fails its caller."""

    def __init__(
        self, clock: Clock, *, events_max: int = EVENTS_MAX, files: EventFiles | None = None
    ) -> None:
        """files: where they outlive this process, for a gateway that has a server."""
        self._clock = clock
        self._files = files
        self._lock = threading.Lock()
        self._number = 0
        self._counts = dict.fromkeys(Severity, 0)
        self._told: int | None = 0 if files is not None else None
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
            self._counts[severity] += 1
            self._events.append((self._number, event))
            if self._files is not None:  # inside the lock: lines in the order of their numbers
                self._files.append(self._number, event)
            number = self._number
        fields = {"event": number, "code": code, **({"machine": machine} if machine else {})}
        log.log(_LEVELS[severity], "%s: %s", code, text, extra={"fields": fields})

    def told(self, number: int) -> None:
        """The server has this run's events up to a number."""
        with self._lock:
            self._told = number

    def figures(self) -> EventFigures:
        """What metrics say."""
        with self._lock:
            untold = None if self._told is None else max(0, self._number - self._told)
            return EventFigures(dict(self._counts), untold)

    def since(self, number: int, limit: int) -> Sequence[tuple[int, Event]]:
        """Events with a number above `number`, oldest first, at most `limit`."""
        with self._lock:
            found = [entry for entry in self._events if entry[0] > number]
        return found[:limit]
