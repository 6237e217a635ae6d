"""What becomes of the replica a machine was taken over from, once that was committed: retired, or final.

Its claim is what holds the former source, and keeps the machine's epochs growing. So a retired replica leaves
that one record, whatever else goes: points, keys, what people were told about them. Completing a migration
puts a claim over it that says the machine stays here for good: its former site reverses nothing then.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.workthreads import WorkThreads
from secondsite.gateway.failover.claim import ATTEMPTS_MAX, keep_writer
from secondsite.gateway.failover.record import FailoverRecords
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.gateway.messages.gateway import ProtectionStatus
from secondsite.gateway.messages.reverse import CompleteMigration, RetireReplica
from secondsite.gateway.messages.reverseerrors import NotMigrated, NotRetired
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import HeadMoved
from secondsite.journal.drop import drop_points
from secondsite.journal.names import log_name, log_prefix, machine_prefix, state_prefix
from secondsite.journal.state import StateBusy
from secondsite.model import confirmations
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import (
    KEPT_TABLE,
    MIGRATED,
    MOVED,
    FailoverState,
    KeptEvent,
    KeptState,
)
from secondsite.model.ids import MachineId
from secondsite.model.points import Claim
from secondsite.model.reversals import migrated, retired

MIGRATION_CLAIMED = mark("kept.migration-claimed")
RETIRE_ASKED = mark("kept.retire-asked")
RETIRE_DELETED = mark("kept.retire-deleted")
RETIRE_TOLD = mark("kept.retire-told")

POLL_SECONDS = 0.5


class Kept:
    """Of one gateway with a store. Thread-safe; `resume` once, `close` at the end."""

    def __init__(
        self,
        *,
        us: str,
        records: FailoverRecords,
        journal: Callable[[MachineId], Journal],
        protections: Callable[[], Sequence[ProtectionStatus]],
        forget: Callable[[MachineId], None],
        delete_points: Callable[[str], bool],
        clock: Clock,
        events: EventSink,
    ) -> None:
        """protections: of this gateway, now. forget: whatever is known of a machine's points is of what was.

        delete_points: of a failover by its id, as far as it goes now; True once nothing is left of them.
        """
        self._us = us
        self._records = records
        self._journal = journal
        self._protections = protections
        self._forget = forget
        self._delete_points = delete_points
        self._clock = clock
        self._events = events
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._threads = WorkThreads("retire", self._stopped)

    def resume(self) -> None:
        """Go on with what the gateway before had begun."""
        for record in self._records.all():
            if record.status.kept is KeptState.RETIRING:
                self._begin(record.status.id)

    def close(self) -> None:
        """End our threads; the work goes on with the next gateway."""
        self._stop.set()
        self._threads.wait(seconds_max=10)

    # final

    def complete_migration(self, identity: str, request: CompleteMigration) -> FailoverStatus:
        """Say that the machine stays for good. Raises FailoverUnknown, NotMigrated, ConfirmationMissing."""
        with self._lock:
            status = self._records.get(identity).status
            kept = self._kept(status)
            if kept is KeptState.MIGRATED:
                return status
            why = self._why_not_final(status, kept)
            if why:
                raise NotMigrated(machine=status.name, why=why)
            confirmations.require(
                status.name,
                request.confirm,
                migrated(status.name),
                "Nothing is reversed or fails back from then on; to protect it again is to begin anew.",
            )
            self._claim_for_good(status)
            crash_point(MIGRATION_CLAIMED)
            status = self._move(status, KeptEvent.MIGRATED)
            text = f"The migration of {status.name} is completed: it stays here for good."
            self._tell("failover.migration-completed", status, text)
            return status

    def _kept(self, status: FailoverStatus) -> KeptState | None:
        """None: it is not committed."""
        return status.kept or (KeptState.KEPT if status.state is FailoverState.COMMITTED else None)

    def _why_not_final(self, status: FailoverStatus, kept: KeptState | None) -> str:
        if kept is None:
            return f"its failover is {status.state.value}, not committed"
        if KeptEvent.MIGRATED not in KEPT_TABLE[kept]:
            return f"its replica here is {kept.value.lower()}"
        protected = self._protection(status.machine)
        if protected is not None:
            return f"it is protected to {protected.peer}"
        return self._why_not_ours(status)

    def _why_not_ours(self, status: FailoverStatus) -> str:
        claim = self._journal(status.machine).head().claim
        if claim is None or claim.reason not in MOVED or claim.claimant != self._us:
            whose = f"{claim.claimant or 'nobody'} ({claim.reason})" if claim is not None else "nobody known"
            return f"its replica is written by {whose} now, not kept by its failover"
        if claim.reason != MIGRATED and claim.nonce != status.id:
            return "a later failover of it was made"
        return ""

    def _claim_for_good(self, status: FailoverStatus) -> Claim:
        journal = self._journal(status.machine)
        nonce = hashlib.sha256(f"secondsite {MIGRATED} {status.id}".encode()).hexdigest()[:32]
        for _ in range(ATTEMPTS_MAX):
            with contextlib.suppress(HeadMoved):
                claim = journal.claim(
                    name=status.machine_name,
                    claimant=self._us,
                    reason=MIGRATED,
                    clock=self._clock,
                    expected=journal.head(),
                    nonce=nonce,
                )
                keep_writer(journal, claim)
                return claim
        raise StateBusy(machine=status.machine)

    # retired

    def retire(self, identity: str, request: RetireReplica) -> FailoverStatus:
        """Delete what is left of the replica. Raises FailoverUnknown, NotRetired, ConfirmationMissing."""
        with self._lock:
            status = self._records.get(identity).status
            kept = self._kept(status)
            if kept is KeptState.RETIRED:
                return status
            if kept is not KeptState.RETIRING:
                why = self._why_needed(status, kept)
                if why:
                    raise NotRetired(machine=status.name, why=why)
                confirmations.require(
                    status.name,
                    request.confirm,
                    retired(status.name),
                    "What is left of its former points at this site is deleted for good.",
                )
                status = self._move(status, KeptEvent.RETIRE_ASKED)
                crash_point(RETIRE_ASKED)
            if not self._threads.busy(identity):
                self._begin(identity)
            return self._records.get(identity).status

    def _why_needed(self, status: FailoverStatus, kept: KeptState | None) -> str:
        if kept is None:
            return f"its failover is {status.state.value}, not committed"
        if kept is not KeptState.MIGRATED:
            protected = self._protection(status.machine)
            if protected is None:
                return "the machine is not protected from here"
            if protected.last_point is None:
                return f"it has no point at {protected.peer} yet"
        why = self._why_not_ours(status)
        pins = self._journal(status.machine).state().pins_at(self._clock.utc().isoformat())
        if not why and pins:
            why = f"points of it are needed by {', '.join(sorted({pin.holder for pin in pins}))}"
        return why

    def _protection(self, machine: MachineId) -> ProtectionStatus | None:
        return next((one for one in self._protections() if one.machine == machine), None)

    def _begin(self, identity: str) -> None:
        self._threads.begin(identity, lambda: self._delete(identity))

    def _stopped(self, identity: str, error: Exception) -> None:
        """Asked again, or begun at the next start, it goes on."""
        why = f"{type(error).__name__}: {error}"
        self._wait(identity, " ".join(error.sentences()) if isinstance(error, SecondsiteError) else why)

    def _delete(self, identity: str) -> None:
        status = self._records.get(identity).status
        if not status.delete_points:
            self._records.tell(identity, delete_points=True)
        while not self._delete_points(identity):
            if self._clock.wait(self._stop, POLL_SECONDS):
                return
        deleted = self._delete_rest(self._journal(status.machine))
        if self._stop.is_set():
            return
        crash_point(RETIRE_DELETED)
        self._forget(status.machine)
        status = self._move(self._records.get(identity).status, KeptEvent.RETIRED)
        crash_point(RETIRE_TOLD)
        text = f"What was left of the former replica of {status.name} is deleted: {deleted} objects."
        self._tell("failover.replica-retired", status, text)

    def _delete_rest(self, journal: Journal) -> int:
        """All but the claim in force, its state, and who made it."""
        claim = journal.head().claim
        assert claim is not None, "looked at before it was asked for"
        drop_points(journal, claim, clock=self._clock)
        machine, first, deleted = journal.machine, log_name(journal.machine, claim.number), 0
        for name in list(journal.store.list(machine_prefix(machine))):
            if self._stop.is_set():
                break
            stays = name.startswith((state_prefix(machine), f"{machine_prefix(machine)}writers/"))
            if stays or (name.startswith(log_prefix(machine)) and name >= first):
                continue
            journal.store.delete(name)
            deleted += 1
        return deleted

    def _wait(self, identity: str, why: str) -> None:
        status = self._records.get(identity).status
        if status.points_wait != why:
            self._records.tell(identity, points_wait=why)
            text = f"The former replica of {status.name} is not deleted yet: {why}"
            self._tell("failover.replica-waits", status, text)

    # small things

    def _move(self, status: FailoverStatus, event: KeptEvent) -> FailoverStatus:
        state = KEPT_TABLE[status.kept or KeptState.KEPT][event]
        return self._records.tell(status.id, kept=state, kept_at=self._clock.utc().isoformat()).status

    def _tell(self, code: str, status: FailoverStatus, text: str) -> None:
        self._events.emit(code, Severity.WARNING, text, machine=status.machine, operation=status.id)
