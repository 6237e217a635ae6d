"""What a site does with the replicas it holds: list, export, test, clean up.

`Recovery` decides nothing about disks: it pins a point, has a process serve it (`exports`), and asks the
fabric to boot a machine on it. Replication goes on meanwhile, in other threads, and is never touched here.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.choose import choose_point, parse_time
from secondsite.gateway.exports import Exports, SocketAccess
from secondsite.gateway.holds import holders
from secondsite.gateway.messages import (
    CleanUp,
    ExportRequest,
    ExportStatus,
    PointHold,
    PointSummary,
    ReplicaStatus,
    StartTestFailover,
    TestFailoverState,
    TestFailoverStatus,
)
from secondsite.gateway.signals import describe_doubts, doubts_of
from secondsite.gateway.testfailover import (
    NoTestFailover,
    TestFailoverRecord,
    TestFailoverRecords,
    TestFailoverRunning,
)
from secondsite.gateway.testrunner import TestRunner
from secondsite.journal.chain import Journal, machines
from secondsite.journal.episodes import found_in
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.points import Point
from secondsite.model.retention import Policies

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]|^\.")


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
    ) -> None:
        """socket_dir: where the hypervisor may connect to; mapping: the site's own, above a point's.

        policies: of the retention, to be shown; None: this process thins nothing.
        """
        self._policies = policies
        self._store = store
        self._vault = vault
        self._exports = exports
        self._fabric = fabric
        self._clock = clock
        self._events = events
        self._lock = threading.RLock()
        self._journals: dict[MachineId, Journal] = {}
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
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._watch = threading.Thread(target=self._run_watch, name="export-watch", daemon=True)

    # life

    def resume(self) -> None:
        """Pick up what the gateway before left: pins, exports, unfinished test failovers and clean-ups."""
        restored = self._exports.resume()
        self._runner.resume()
        self._drop_orphans()
        for export in restored:
            self._runner.export_restored(export)
        self._watch.start()

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
        told = ""
        while not self._clock.wait(self._stop, WATCH_SECONDS):
            try:
                self._exports.check(self._runner.export_restored)
                self._runner.resume_guests()
                told = ""
            except Exception as error:  # a thread's root: told, and tried again; guests hang without it
                text = f"watching over exports failed: {type(error).__name__}: {error}"
                if text != told:
                    log.exception("watching over exports failed")
                    self._events.emit("export.watch-failed", Severity.CRITICAL, text)
                told = text

    # reading

    def journal(self, machine: MachineId) -> Journal:
        """The machine's journal, kept open: it remembers the records it has checked."""
        with self._lock:
            if machine not in self._journals:
                self._journals[machine] = Journal(self._store, machine, self._vault)
            return self._journals[machine]

    def machines(self) -> list[tuple[MachineId, str]]:
        """Id and name of every machine with a point here; without a name where its journal is damaged."""
        return [(replica.machine, replica.name) for replica in self.replicas()]

    def points(self, machine: MachineId) -> list[PointSummary]:
        """Recovery points, oldest first."""
        journal = self.journal(machine)
        found = journal.points()
        held = holders(journal.state(), self._clock)
        doubts = doubts_of(journal, found)
        return [summarise(point, held.get(point.number, ()), doubts.trust(point.number)) for point in found]

    def replicas(self) -> list[ReplicaStatus]:
        """Every machine with a point here; a damaged one with its error, which harms no other."""
        found = []
        for machine in machines(self._store):
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
            retention=self._policies.of(machine).describe() if self._policies else None,
            doubt=describe_doubts(doubts_of(self.journal(machine), points)),
        )

    def _choose(self, machine: MachineId, points: Sequence[Point], wanted: str) -> Point:
        journal = self.journal(machine)
        name = points[-1].machine_name if points else machine
        return choose_point(points, wanted, machine=name, episodes=lambda: found_in(journal))

    # exports for people

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

    def test_failovers(self) -> list[TestFailoverStatus]:
        """Standing and past ones, oldest first."""
        return [record.status for record in self._records.all()]

    def test_failover(self, identity: str) -> TestFailoverStatus:
        """One of them. Raises OperationUnknown."""
        return self._records.get(identity).status

    def start_test_failover(
        self, machine: MachineId, request: StartTestFailover, *, bases: Mapping[DiskId, str] | None = None
    ) -> TestFailoverStatus:
        """Check, record and begin; the rest happens in a thread and shows in the record's steps.

        bases: where bases lie now, for those that are not where the store says.
        """
        with self._lock:
            requested_at = self._clock.utc().isoformat()
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
            name = request.name or f"{machine_name}-test"
            self._runner.check_prerequisites(point, name=name, network=request.network)
            status = TestFailoverStatus(
                id=secrets.token_hex(16),
                machine=machine,
                machine_name=machine_name,
                name=name,
                state=TestFailoverState.INITIATED,
                point=point.number,
                point_at=point.given_at,
                consistency=point.consistency,
                network=request.network,
                requested_at=requested_at,
                requested_by=request.requested_by,
            )
            record = TestFailoverRecord(status=status, bases=dict(bases or {}))
            self._records.save(record)
        self._begin(lambda: self._runner.start(record, point), status)
        return status

    def clean_up(self, machine: MachineId, request: CleanUp) -> TestFailoverStatus:
        """Remove the standing test failover and keep the notes; the rest happens in a thread."""
        with self._lock:
            record = self._records.standing(machine)
            if record is None:
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

    def _name(self, machine: MachineId) -> str:
        return next((name for known, name in self.machines() if known == machine), machine)

    def _begin(self, work: Callable[[], None], status: TestFailoverStatus) -> None:
        def root() -> None:
            try:
                work()
            except Exception as error:  # a thread's root: told, never silent
                log.exception("test failover %s failed", status.name)
                self._runner.abandon(status.id, error)

        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=root, name=f"test-failover {status.name}", daemon=True)
        self._threads.append(thread)
        thread.start()


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
