"""Test failovers that stand for long: told once each, with what they cost and how they end.

A test machine holds its point and all that its view reads, so nothing of that is merged or promoted, and its
layer grows with what it writes. Nobody removes it but a person: it may be the proof somebody waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from secondsite.base.clock import Clock
from secondsite.gateway.messages.testfailover import TestFailoverStatus
from secondsite.gateway.recovery.testfailover import STANDING, TestFailoverRecords
from secondsite.model.events import EventSink, Severity

OLD_DAYS = 14
# The records are read for it: an hour more or less is nothing to two weeks.
LOOK_SECONDS = 3600.0
OLD = "test-failover.old"


class OldTests:
    """Of one gateway; `look` is called every few seconds."""

    def __init__(
        self,
        records: TestFailoverRecords,
        note: Callable[[str, str], object],
        clock: Clock,
        events: EventSink,
    ) -> None:
        """note: keep, for the id of one, that it was told, and when."""
        self._records = records
        self._note = note
        self._clock = clock
        self._events = events
        self._due = clock.monotonic()

    def look(self) -> None:
        """Tell of those that are old; at most once in LOOK_SECONDS. Raises OSError."""
        if self._clock.monotonic() < self._due:
            return
        self._due = self._clock.monotonic() + LOOK_SECONDS
        for record in self._records.all():
            if self._is_old(record.status):
                self._tell(record.status)

    def _is_old(self, status: TestFailoverStatus) -> bool:
        if status.state not in STANDING or status.told_old_at is not None:
            return False
        return self._clock.utc() - datetime.fromisoformat(status.requested_at) > timedelta(days=OLD_DAYS)

    def _tell(self, status: TestFailoverStatus) -> None:
        by = f" by {status.requested_by}" if status.requested_by else ""
        name = status.machine_name
        text = (
            f"the test failover {status.name} of {name}, begun{by} on {status.requested_at[:10]}, stands for "
            f"more than two weeks: point {status.point} and what it reads are kept for it, and its writes "
            f"take up room. Remove it: `secondsite item clean-up VAULT {name} --notes TEXT`, or at this "
            f"gateway `secondsite test-failover clean-up {name} --notes TEXT`"
        )
        self._events.emit(OLD, Severity.WARNING, text, machine=status.machine)
        self._note(status.id, self._clock.utc().isoformat())
