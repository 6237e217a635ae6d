"""Whether a machine's target can be asked who has it. Where it refuses to answer this gateway, that is said.

A source is held by what it hears of its target. One whose certificate ran out while it was away, or that was
revoked, unregistered or unpaired, hears nothing: its machine runs on, and may run at the other site as well.
Nobody can know that from here, so nothing is isolated by it alone. A line that is cut is no such case: it
comes back by itself, and is told of as lag.
"""

from __future__ import annotations

import threading

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.messages.failovererrors import CannotAsk
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.transfer.errors import CertificateRefused, PeerNotAllowed
from secondsite.transfer.protocols import error_code

# A target that was just paired, or started, does not know everybody yet.
NOT_ALLOWED_SECONDS = 60.0


class Asking:
    """Of one gateway, by machine. Thread-safe; nothing of it is kept: the next start asks anew."""

    def __init__(self, clock: Clock, events: EventSink) -> None:
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._refused_since: dict[MachineId, float] = {}
        self._told: dict[MachineId, str] = {}  # in sentences, of those that cannot be asked for

    def answered(self, machine: MachineId, name: str) -> None:
        """Its target did."""
        with self._lock:
            self._refused_since.pop(machine, None)
            told = self._told.pop(machine, "")
        if told:
            text = f"Whether {name} was taken over elsewhere is known again: its target answers."
            self._events.emit(
                "held.asked-again", Severity.INFORMATION, text, machine=machine, ends=CannotAsk.code
            )

    def refused(self, machine: MachineId, name: str, error: SecondsiteError) -> None:
        """Its target was asked, and this came of it."""
        code, now = error_code(error), self._clock.monotonic()
        if code not in (CertificateRefused.code, PeerNotAllowed.code):
            return  # as before: who refused us is away, or the line is cut now
        with self._lock:
            since = self._refused_since.setdefault(machine, now)
            if code == PeerNotAllowed.code and now - since < NOT_ALLOWED_SECONDS:
                return
            trouble = CannotAsk(machine=name, why=str(error).rstrip("."))
            first = machine not in self._told
            self._told[machine] = text = " ".join(trouble.sentences())
        if first:
            self._events.emit(trouble.code, Severity.CRITICAL, text, machine=machine, lasts=1)

    def why_not(self, machine: MachineId) -> str:
        """Why it cannot be asked whether it was taken over, in sentences; empty: nothing is in the way."""
        with self._lock:
            return self._told.get(machine, "")
