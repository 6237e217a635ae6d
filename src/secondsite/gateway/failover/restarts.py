"""Machines that were taken over and ended without being shut down: started again, after their export.

Until a failover is committed its machine stands on an export of ours, so nothing but this gateway may start
it: it never starts with its host. When the host restarted, or its process died, the exports are served first
and then the machine is started, and it is told that its file systems are as after a power cut. One that was
shut down, by its guest or by a person, stays off: what somebody wanted is not undone.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Ended, Fabric, Recovered
from secondsite.gateway.failover.record import FailoverRecord, FailoverRecords
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import FailoverState
from secondsite.model.machines import PowerState
from secondsite.model.points import Claim

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# Whether another site took the machine over since: a listing of the journal's state, and one record.
CLAIM_SECONDS = 30.0
# A start that failed is tried again so much later.
RETRY_SECONDS = 10.0
# A machine whose process dies that often in an hour is not helped by starting it: a person has to look.
STARTS_MAX, STARTS_SECONDS = 5, 3600.0

_ON_EXPORT = (FailoverState.COMPLETED, FailoverState.COMMITTING)


class FailoverRestarts:
    """Of one gateway. `look` by one thread a failover, and never while something else changes its machine."""

    def __init__(
        self,
        records: FailoverRecords,
        served: Callable[[str], bool],
        superseded: Callable[[FailoverStatus], Claim | None],
        clock: Clock,
        events: EventSink,
    ) -> None:
        """served: whether an export is there now, by its identity.

        superseded: the claim of a later failover of the machine, from the store. Raises what that raises.
        """
        self._records = records
        self._served = served
        self._superseded = superseded
        self._clock = clock
        self._events = events
        self._next: dict[str, float] = {}  # when to look again
        self._next_claim: dict[str, float] = {}  # and whether the machine is still ours
        self._starts: dict[str, deque[float]] = {}
        self._told: dict[str, str] = {}

    def look(self, identity: str, fabric: Fabric | None) -> None:
        """Start it again if it has to run and was lost. Cheap, and at most once a second."""
        record = self._records.get(identity)
        if fabric is None or record.recovered is None or record.status.state not in _ON_EXPORT:
            return
        now = self._clock.monotonic()
        if now < self._next.get(identity, 0.0):
            return
        self._next[identity] = now + LOOK_SECONDS
        if self._taken(record, fabric):
            return
        try:
            life = fabric.life_of(record.recovered)
        except SecondsiteError as error:
            log.info("%s cannot be looked at: %s", record.status.name, error)
            return
        if life.power is not PowerState.OFF:
            if record.status.off_at is not None:
                self._records.tell(identity, off_at=None)
        elif record.status.off_at is None:
            if life.ended is Ended.LOST:
                self._start(record, record.recovered, fabric)
            else:
                self._records.tell(identity, off_at=self._clock.utc().isoformat())
                text = f"{record.status.name} is off, shut down by its guest or a person; it is left so"
                self._tell("failover.off", Severity.WARNING, text, record)

    def _taken(self, record: FailoverRecord, fabric: Fabric) -> bool:
        """Whether another site took the machine over from this one; what runs here is isolated then."""
        status, now = record.status, self._clock.monotonic()
        if now < self._next_claim.get(status.id, 0.0):
            return status.superseded_by is not None
        self._next_claim[status.id] = now + CLAIM_SECONDS
        try:
            claim = self._superseded(status)
        except SecondsiteError as error:
            log.info("whose %s is cannot be asked now: %s", status.name, error)
            return status.superseded_by is not None
        if claim is None:
            return False
        why = f"{claim.claimant} took it over from this site in epoch {claim.epoch} ({claim.claimed_at})"
        with contextlib.suppress(SecondsiteError):  # again with the next look
            fabric.isolate(status.machine, why=why, autostart=True)
        if status.superseded_by is None:
            self._records.tell(status.id, superseded_by=claim.claimant)
            text = f"{status.name} is isolated: {why}. Roll this failover back to remove it here."
            self._tell("failover.superseded", Severity.CRITICAL, text, record)
        return True

    def _start(self, record: FailoverRecord, recovered: Recovered, fabric: Fabric) -> None:
        status, now = record.status, self._clock.monotonic()
        starts = self._starts.setdefault(status.id, deque(maxlen=STARTS_MAX))
        if len(starts) == STARTS_MAX and now - starts[0] < STARTS_SECONDS:
            why = f"it ended {STARTS_MAX} times within an hour; change its point, roll back, or see to it"
            self._trouble(record, why)
            return
        if not self._served(record.export):
            self._trouble(record, f"the export of point {status.point} is not served yet")
            return
        try:
            whole = fabric.run_recovered(recovered)
        except SecondsiteError as error:
            self._next[status.id] = now + RETRY_SECONDS
            self._trouble(record, str(error))
            return
        if not whole:
            self._next[status.id] = now + RETRY_SECONDS
            self._trouble(record, "its files are not whole")
            return
        starts.append(now)
        self._told.pop(status.id, None)
        at = self._clock.utc().isoformat()
        self._records.tell(status.id, restarted_at=at, restarts=status.restarts + 1)
        text = (
            f"{status.name} had ended without being shut down (its host restarted, or its process died) and "
            "was started again on its own disks: its file systems are as after a power cut"
        )
        self._tell("failover.restarted", Severity.WARNING, text, record)

    def _trouble(self, record: FailoverRecord, why: str) -> None:
        if self._told.get(record.status.id) == why:
            return
        self._told[record.status.id] = why
        text = f"{record.status.name} ended without being shut down and could not be started again: {why}"
        self._tell("failover.not-restarted", Severity.CRITICAL, text, record)

    def _tell(self, code: str, severity: Severity, text: str, record: FailoverRecord) -> None:
        self._events.emit(code, severity, text, machine=record.status.machine, operation=record.status.id)
