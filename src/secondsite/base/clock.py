"""Time as an argument: monotonic for intervals and deadlines, UTC for people only."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What code that waits or measures is given."""

    def monotonic(self) -> float:
        """Seconds that only grow; compare only with others of the same clock."""

    def utc(self) -> datetime:
        """The time of day, timezone-aware UTC, for labels and people."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until `event` is set or `seconds` have passed; True when it is set."""

    def wait_on(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until `condition`, which the caller holds, is notified or `seconds` have passed, or less."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def utc(self) -> datetime:
        """Now, timezone-aware."""
        return datetime.now(UTC)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """`threading.Event.wait`."""
        return event.wait(max(0.0, seconds))

    def wait_on(self, condition: threading.Condition, seconds: float) -> None:
        """`threading.Condition.wait`."""
        condition.wait(max(0.0, seconds))


class FakeClock:
    """A clock a test moves by hand; `wait` advances it instead of sleeping."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        with self._lock:
            return self._elapsed

    def utc(self) -> datetime:
        """The start plus what was advanced."""
        return self._start + timedelta(seconds=self.monotonic())

    def advance(self, seconds: float) -> None:
        """Move time forward."""
        assert seconds >= 0
        with self._lock:
            self._elapsed += seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Advance by `seconds` unless `event` is set already."""
        if not event.is_set():
            self.advance(max(0.0, seconds))
        return event.is_set()

    def wait_on(self, condition: threading.Condition, seconds: float) -> None:
        """Advance by `seconds`; whoever wants to notify gets the condition's lock meanwhile."""
        condition.wait(0)
        self.advance(max(0.0, seconds))
