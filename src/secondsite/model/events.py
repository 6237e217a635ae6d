"""Events: nothing is silent. Each has a stable code, a severity and a sentence with its reason."""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

# In an event's data: something is wrong until another event ends it; the code of the event this one ends.
LASTS = "lasts"
ENDS = "ends"


class Severity(enum.Enum):
    """How much it matters to a person."""

    INFORMATION = "Information"
    WARNING = "Warning"
    CRITICAL = "Critical"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""

    at: str  # RFC 3339 UTC
    code: str  # e.g. "capture.table-void"
    severity: Severity
    text: str  # what happened and why, one sentence
    machine: str | None = None
    data: dict[str, str | int | float] = {}


class EventSink(Protocol):
    """Where events go; must not block or fail the caller."""

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        """Record one event now."""
