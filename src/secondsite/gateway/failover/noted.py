"""What ended the steps of a failover, noted with it: also where that could not be written at first.

A full disk, or a store that is away, may end the steps and keep their end from being written as well. It is
told at once and noted as soon as that goes. One that ended before its claim was noted is over only if the
store, which decides that, has no claim of it.
"""

from __future__ import annotations

import logging
import threading

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.workthreads import named
from secondsite.gateway.failover.record import FailoverRecord, FailoverRecords
from secondsite.gateway.failover.run import FailoverRunner, told
from secondsite.gateway.messages.failovererrors import FailoverDefect
from secondsite.model.events import Severity
from secondsite.model.failover import FailoverEvent, FailoverState

log = logging.getLogger(__name__)

# Room and stores come back without telling us; a look costs a listing of the journal's state.
AGAIN_SECONDS = 5.0


class EndsNoted:
    """Of one gateway. Thread-safe; one thread a failover."""

    def __init__(self, records: FailoverRecords, runner: FailoverRunner, clock: Clock) -> None:
        self._records = records
        self._runner = runner
        self._clock = clock
        self._lock = threading.Lock()
        self._owed: dict[str, tuple[SecondsiteError, float]] = {}  # what ended it, and when to note it

    def failed(self, identity: str, caught: Exception) -> None:
        """Tell what ended its steps, and note it. Never raises."""
        status = self._records.get(identity).status
        error = named(caught, status.machine_name, FailoverDefect)
        text = f"The failover of {status.machine_name} could not go on: {' '.join(error.sentences())}"
        self._runner.emit("failover.failed", Severity.CRITICAL, text, status)
        with self._lock:
            self._owed[identity] = (error, 0.0)
        self.note(identity)

    def due(self, identity: str) -> bool:
        """Whether to try (again) now to note what ended it."""
        with self._lock:
            found = self._owed.get(identity)
        return found is not None and self._clock.monotonic() >= found[1]

    def note(self, identity: str) -> None:
        """As far as it goes now. Never raises."""
        with self._lock:
            error, _ = self._owed[identity]
        try:
            self._note(self._records.get(identity), error)
        except (SecondsiteError, OSError) as trouble:
            log.warning("what ended failover %s is noted later: %s", identity, trouble)
            with self._lock:
                self._owed[identity] = (error, self._clock.monotonic() + AGAIN_SECONDS)
            return
        with self._lock:
            self._owed.pop(identity, None)

    def _note(self, record: FailoverRecord, error: SecondsiteError) -> None:
        """Before the claim it is over; after it, it waits to be asked again, or for another decision."""
        status = record.status
        if status.state is not FailoverState.INITIATED:
            self._records.tell(status.id, error=told(error))
        elif (claim := self._runner.claim_in_force(status)) is not None:
            self._runner.note_claim(status.id, claim, error=told(error))
        else:
            self._runner.let_go(record)
            self._records.move(status.id, FailoverEvent.REFUSED, error=told(error))
