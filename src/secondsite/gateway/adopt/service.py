"""Adopting existing copies: a machine's first copy begins with what its target site has already.

A person names images of the machine's disks at the target. When the source comes, both agree on disks, sizes
and keys; the images are sealed into the store, in the source's epoch and with its data keys, by one thread
here. The source then compares its disks with the copy by hash, sends what differs, and the first point holds
both. Until that point is committed the copy is nothing: no point names it, no view reads it.

Everything of an adoption that ends in another way is removed from the store again (`adopt.record`).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.gateway.adopt.image import look_at
from secondsite.gateway.adopt.record import AdoptionRecord, RecordFile
from secondsite.gateway.adopt.room import Site, require_room_in_a_record
from secondsite.gateway.adopt.run import BegunAnew, Run, misfit, noter, offer_of, status_of
from secondsite.gateway.adopt.seal import drop_objects, make_tables, seal
from secondsite.gateway.messages.adopterrors import (
    AdoptionGone,
    AdoptionNotPossible,
    AdoptionRefused,
    AdoptionRunning,
    AdoptionTooLate,
    AdoptionUnknown,
)
from secondsite.gateway.messages.adoption import AdoptionState, AdoptionStatus, AdoptRequest
from secondsite.gateway.source.compare import answer_from
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId, machine_id
from secondsite.model.points import DiskState, Point, PointProposal
from secondsite.transfer.errors import DigestsNotReady, DigestsRefused, TransferCancelled
from secondsite.transfer.protocols import Adoption, AdoptionTerms, DigestAnswer, DigestQuery

log = logging.getLogger(__name__)

BEFORE_READY = mark("adopt.before-ready")
AFTER_READY = mark("adopt.after-ready")
AFTER_COMMITTING = mark("adopt.after-committing")
AFTER_ADOPTED = mark("adopt.after-adopted")
AFTER_ENDED = mark("adopt.after-ended")

RETRY_SECONDS = 10.0
IDLE_SECONDS = 5.0


class Adoptions:
    """Those of a target. Fits `receive.GatewayReceiver`; thread-safe. `start` once, `close` at the end."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        vault: VaultKey,
        state_dir: Path,
        cache_dir: Path,
        site: Site,
        clock: Clock,
        events: EventSink,
        journal_of: Callable[[MachineId], Journal] | None = None,
    ) -> None:
        """site: who uses images here, and what room there is. journal_of: the receiver's journals."""
        self._store, self._vault, self._site = store, vault, site
        self._clock, self._events = clock, events
        self._records, self._cache = state_dir / "adoptions", cache_dir / "adoptions"
        self._journal_of = journal_of or (lambda machine: Journal(store, machine, vault))
        self._lock = threading.Lock()
        self._runs: dict[MachineId, Run] = {}
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._root, name="adoptions", daemon=True)

    def start(self) -> None:
        """Go on with what an earlier process left."""
        for path in sorted(self._records.glob("*.json")):
            file = RecordFile(self._records, machine_id(path.stem))
            record = file.load()
            if record is not None:
                self._runs[record.machine] = run = Run(file, record)
                if not run.ended:
                    self._reconcile(run)
        self._thread.start()

    def close(self) -> None:
        """Stop; all goes on at the next start."""
        self._stop.set()
        with self._lock:
            for run in self._runs.values():
                run.cancel.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        for run in self._runs.values():
            with run.lock:
                for table in (run.tables or {}).values():
                    table.close()
                run.tables = None

    # -- asked for by people ------------------------------------------------------------------------

    def begin(self, machine: MachineId, name: str, request: AdoptRequest) -> AdoptionStatus:
        """Take images for a machine's first copy.

        Raises:
            AdoptionNotPossible: it has points. AdoptionRunning: there is one already.
            ImageRefused, ImageInUse, AdoptionNoRoom: nothing was taken.
        """
        newest = self._journal_of(machine).head().point
        if newest is not None:
            raise AdoptionNotPossible(machine=name, point=newest.number)
        images = {}
        for disk, asked in sorted(request.images.items()):
            images[disk] = look_at(Path(asked.path), asked.format)
            self._site.require_unused(images[disk])
        held = sum(image.held_bytes for image in images.values())
        self._site.require_room(held)
        require_room_in_a_record(name, held)
        with self._lock:
            before = self._runs.get(machine)
            if before is not None and (not before.ended or before.file.has_log):
                raise AdoptionRunning(machine=name, state=before.record.state.value)
            record = AdoptionRecord(
                id=secrets.token_hex(16),
                machine=machine,
                name=name,
                begun_at=self._clock.utc().isoformat(timespec="seconds"),
                images=images,
            )
            file = RecordFile(self._records, machine)
            file.keep(record)
            self._runs[machine] = Run(file, record)
        named = ", ".join(f"{disk} from {image.path}" for disk, image in images.items())
        self._tell("adopt.offered", Severity.INFORMATION, record, f"is to begin with a copy: {named}")
        return self.show(machine)

    def show(self, machine: MachineId) -> AdoptionStatus:
        """Where a machine's stands. Raises AdoptionUnknown."""
        return status_of(self._run(machine), self._clock)

    def all(self) -> list[AdoptionStatus]:
        """Running ones, and the last one of each other machine."""
        with self._lock:
            runs = list(self._runs.values())
        return [status_of(run, self._clock) for run in runs]

    def cancel(self, machine: MachineId) -> AdoptionStatus:
        """Give it up; what was taken over is removed. Raises AdoptionUnknown, AdoptionTooLate."""
        run = self._run(machine)
        run.cancel.set()  # before its lock: sealing ends soon
        with run.lock:
            state = run.record.state
            if state in {AdoptionState.COMMITTING, AdoptionState.ADOPTED}:
                run.cancel.clear()
                raise AdoptionTooLate(machine=run.record.name, state=state.value)
            if not run.ended:
                self._end(run, AdoptionState.CANCELLED, "its adopted copy was given up")
        return status_of(run, self._clock)

    # -- asked for by the receiver --------------------------------------------------------------------

    def offered(self, machine: MachineId) -> Adoption | None:
        """See `receive.AdoptedCopies`."""
        with self._lock:
            run = self._runs.get(machine)
        return None if run is None or run.ended else offer_of(run)

    def accept(self, journal: Journal, epoch: int, terms: AdoptionTerms) -> Adoption:
        """See `receive.AdoptedCopies`."""
        run = self._offered(terms.machine, terms.id)
        with run.lock:
            record = run.record
            if run.ended:
                raise AdoptionGone(machine=record.name, why=f"it is {record.state.value}")
            claim = journal.head().claim
            if claim is not None and claim.machine_name != record.name:
                record = run.keep(name=claim.machine_name)  # it was asked for by its id
            why = misfit(record, terms)
            if why:
                error = AdoptionRefused(machine=record.name, why=why)
                self._end(run, AdoptionState.REFUSED, str(error), error)
                raise error
            keys = {disk.id: disk.key_id for disk in terms.disks if disk.id in record.images}
            ring = KeyRing(journal.store, journal.machine, self._vault)
            for key in keys.values():
                ring.read(key)
            if (record.epoch, record.keys) != (epoch, keys):
                run.drop_tables()
                run.keep(
                    state=AdoptionState.SEALING,
                    attempt=record.attempt + 1,
                    epoch=epoch,
                    keys=keys,
                    disk=0,
                    offset=0,
                    log_bytes=0,
                    stored_bytes=0,
                )
                self._wake.set()
            return offer_of(run)

    def digests(self, query: DigestQuery) -> DigestAnswer:
        """See `receive.AdoptedCopies`."""
        with self._lock:
            run = self._runs.get(query.machine)
        if run is None or run.ended:
            raise DigestsRefused(disk=query.disk, point=0, why="there is no adopted copy")
        with run.lock:
            if run.tables is None:
                raise DigestsNotReady(disk=query.disk, point=0, why="the copy is not ready")
            table = run.tables.get(query.disk)
            if table is None or table.stamp.key != query.key_id or query.reread:
                raise DigestsRefused(disk=query.disk, point=0, why="the copy does not have it with that key")
            try:
                return answer_from(table, query)
            except OSError as error:
                run.drop_tables()
                self._wake.set()
                raise DigestsNotReady(disk=query.disk, point=0, why=str(error)) from error

    @contextlib.contextmanager
    def under(self, journal: Journal, proposal: PointProposal) -> Iterator[PointProposal]:
        """See `receive.AdoptedCopies`."""
        assert isinstance(proposal.fresh, str)
        try:
            run = self._offered(proposal.machine, proposal.fresh)
        except AdoptionGone:
            if not any(point.nonce == proposal.nonce for point in journal.points_after(0)):
                raise
            yield msgspec.structs.replace(proposal, fresh=True)  # committed before, the answer was lost
            return
        with run.lock:
            if run.record.state not in {AdoptionState.READY, AdoptionState.COMMITTING}:
                why = f"it is {run.record.state.value}"
                raise AdoptionGone(machine=proposal.machine_name, why=why)
            run.keep(state=AdoptionState.COMMITTING, nonce=proposal.nonce)
            crash_point(AFTER_COMMITTING)
            try:
                segments = (*run.file.refs(), *proposal.segments)
                yield msgspec.structs.replace(proposal, fresh=True, segments=segments)
            except BaseException:
                run.keep(state=AdoptionState.READY)
                raise

    def committed(self, journal: Journal, proposal: PointProposal, point: Point) -> None:  # noqa: ARG002
        """See `receive.AdoptedCopies`."""
        with self._lock:
            run = self._runs.get(proposal.machine)
        if run is None or run.ended:
            return
        with run.lock:
            sent = sum(segment.stored_bytes for segment in proposal.segments)
            if proposal.fresh == run.record.id:
                self._adopted(run, point.number, sent)
            elif not run.ended:
                text = (
                    f"it has point {point.number}, whose copy came another way; the adopted one is not used"
                )
                self._end(run, AdoptionState.UNUSED, text)
            self._wake.set()

    # -- the thread -----------------------------------------------------------------------------------

    def _root(self) -> None:
        while not self._stop.is_set():
            run = self._next()
            if run is None:
                self._clock.wait(self._wake, IDLE_SECONDS)
                self._wake.clear()
                continue
            try:
                self._work(run)
            except (TransferCancelled, BegunAnew):
                continue  # closed, given up, or begun anew: looked at again
            except SecondsiteError as error:
                self._failed(run, error)
            except Exception as error:  # the thread's root: told, and tried again later
                log.exception("adopting a copy of %s failed", run.record.name)
                run.waits_for = f"{type(error).__name__}: {error}"
                run.not_before = self._clock.monotonic() + RETRY_SECONDS
                self._tell("adopt.internal-error", Severity.CRITICAL, run.record, run.waits_for)

    def _next(self) -> Run | None:
        now = self._clock.monotonic()
        with self._lock:
            runs = [run for run in self._runs.values() if run.not_before <= now]
        for run in runs:
            sealing = run.record.state is AdoptionState.SEALING
            bare = run.record.state in {AdoptionState.READY, AdoptionState.COMMITTING} and run.tables is None
            if sealing or bare or (run.ended and run.file.has_log):
                return run
        return None

    def _work(self, run: Run) -> None:
        if run.ended:
            self._clear(run)
            return
        record = run.record
        journal = self._journal_of(record.machine)
        keys = KeyRing(self._store, record.machine, self._vault)
        if record.state is AdoptionState.SEALING:
            run.began = (self._clock.monotonic(), record.done_bytes)
            refs = run.file.log()
            try:
                seal(record, journal, keys, refs, note=noter(run, record.attempt), cancel=run.cancel)
            finally:
                refs.close()
            crash_point(BEFORE_READY)
        disks = {
            disk: DiskState(id=disk, size_bytes=image.size_bytes, key_id=record.keys[disk])
            for disk, image in record.images.items()
        }
        tables = make_tables(
            self._cache / record.machine, journal, keys, disks, run.file.refs(), cancel=run.cancel
        )
        with run.lock:
            if run.ended or run.record.attempt != record.attempt:
                for table in tables.values():
                    table.drop()
                return
            run.tables = tables
            run.waits_for = ""
            if run.record.state is AdoptionState.SEALING:
                stored = run.keep(state=AdoptionState.READY).stored_bytes
                text = (
                    f"the copy of {record.name} is in the store: {format_bytes(record.total_bytes)} of disks"
                )
                self._emit("adopt.sealed", record, f"{text}, {format_bytes(stored)} stored")
        crash_point(AFTER_READY)

    def _failed(self, run: Run, error: SecondsiteError) -> None:
        if error.retryable or run.ended:
            if run.waits_for != str(error):
                self._tell(error.code, Severity.WARNING, run.record, f"waits: {error}")
            run.waits_for = str(error)
            run.not_before = self._clock.monotonic() + RETRY_SECONDS
            return
        with run.lock:
            if not run.ended:
                self._end(run, AdoptionState.FAILED, f"its copy is not adopted: {error}", error)

    def _clear(self, run: Run) -> None:
        """Remove what an ended one has left; of one that became a point nothing but our notes."""
        with run.lock:
            run.drop_tables()
            # also what an earlier process had made
            shutil.rmtree(self._cache / run.record.machine, ignore_errors=True)
            if run.record.state is not AdoptionState.ADOPTED:
                drop_objects(self._journal_of(run.record.machine), run.file.refs())
            run.file.remove_log()

    def _reconcile(self, run: Run) -> None:
        """After a start: an earlier process may have been killed around a commit."""
        journal = self._journal_of(run.record.machine)
        committing = run.record.state is AdoptionState.COMMITTING
        head = journal.head()
        if head.point is None:
            if committing:
                run.keep(state=AdoptionState.READY)
            return
        ours = next((p for p in journal.points_after(0) if p.nonce == run.record.nonce), None)
        if ours is not None and committing:
            adopted = {ref.id for ref in run.file.refs()}
            sent = sum(ref.stored_bytes for ref in ours.segments if ref.id not in adopted)
            self._adopted(run, ours.number, sent)
            return
        # promoted since, or another first copy's: what of ours no record names is garbage, the rest is not
        self._end(run, AdoptionState.UNUSED, f"it has point {head.point.number}; its adoption is over")

    # -- small things ---------------------------------------------------------------------------------

    def _adopted(self, run: Run, number: int, sent_bytes: int) -> None:
        record = run.keep(state=AdoptionState.ADOPTED, point=number, sent_bytes=sent_bytes)
        crash_point(AFTER_ADOPTED)
        self._events.emit(
            "adopt.adopted",
            Severity.INFORMATION,
            f"the first point of {record.name} is {number}: {format_bytes(record.total_bytes)} of disks were "
            f"adopted ({format_bytes(record.stored_bytes)} stored), {format_bytes(sent_bytes)} travelled",
            machine=record.machine,
            number=number,
            adopted_bytes=record.total_bytes,
            stored_bytes=record.stored_bytes,
            sent_bytes=sent_bytes,
        )

    def _end(self, run: Run, state: AdoptionState, text: str, error: SecondsiteError | None = None) -> None:
        """It will not become a point; the thread removes what there is. Under its lock."""
        fields = {key: str(value) for key, value in error.as_dict().items()} if error else None
        run.keep(state=state, error=fields)
        run.cancel.set()
        crash_point(AFTER_ENDED)
        severity = Severity.INFORMATION if state is AdoptionState.CANCELLED else Severity.WARNING
        self._tell(f"adopt.{state.value.lower()}", severity, run.record, text)
        self._wake.set()

    def _tell(self, code: str, severity: Severity, record: AdoptionRecord, text: str) -> None:
        self._events.emit(code, severity, f"{record.name}: {text}", machine=record.machine)

    def _emit(self, code: str, record: AdoptionRecord, text: str) -> None:
        self._events.emit(code, Severity.INFORMATION, text, machine=record.machine)

    def _run(self, machine: MachineId) -> Run:
        with self._lock:
            run = self._runs.get(machine)
        if run is None:
            raise AdoptionUnknown(machine=machine)
        return run

    def _offered(self, machine: MachineId, identity: str) -> Run:
        with self._lock:
            run = self._runs.get(machine)
        if run is None or run.ended or run.record.id != identity:
            raise AdoptionGone(machine=machine, why="it is not offered any more")
        return run
