"""What is watched of machines that were taken over: their first signs of life, and stops at a lost export.

And whether they are what was asked for, from their start until they are committed (see `verified`).
"""

from __future__ import annotations

import logging

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric, Recovered
from secondsite.gateway.failover import verified
from secondsite.gateway.failover.record import EXPORT, FailoverRecord, FailoverRecords
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.gateway.messages.failovererrors import NotAsAsked, NotRunning
from secondsite.model.differences import RUNNING
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import FailoverState

log = logging.getLogger(__name__)

# How often a guest is resumed after one loss of its export; it takes two or three (see `testrunner`).
RESUMES_MAX = 20
# A guest that shows no life for so long is looked at no more: a person looks at its console.
LIFE_SECONDS_MAX = 1800.0
LOOK_SECONDS = 0.5
# Whoever changes a machine that can still be undone hears of it within this, and again before a commit.
VERIFY_SECONDS = 10.0
_ON_EXPORT = (FailoverState.COMPLETED, FailoverState.COMMITTING)


class FailoverGuests:
    """Of one gateway. Used by one thread, but for `export_restored`, which is its too."""

    def __init__(
        self, records: FailoverRecords, fabric: Fabric | None, clock: Clock, events: EventSink
    ) -> None:
        self._records = records
        self._fabric = fabric
        self._clock = clock
        self._events = events
        self._resumes_left: dict[str, int] = {}
        self._watched_since: dict[tuple[str, str], float] = {}
        self._looked_at = 0.0
        self._verified: dict[tuple[str, str], float] = {}

    def export_restored(self, export: str) -> None:
        """See `recover.GuestWatch`."""
        if export.startswith(EXPORT):
            self._resumes_left[export] = RESUMES_MAX

    def resume_guests(self) -> None:
        """See `recover.GuestWatch`."""
        if self._fabric is None:
            return
        for export, left in list(self._resumes_left.items()):
            record = self._on(export)
            if record is None or record.recovered is None or not left:
                del self._resumes_left[export]
                continue
            try:
                resumed = self._fabric.resume_stopped(record.recovered)
            except SecondsiteError as error:
                del self._resumes_left[export]
                text = f"{record.status.name} stopped and could not be resumed: {error}"
                self._tell("failover.not-resumed", Severity.CRITICAL, text, record)
                continue
            if resumed:
                self._resumes_left[export] = left - 1
                if left == RESUMES_MAX:
                    text = f"{record.status.name} had stopped when its export was lost and runs again."
                    self._tell("failover.resumed", Severity.WARNING, text, record)
        self._look_for_life(self._fabric)

    def _on(self, export: str) -> FailoverRecord | None:
        for record in self._records.all():
            if record.export == export and record.status.state in _ON_EXPORT:
                return record
        return None

    def _look_for_life(self, fabric: Fabric) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        for record in self._records.all():
            status = record.status
            if status.state not in _ON_EXPORT or record.recovered is None:
                continue
            self._verify_due(record, now)
            if status.userspace_at is not None:
                continue
            since = self._watched_since.setdefault((status.id, status.booted_at or ""), now)
            if now - since < LIFE_SECONDS_MAX:
                self._look_at(fabric, record, record.recovered)

    # whether it is what was asked for

    def _verify_due(self, record: FailoverRecord, now: float) -> None:
        status = record.status
        if status.state is not FailoverState.COMPLETED or status.superseded_by is not None:
            return
        key = (status.id, status.booted_at or "")
        if now - self._verified.get(key, -VERIFY_SECONDS) >= VERIFY_SECONDS:
            self._verified[key] = now
            try:
                self.verify(record)
            except SecondsiteError as error:
                log.info("%s cannot be compared with what was asked for: %s", status.name, error)

    def verify(self, record: FailoverRecord) -> FailoverStatus:
        """Compare it with what was asked for, and tell what differs, once. Raises what the fabric raises."""
        assert self._fabric is not None, "refused without a fabric before a record was made"
        assert record.recovered is not None, "a completed one has its machine"
        status, shape = record.status, self._fabric.shape_of(record.recovered)
        found = verified.verify(record.asked, shape, self._fabric.life_of(record.recovered).power)
        if found == status.verified:
            return status
        told = self._records.tell_of(status, verified=found, verified_at=self._clock.utc().isoformat())
        if (differs := told.status.differs) and differs != status.differs:
            text = f"{status.name} is not what was asked for: {differs}."
            self._tell("failover.differs", Severity.WARNING, text, told)
        return told.status

    def require_verified(self, record: FailoverRecord, *, by_itself: bool) -> str:
        """What differs, for whoever commits it; empty where nothing does. Raises NotRunning.

        by_itself: nobody is there to read it, so it is not committed. Raises NotAsAsked.
        """
        status = self.verify(record)
        for check in status.verified:
            if check.name == RUNNING and not check.passed:
                raise NotRunning(machine=status.machine_name, why=check.cause)
        if status.differs and by_itself:
            raise NotAsAsked(machine=status.machine_name, differs=status.differs)
        return status.differs

    def _look_at(self, fabric: Fabric, record: FailoverRecord, recovered: Recovered) -> None:
        try:
            life = fabric.life_of(recovered)
        except SecondsiteError as error:
            log.info("%s cannot be looked at: %s", record.status.name, error)
            return
        at, changes = self._clock.utc().isoformat(), {}
        if life.console and record.status.console_at is None:
            changes["console_at"] = at
        if life.agent:
            changes["userspace_at"] = at
        if changes:
            self._records.tell(record.status.id, **changes)

    def _tell(self, code: str, severity: Severity, text: str, record: FailoverRecord) -> None:
        self._events.emit(code, severity, text, machine=record.status.machine, operation=record.status.id)
