"""What a site does with the replicas it holds: list, export, test, clean up.

`Recovery` decides nothing about disks: it pins a point, has a process serve it (`exports`), and asks the
fabric to boot a machine on it. Replication goes on meanwhile, in other threads, and is never touched here.
"""

from __future__ import annotations

import collections
import logging
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.choose import choose_point, parse_time
from secondsite.gateway.messages.gateway import (
    ExportRequest,
    ExportStatus,
    PointHold,
    PointSummary,
    ReplicaStatus,
)
from secondsite.gateway.messages.testfailover import (
    CleanUp,
    StartTestFailover,
    TestFailoverState,
    TestFailoverStatus,
)
from secondsite.gateway.recovery.exports import Exports, SocketAccess
from secondsite.gateway.recovery.injecting import Book, Records
from secondsite.gateway.recovery.recoveredspec import Wanted
from secondsite.gateway.recovery.testage import OldTests
from secondsite.gateway.recovery.testfailover import (
    NoTestFailover,
    OperationTaken,
    OperationUnknown,
    TestFailoverCalledOff,
    TestFailoverPlan,
    TestFailoverRecord,
    TestFailoverRecords,
    TestFailoverRunning,
)
from secondsite.gateway.recovery.testremade import remade
from secondsite.gateway.recovery.testrunner import TestRunner
from secondsite.gateway.target.holds import holders
from secondsite.gateway.target.journals import OpenJournals
from secondsite.gateway.target.signals import describe_doubts, doubts_of
from secondsite.journal.chain import Journal, machines
from secondsite.journal.episodes import found_in
from secondsite.journal.keys import VaultKey
from secondsite.journal.state import Dropped
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.outlook import Outlook
from secondsite.model.points import Point
from secondsite.model.recovered import UNCHANGED
from secondsite.model.retention import Policies

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
# A request that was called off is under way for seconds at most, and not at all after a restart.
CALLED_OFF_MAX = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]|^\.")


class GuestWatch(Protocol):
    """Who looks after guests that stand on exports."""

    def export_restored(self, export: str) -> None:
        """An export had ended and is back."""

    def resume_guests(self) -> None:
        """Let those run again that stopped meanwhile. Called again and again."""


