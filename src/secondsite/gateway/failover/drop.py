"""After a commit: the machine's recovery points at this site are deleted, once nobody needs them (115).

    the machine is plain -> nobody has a pin -> hidden in the sealed state -> objects -> images -> told

It follows the commit and does not hold it up: what a test failover, an export or a person's hold needs stays
until they let go, and the reason shows with the failover. A gateway that ends anywhere goes on with the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.failover.record import FailoverRecord, FailoverRecords
from secondsite.gateway.target.bases import remove_images
from secondsite.journal.chain import Journal
from secondsite.journal.drop import bases_removed, delete_dropped, drop_points
from secondsite.journal.state import Dropped
from secondsite.journal.store import StoreLocked
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import DELETED, MOVED, FailoverState
from secondsite.model.ids import MachineId

COMMIT_HIDDEN = mark("failover.commit-hidden")
COMMIT_DELETED = mark("failover.commit-deleted")
COMMIT_TOLD = mark("failover.commit-told")

# Pins and locks end without telling us; a look costs a listing of the state.
LOOK_AGAIN_SECONDS = 60.0


class PointsDeletion:
    """Of one gateway. One thread a failover; `due` and `run` may be called again and again."""

    def __init__(
        self,
        records: FailoverRecords,
        journal: Callable[[MachineId], Journal],
        *,
        us: str,
        base_dir: Path | None,
        clock: Clock,
        events: EventSink,
        stop: threading.Event,
    ) -> None:
        """us: this gateway, as claims name it. base_dir: images below it are ours to remove, no others."""
        self._records = records
        self._journal = journal
        self._us = us
        self._base_dir = base_dir
        self._clock = clock
        self._events = events
        self._stop = stop
        self._tried: dict[str, float] = {}

    def due(self, record: FailoverRecord) -> bool:
        """Whether to try (again) now."""
        status = record.status
        if status.state is not FailoverState.COMMITTED or not status.delete_points:
            return False
        if status.points_deleted_at is not None:
            return False
        tried = self._tried.get(status.id)
        return tried is None or self._clock.monotonic() - tried >= LOOK_AGAIN_SECONDS

    def run(self, identity: str) -> bool:
        """As far as it goes now; True once nothing is left. Never raises what passes."""
        self._tried[identity] = self._clock.monotonic()
        record = self._records.get(identity)
        if not record.status.delete_points or record.status.points_deleted_at is not None:
            return True
        try:
            return self._run(record)
        except SecondsiteError as error:
            self._wait(record, " ".join(error.sentences()))
            return False

    def _run(self, record: FailoverRecord) -> bool:
        status = record.status
        journal = self._journal(status.machine)
        head = journal.head()
        claim = head.claim
        if head.number == 0 or (claim is not None and claim.reason == DELETED):
            return self._done(record, 0, [])  # the whole replica was deleted meanwhile
        if claim is None or claim.reason not in MOVED or claim.claimant != self._us:
            # somebody claimed it since: the points of before are that one's to decide about
            self._wait(record, f"epoch {head.epoch} is in force, which is not this gateway's by a failover")
            return False
        dropped = drop_points(journal, claim, clock=self._clock)
        crash_point(COMMIT_HIDDEN)
        locked: list[StoreLocked] = []
        deleted = delete_dropped(journal, cancel=self._stop, on_locked=locked.append)
        if self._stop.is_set():
            return False
        left = self._remove_images(journal, dropped)
        crash_point(COMMIT_DELETED)
        if locked:
            self._wait(record, f"{len(locked)} objects stay for now: {locked[0]}")
            return False
        return self._done(record, deleted, left)

    def _done(self, record: FailoverRecord, deleted: int, left: list[str]) -> bool:
        status = record.status
        told = f"; images that are not ours stay: {', '.join(left)}" if left else ""
        at = self._clock.utc().isoformat()
        self._records.tell(status.id, points_deleted_at=at, points_wait="")
        crash_point(COMMIT_TOLD)
        text = (
            f"The recovery points of {status.machine_name} at this site are deleted, as its failover was "
            f"committed: {deleted} objects{told}"
        )
        self._tell("failover.points-deleted", Severity.WARNING, text, record)
        return True

    def _remove_images(self, journal: Journal, dropped: Dropped) -> list[str]:
        """Returns those that are not ours to remove."""
        known = [Path(base.locator) for base in dropped.bases]
        left = remove_images(self._base_dir, journal.machine, known, alone=not journal.state().bases)
        bases_removed(journal, lambda _: True)
        return [str(path) for path in left]

    def _wait(self, record: FailoverRecord, why: str) -> None:
        if self._records.get(record.status.id).status.points_wait == why:
            return
        self._records.tell(record.status.id, points_wait=why)
        name = record.status.machine_name
        text = f"The recovery points of {name} are still there, and are deleted later: {why}"
        self._tell("failover.points-wait", Severity.INFORMATION, text, record)

    def _tell(self, code: str, severity: Severity, text: str, record: FailoverRecord) -> None:
        self._events.emit(code, severity, text, machine=record.status.machine, operation=record.status.id)
