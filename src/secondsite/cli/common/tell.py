"""Events of a command that does a gateway's work itself: what matters goes to standard error."""

from __future__ import annotations

import sys

from secondsite.base.clock import Clock
from secondsite.model.events import Severity


class TellingSink:
    """An `EventSink` for people at a terminal."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,  # noqa: ARG002 - part of the protocol
        **_data: str | int | float,
    ) -> None:
        """Tell warnings and worse."""
        if severity is not Severity.INFORMATION:
            print(f"{severity.value.lower()}: {text} ({code})", file=sys.stderr)