class Recovery:
    """The replicas of one site. Thread-safe; call `resume` once before anything else."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        vault: VaultKey,
        exports: Exports,
        state_dir: Path,
        socket_dir: Path,
        fabric: Fabric | None,
        mapping: SiteMapping,
        clock: Clock,
        events: EventSink,
        policies: Policies | None = None,
        journals: OpenJournals | None = None,
    ) -> None:
        """socket_dir: where the hypervisor may connect to; mapping: the site's own, above a point's.

        policies: of the retention, to be shown; None: this process thins nothing. journals: of the store, to
        share with others; None: its own.
        """
        self.policies = policies
        # replicas that are being deleted are not listed
        self.hidden: Callable[[MachineId], bool] = lambda _: False
        # a test failover has begun, or come to an end of some kind: somebody may wait for that
        self.on_test: Callable[[], None] = lambda: None
        self._store = store
        self._vault = vault
        self._exports = exports
        self._fabric = fabric
        self._clock = clock
        self._events = events
        self._lock = threading.RLock()
        self._journals = journals or OpenJournals(store, vault)
        self._records = TestFailoverRecords(state_dir / "test-failovers")
        self._runner = TestRunner(
            records=self._records,
            exports=exports,
            vault=vault,
            socket_dir=socket_dir,
            fabric=fabric,
            mapping=mapping,
            clock=clock,
            events=events,
        )
        self._old = OldTests(self._records, self._runner.note_old, clock, events)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._watch = threading.Thread(target=self._run_watch, name="export-watch", daemon=True)
        self._others: list[GuestWatch] = []
        self._called_off: collections.OrderedDict[str, None] = collections.OrderedDict()

    @property
    def test_guests(self) -> Book:
        """Its test machines, as far as something is brought into their guests."""
        return Records(self._runner.guests, self._runner.note_injection)

    # life

    def look_after(self, guests: GuestWatch) -> None:
        """Tell it of exports that are back, too. Call it before `resume`."""
        self._others.append(guests)

    def resume(self) -> None:
        """Pick up what the gateway before left: pins, exports, unfinished test failovers and clean-ups."""
        restored = self._exports.resume()
        self._runner.resume()
        self._drop_orphans()
        for export in restored:
            self._export_restored(export)
        self._watch.start()

    def _export_restored(self, export: str) -> None:
        for guests in (self._runner, *self._others):
            guests.export_restored(export)

    def _drop_orphans(self) -> None:
        """Exports of test failovers whose record was never made: a crash between the two."""
        for error in self._records.damaged():
            self._events.emit(error.code, Severity.CRITICAL, " ".join(error.sentences()))
        known = self._records.identities()
        for export in self._exports.all():
            if export.id.startswith("test-") and export.id.removeprefix("test-") not in known:
                self._exports.end(export.id)

    def close(self) -> None:
        """End our threads. Exports and test machines go on."""
        self._stop.set()
        for thread in [*self._threads, self._watch]:
            if thread.is_alive():
                thread.join(10)

    def _run_watch(self) -> None:
        guests = [one.resume_guests for one in (self._runner, *self._others)]
        looks = (lambda: self._exports.check(self._export_restored), *guests, self._old.look)
        told: set[str] = set()
        while not self._clock.wait(self._stop, WATCH_SECONDS):
            failed = set()
            for look in looks:  # what one raises holds up none of the others
                try:
                    look()
                except Exception as error:  # a thread's root: told, and tried again; guests hang without it
                    text = f"watching over exports failed: {type(error).__name__}: {error}"
                    if text not in told:
                        log.exception("watching over exports failed")
                        self._events.emit("export.watch-failed", Severity.CRITICAL, text)
                    failed.add(text)
            told = failed

    # reading

    def journal(self, machine: MachineId) -> Journal:
        """The machine's journal, kept open: it remembers the records it has checked."""
        return self._journals.of(machine)

    def machines(self) -> list[tuple[MachineId, str]]:
        """Id and name of every machine with a point here; without a name where its journal is damaged.

        And of those whose points a commit deleted: the journal says still whose the machine is.
        """
        found = {replica.machine: replica.name for replica in self.replicas()}
        for machine in machines(self._store):
            if machine in found or self.hidden(machine):
                continue
            journal = self.journal(machine)
            claim = journal.head().claim
            if claim is not None and isinstance(journal.state().dropped, Dropped):
                found[machine] = claim.machine_name
        return list(found.items())

    def points(
        self, machine: MachineId, *, newest: int | None = None, below: int | None = None
    ) -> list[PointSummary]:
        """Recovery points, oldest first: all, or the newest so many of those with a number below that."""
        journal = self.journal(machine)
        found = journal.points()
        doubts = doubts_of(journal, found)
        if below is not None:
            found = [point for point in found if point.number < below]
        if newest is not None:
            found = found[max(0, len(found) - newest) :]
        held = holders(journal.state(), self._clock)
        return [summarise(point, held.get(point.number, ()), doubts.trust(point.number)) for point in found]

    def forget(self, machine: MachineId) -> None:
        """Its replica was deleted."""
        self._journals.forget(machine)

    def replicas(self) -> list[ReplicaStatus]:
        """Every machine with a point here; a damaged one with its error, which harms no other."""
        found = []
        for machine in machines(self._store):
            if self.hidden(machine):
                continue
            try:
                points = self.journal(machine).points()
            except SecondsiteError as error:
                told = {key: str(value) for key, value in error.as_dict().items()}
                found.append(ReplicaStatus(machine=machine, name="", epoch=0, points=0, error=told))
                continue
            if points:
                found.append(self._replica(machine, points))
        return found

    def _replica(self, machine: MachineId, points: Sequence[Point]) -> ReplicaStatus:
        newest = points[-1]
        age = (self._clock.utc() - parse_time(newest.given_at)).total_seconds()
        record = self._records.standing(machine)
        return ReplicaStatus(
            machine=machine,
            name=newest.machine_name,
            epoch=newest.epoch,
            points=len(points),
            oldest=summarise(points[0]),
            newest=summarise(newest),
            rpo_seconds=max(0.0, age),
            test_failover=record.status if record else None,
            retention=self.policies.of(machine).describe() if self.policies else None,
            doubt=describe_doubts(doubts_of(self.journal(machine), points)),
        )

    def _choose(self, machine: MachineId, points: Sequence[Point], wanted: str) -> Point:
        journal = self.journal(machine)
        name = points[-1].machine_name if points else machine
        return choose_point(points, wanted, machine=name, episodes=lambda: found_in(journal))

    def point_of(self, machine: MachineId, wanted: str) -> Point:
        """The point that is meant. Raises NoSuchPoint, InvalidInput."""
        return self._choose(machine, self.journal(machine).points(), wanted)

    # exports for people

    def all_exports(self) -> list[ExportStatus]:
        """What is served."""
        return self._exports.all()

    def exports(self, machine: MachineId) -> list[ExportStatus]:
        """What of the machine is served, by whoever asked."""
        return [export for export in self._exports.all() if export.machine == machine]

    def start_export(self, machine: MachineId, request: ExportRequest) -> ExportStatus:
        """Serve a point until `end_export`; the sockets are open to the gateway's own user only."""
        points = self.journal(machine).points()
        name = points[-1].machine_name if points else machine
        point = self._choose(machine, points, request.point)
        identity = f"user-{secrets.token_hex(8)}"
        directory = Path(request.socket_dir)
        directory.mkdir(parents=True, exist_ok=True)
        return self._exports.begin(
            identity=identity,
            machine=machine,
            machine_name=name,
            point=point.number,
            disks={disk.id: disk.size_bytes for disk in point.disks},
            reason="exported by command",
            # the name came from the other site
            socket_path=directory / f"{_UNSAFE.sub('_', name[:32])}-{point.number}-{identity[-4:]}.sock",
            access=SocketAccess(),
        )

    def end_export(self, machine: MachineId, identity: str) -> None:
        """Stop serving. Raises ExportUnknown."""
        export = self._exports.get(identity)
        if export.machine == machine and identity.startswith("user-"):
            self._exports.end(identity)

    # test failovers

    def test_failovers(self, *, standing: str | None = None) -> list[TestFailoverStatus]:
        """Standing and past ones, oldest first; standing: only the one that stands of a machine's id.

        Raises TestFailoverRecordDamaged where that cannot be known.
        """
        if standing is None:
            return [record.status for record in self._records.all()]
        found = self._records.standing(MachineId(standing))
        if found is None and (damaged := self._records.damaged()):
            raise damaged[0]
        return [] if found is None else [found.status]

    def test_failover(self, identity: str) -> TestFailoverStatus:
        """One of them. Raises OperationUnknown."""
        return self._records.get(identity).status

    def check_test_failover(self, machine: MachineId, request: StartTestFailover) -> TestFailoverPlan:
        """What a start would do now. Raises what it would: NoSuchPoint, TestFailoverRunning, and so on."""
        with self._lock:
            point, seen = self._prepare(machine, request)
        return TestFailoverPlan(
            point=summarise(point),
            name=seen.name,
            network=request.network,
            settings=request.settings,
            outlook=seen,
        )

    def _prepare(self, machine: MachineId, request: StartTestFailover) -> tuple[Point, Outlook]:
        """The point that is meant, and what the test machine would be; all that is needed is there."""
        points = self.journal(machine).points()
        machine_name = points[-1].machine_name if points else machine
        point = self._choose(machine, points, request.point)
        standing = self._records.standing(machine)
        if standing is not None:
            raise TestFailoverRunning(
                machine=machine_name,
                name=standing.status.name,
                point=standing.status.point,
                state=standing.status.state.value,
            )
        settings = request.settings or UNCHANGED
        name = request.name or f"{settings.name or machine_name}-test"
        wanted = Wanted(name=name, network=request.network, settings=settings, keep_identity=False)
        return point, self._runner.check_prerequisites(point, wanted)

    def start_test_failover(
        self, machine: MachineId, request: StartTestFailover, *, bases: Mapping[DiskId, str] | None = None
    ) -> TestFailoverStatus:
        """Check, record and begin; the rest happens in a thread and shows in the record's steps.

        bases: where bases lie now, for those that are not where the store says.
        """
        with self._lock:
            known = self._begun(machine, request.operation)
            if known is not None:
                return known
            requested_at = self._clock.utc().isoformat()
            point, seen = self._prepare(machine, request)
            status = TestFailoverStatus(
                id=request.operation or secrets.token_hex(16),
                machine=machine,
                machine_name=point.machine_name,
                name=seen.name,
                state=TestFailoverState.INITIATED,
                point=point.number,
                point_at=point.given_at,
                consistency=point.consistency,
                network=request.network,
                requested_at=requested_at,
                requested_by=request.requested_by,
                settings=request.settings,
            )
            record = TestFailoverRecord(status=status, bases=dict(bases or {}))
            self._records.save(record)
        self._begin(lambda: self._runner.start(record, point), status)
        return status

    def _begun(self, machine: MachineId, operation: str | None) -> TestFailoverStatus | None:
        """The test failover that was asked for already. Raises TestFailoverCalledOff, OperationTaken."""
        if operation is None:
            return None
        if operation in self._called_off:
            raise TestFailoverCalledOff(id=operation, machine=self._name(machine))
        try:
            status = self._records.get(operation).status
        except OperationUnknown:
            return None
        if status.machine != machine:
            raise OperationTaken(id=operation, other=status.machine_name, machine=self._name(machine))
        return status

    def clean_up(self, machine: MachineId, request: CleanUp) -> TestFailoverStatus:
        """Remove the standing test failover and keep the notes; the rest happens in a thread.

        With its id asked for again it is the same clean-up, and done again only where it failed.
        """
        with self._lock:
            if request.operation is not None:
                known = self._begun_or_called_off(machine, request.operation)
                if known.state in (TestFailoverState.CLEANUP_INITIATED, TestFailoverState.CLEANUP_COMPLETED):
                    return known
            record = self._records.standing(machine) or self._remade(machine, request)
            if record is None or request.operation not in (None, record.status.id):
                raise NoTestFailover(machine=self._name(machine))
            if record.status.state is TestFailoverState.INITIATED:
                raise TestFailoverRunning(
                    machine=record.status.machine_name,
                    name=record.status.name,
                    point=record.status.point,
                    state="still starting",
                )
            record = self._runner.intend_clean_up(record, notes=request.notes, by=request.cleaned_up_by)
        self._begin(lambda: self._runner.clean_up(record), record.status)
        return record.status

    def _remade(self, machine: MachineId, request: CleanUp) -> TestFailoverRecord | None:
        """By force: one whose record cannot be read, which is put aside for what is known without it."""
        unreadable = self._records.unreadable() if request.force and request.operation is None else []
        if not unreadable:
            return None
        found = remade(
            unreadable, self._exports.all(), Journal(self._store, machine, self._vault), self._clock
        )
        if found is not None:
            self._records.put_aside(found.status.id)
            self._records.save(found)
            text = f"the test failover {found.status.name} is removed by force: its record could not be read"
            self._events.emit("test-failover.forced", Severity.WARNING, text, machine=machine)
        return found

    def _begun_or_called_off(self, machine: MachineId, operation: str) -> TestFailoverStatus:
        """What was begun; what was not never will be. Raises NoTestFailover, OperationTaken."""
        known = None if operation in self._called_off else self._begun(machine, operation)
        if known is not None:
            return known
        self._called_off[operation] = None
        while len(self._called_off) > CALLED_OFF_MAX:
            self._called_off.popitem(last=False)
        raise NoTestFailover(machine=self._name(machine))

    def _name(self, machine: MachineId) -> str:
        return next((name for known, name in self.machines() if known == machine), machine)

    def _begin(self, work: Callable[[], None], status: TestFailoverStatus) -> None:
        def root() -> None:
            try:
                work()
            except Exception as error:  # a thread's root: told, never silent
                log.exception("test failover %s failed", status.name)
                self._runner.abandon(status.id, error)
            finally:
                self.on_test()

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=root, name=f"test-failover {status.name}", daemon=True)
        self._threads.append(thread)
        thread.start()
        self.on_test()


def summarise(point: Point, held_by: Collection[PointHold] = (), trust: str = "") -> PointSummary:
    """A point as listings show it."""
    return PointSummary(
        number=point.number,
        epoch=point.epoch,
        at=point.given_at,
        asked_at=point.asked_at,
        committed_at=point.committed_at,
        consistency=point.consistency,
        size_bytes=sum(disk.size_bytes for disk in point.disks),
        changed_bytes=point.changed_bytes,
        sent_bytes=point.sent_bytes,
        disks=tuple(disk.id for disk in point.disks),
        fingerprints={disk.id: disk.fingerprint for disk in point.disks},
        frozen_seconds=point.frozen_seconds,
        held_by=tuple(held_by),
        trust=trust,
        signals=point.measured,
    )
