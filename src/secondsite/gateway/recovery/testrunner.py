"""Carries out test failovers and their clean-ups, step by step: intent, deed, record.

Start: export the point, make the network, define and boot. Clean-up is the reverse. A gateway that ends in
the middle of a start leaves a record that says how far it can have come; the next one removes all of it and
marks the record failed. A clean-up that was begun is continued. Both may be repeated at every step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.messages.gateway import ExportStatus
from secondsite.gateway.messages.testfailover import (
    InjectionStatus,
    Step,
    TestFailoverState,
    TestFailoverStatus,
)
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.injecting import Guest, begun
from secondsite.gateway.recovery.recoveredspec import (
    ISOLATED,
    MAPPED,
    NONE,
    Wanted,
    merge_mapping,
    outlook,
    spec_of,
    with_pool,
)
from secondsite.gateway.recovery.testfailover import (
    PrerequisitesFailed,
    TestFailoverDefect,
    TestFailoverInterrupted,
    TestFailoverRecord,
    TestFailoverRecords,
)
from secondsite.gateway.recovery.testremade import network_of, reason_of
from secondsite.gateway.target.views import open_point_definition
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.machines import Mapping
from secondsite.model.outlook import Outlook
from secondsite.model.points import Point
from secondsite.model.recovered import UNCHANGED

log = logging.getLogger(__name__)

BEFORE_EXPORT = mark("test-failover.before-export")
AFTER_EXPORT = mark("test-failover.after-export")
AFTER_NETWORK = mark("test-failover.after-network")
AFTER_BOOT = mark("test-failover.after-boot")
AFTER_RECORD = mark("test-failover.after-record")
CLEAN_UP_INTENDED = mark("test-clean-up.intended")
CLEAN_UP_REMOVED = mark("test-clean-up.removed")
CLEAN_UP_NETWORK = mark("test-clean-up.network")
CLEAN_UP_EXPORT = mark("test-clean-up.export")

# How often a guest is resumed after one loss of its export; it takes two or three.
RESUMES_MAX = 20


def as_wanted(status: TestFailoverStatus, note: str = "") -> Wanted:
    """A test machine as it was asked for; it is another machine than the one it is made from."""
    return Wanted(
        name=status.name,
        network=status.network,
        settings=status.settings or UNCHANGED,
        keep_identity=False,
        note=note,
        instance=status.id,
    )


class TestRunner:
    """The steps. Not locked: `Recovery` sees to it that one record is worked on by one thread."""

    __test__ = False

    def __init__(
        self,
        *,
        records: TestFailoverRecords,
        exports: Exports,
        vault: VaultKey,
        socket_dir: Path,
        fabric: Fabric | None,
        mapping: Mapping,
        clock: Clock,
        events: EventSink,
    ) -> None:
        """See `Recovery`."""
        self._records = records
        self._exports = exports
        self._vault = vault
        self._socket_dir = socket_dir
        self._fabric_or_none = fabric
        self._mapping = mapping
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._resumes_left: dict[str, int] = {}  # by export; only the watch's thread uses it

    @property
    def _fabric(self) -> Fabric:
        assert self._fabric_or_none is not None, "check_prerequisites refuses without a fabric"
        return self._fabric_or_none

    # before

    def check_prerequisites(self, point: Point, wanted: Wanted) -> Outlook:
        """What it would be; look for everything that would make it fail.

        Raises PrerequisitesFailed, naming all of it.
        """
        failures, seen = [], None
        if self._fabric_or_none is None:
            failures.append("this gateway has no hypervisor configured")
        else:
            if any(machine.name == wanted.name for machine in self._fabric.machines()):
                taken = f"a machine named {wanted.name} exists at this site already"
                failures.append(f"{taken} (choose another --name)")
            failures += self._network_failures(wanted.network)
        try:
            definition = open_point_definition(self._vault, point)
            if self._fabric_or_none is not None:
                failures += self._pool_failures(merge_mapping(definition.mapping, self._mapping))
                seen = outlook(self._fabric, self._vault, self._mapping, point, wanted)
                failures += [finding.cause for finding in seen.findings if finding.required]
        except SecondsiteError as error:
            failures.append(f"the point's definition cannot be opened ({error.sentences()[0].rstrip('.')})")
        if failures or seen is None:
            raise PrerequisitesFailed(machine=point.machine_name, failures="; ".join(failures))
        return seen

    def _network_failures(self, network: str) -> list[str]:
        networks = {net.name: net for net in self._fabric.networks()}
        if network not in (ISOLATED, NONE, MAPPED) and network not in networks:
            shown = ", ".join(sorted(networks)) or "none"
            return [f"there is no network {network} at this site (there are: {shown})"]
        if network in networks and not networks[network].active:
            return [f"the network {network} is not active"]
        return []

    def _pool_failures(self, mapping: Mapping) -> list[str]:
        active = {pool.name for pool in self._fabric.pools() if pool.active}
        wanted = {*mapping.pools.values(), *([mapping.default_pool] if mapping.default_pool else [])}
        shown = ", ".join(sorted(active)) or "none"
        if not active:
            return ["this site has no active storage pool"]
        return [
            f"there is no active pool {name} at this site (there are: {shown})"
            for name in sorted(wanted - active)
        ]

    # start

    def start(self, record: TestFailoverRecord, point: Point) -> None:
        """Carry it out; the record ends COMPLETED, or FAILED with the error and nothing left behind."""
        try:
            record = self._start(record, point)
        except SecondsiteError as error:
            self._fail(self._records.get(record.status.id), error)
            return
        status = record.status
        self._events.emit(
            "test-failover.completed",
            Severity.INFORMATION,
            f"{status.name} was booted from point {status.point} of {status.machine_name} as a test.",
            machine=status.machine,
            operation=status.id,
        )

    def _start(self, record: TestFailoverRecord, point: Point) -> TestFailoverRecord:
        identity = record.status.id
        crash_point(BEFORE_EXPORT)
        with self._step(identity, "point exported"):
            export = self._export(record, point)
        crash_point(AFTER_EXPORT)
        network: str | None = None
        definition = open_point_definition(self._vault, point)
        if record.status.network == ISOLATED:
            network = network_of(identity)
            record = self._change(identity, network_made=network)
            with self._step(identity, "isolated network made"):
                self._fabric.make_isolated_network(network)
            crash_point(AFTER_NETWORK)
        mapping = with_pool(merge_mapping(definition.mapping, self._mapping), self._fabric)
        note = f"test failover {identity} of {point.machine_name}, point {point.number} ({point.given_at})"
        wanted = as_wanted(record.status, note)
        spec = spec_of(wanted, definition, mapping, export.disks, network_made=network)
        with self._step(identity, "machine defined and started"):
            recovered = self._fabric.start_recovered(spec)
            crash_point(AFTER_BOOT)
            self._change(identity, recovered=recovered)
        crash_point(AFTER_RECORD)
        booted_at = self._now()
        return self._change_status(
            identity,
            state=TestFailoverState.COMPLETED,
            booted_at=booted_at,
            injection=begun(record.status.settings, booted_at),
            console_log=recovered.console_log,
        )

    def _export(self, record: TestFailoverRecord, point: Point) -> ExportStatus:
        status = record.status
        return self._exports.begin(
            identity=f"test-{status.id}",
            machine=status.machine,
            machine_name=status.machine_name,
            point=point.number,
            disks={disk.id: disk.size_bytes for disk in point.disks},
            reason=reason_of(status.name),
            socket_path=self._socket_dir / f"test-{status.id[:12]}.sock",
            bases=record.bases,
        )

    def _fail(self, record: TestFailoverRecord, error: SecondsiteError) -> None:
        """Remove whatever was made and say why. The record is FAILED even if the removal fails as well."""
        status = record.status
        told = {key: str(value) for key, value in error.as_dict().items()}
        try:
            self._remove(record)
        except SecondsiteError as second:
            # it keeps standing, so that a clean-up can be asked for
            self._change_status(status.id, state=TestFailoverState.CLEANUP_FAILED, error=told)
            self._tell_not_removed(status, second)
            return
        self._change_status(status.id, state=TestFailoverState.FAILED, error=told)
        self._events.emit(
            "test-failover.failed",
            Severity.WARNING,
            f"The test failover of {status.machine_name} failed: {' '.join(error.sentences())}",
            machine=status.machine,
            operation=status.id,
        )

    def abandon(self, identity: str, error: Exception) -> None:
        """A defect ended the work on a record: remove what can be removed and say so."""
        record = self._records.get(identity)
        wrong = TestFailoverDefect(
            machine=record.status.machine_name, kind=type(error).__name__, text=str(error)[:500]
        )
        if record.status.state is TestFailoverState.INITIATED:
            self._fail(record, wrong)
            return
        told = {key: str(value) for key, value in wrong.as_dict().items()}
        self._change_status(identity, state=TestFailoverState.CLEANUP_FAILED, error=told)
        self._tell_not_removed(record.status, wrong)

    # clean-up

    def intend_clean_up(self, record: TestFailoverRecord, *, notes: str, by: str) -> TestFailoverRecord:
        """Write down that it goes, with what was learnt: from here on it will go, whatever crashes."""
        return self._change(
            record.status.id,
            status=msgspec.structs.replace(
                record.status,
                state=TestFailoverState.CLEANUP_INITIATED,
                notes=notes,
                cleaned_up_by=by,
                error=None,
            ),
        )

    def clean_up(self, record: TestFailoverRecord) -> None:
        """Remove machine, network, export and pin; the record stays with its notes."""
        status = record.status
        crash_point(CLEAN_UP_INTENDED)
        try:
            self._remove(record)
        except SecondsiteError as error:
            told = {key: str(value) for key, value in error.as_dict().items()}
            self._change_status(status.id, state=TestFailoverState.CLEANUP_FAILED, error=told)
            self._tell_not_removed(status, error)
            return
        self._change_status(
            status.id, state=TestFailoverState.CLEANUP_COMPLETED, cleaned_up_at=self._now(), console_log=None
        )
        self._events.emit(
            "test-failover.cleaned-up",
            Severity.INFORMATION,
            f"The test failover {status.name} of {status.machine_name} was cleaned up.",
            machine=status.machine,
            operation=status.id,
        )

    def _remove(self, record: TestFailoverRecord) -> None:
        identity = record.status.id
        if self._fabric_or_none is not None:
            with self._step(identity, "machine removed"):
                known = record.recovered.id if record.recovered else None
                for recovered in self._fabric.recovered():
                    # by name too: a crash may have come between its start and our record of it
                    if recovered.id == known or recovered.name == record.status.name:
                        self._fabric.remove_recovered(recovered)
            crash_point(CLEAN_UP_REMOVED)
            if record.network_made is not None:
                with self._step(identity, "isolated network removed"):
                    self._fabric.remove_network(record.network_made)
            crash_point(CLEAN_UP_NETWORK)
        with self._step(identity, "export ended"):
            self._exports.end(f"test-{identity}")
        crash_point(CLEAN_UP_EXPORT)

    def _tell_not_removed(self, status: TestFailoverStatus, error: SecondsiteError) -> None:
        self._events.emit(
            "test-failover.not-removed",
            Severity.CRITICAL,
            f"The test failover {status.name} could not be removed: {' '.join(error.sentences())}",
            machine=status.machine,
            operation=status.id,
        )

    # what was set for its guest

    def guests(self) -> list[Guest]:
        """Test machines with something to take."""
        return [
            Guest(
                id=status.id,
                machine=status.machine,
                name=status.name,
                settings=status.settings,
                status=status.injection,
                recovered=record.recovered,
            )
            for record in self._records.all()
            if (status := record.status).state is TestFailoverState.COMPLETED
            and status.settings is not None
            and status.injection is not None
            and record.recovered is not None
        ]

    def note_injection(self, identity: str, injection: InjectionStatus) -> None:
        """How far its guest is."""
        self._change_status(identity, injection=injection)

    # after a restart, and of a lost export

    def resume(self) -> None:
        """Bring every record of an earlier gateway to a state with a name."""
        for record in self._records.all():
            if record.status.state is TestFailoverState.INITIATED:
                step = record.status.steps[-1].name if record.status.steps else "requested"
                error = TestFailoverInterrupted(machine=record.status.machine_name, step=step)
                self._fail(record, error)
            elif record.status.state is TestFailoverState.CLEANUP_INITIATED:
                self.clean_up(record)

    def export_restored(self, export: str) -> None:
        """An export had ended and is back: `resume_guests` looks after the guest on it."""
        self._resumes_left[export] = RESUMES_MAX

    def resume_guests(self) -> None:
        """Let guests run again that stopped at an error of a disk whose export was lost. Called repeatedly.

        Once is not enough: QEMU connects again in the background while the first request fails, so that a
        guest stops once more before its disk answers (QEMU 7.2, block/nbd.c, nbd_reconnect_attempt).
        """
        for export, left in list(self._resumes_left.items()):
            record = self._standing_on(export)
            if record is None or record.recovered is None:
                del self._resumes_left[export]
                continue
            try:
                resumed = self._fabric.resume_stopped(record.recovered)
            except SecondsiteError as error:
                self._tell_not_resumed(record.status, error)
                del self._resumes_left[export]
                continue
            if resumed:
                self._note_resumed(export, left, record.status)

    def _note_resumed(self, export: str, left: int, status: TestFailoverStatus) -> None:
        if left == RESUMES_MAX:
            self._events.emit(
                "test-failover.resumed",
                Severity.WARNING,
                f"{status.name} had stopped when its export was lost and runs again.",
                machine=status.machine,
            )
        self._resumes_left[export] = left - 1
        if left == 1:
            # it stops for another reason, e.g. a full pool: that is a person's to judge
            del self._resumes_left[export]

    def _standing_on(self, export: str) -> TestFailoverRecord | None:
        for record in self._records.all():
            if f"test-{record.status.id}" == export and record.status.state is TestFailoverState.COMPLETED:
                return record
        return None

    def _tell_not_resumed(self, status: TestFailoverStatus, error: SecondsiteError) -> None:
        self._events.emit(
            "test-failover.not-resumed",
            Severity.CRITICAL,
            f"{status.name} stopped when its export was lost and could not be resumed: "
            f"{' '.join(error.sentences())}",
            machine=status.machine,
        )

    # records

    def note_old(self, identity: str, at: str) -> None:
        """Keep that it was told of one that it is old."""
        self._change_status(identity, told_old_at=at)

    def _now(self) -> str:
        return self._clock.utc().isoformat()

    def _change(self, identity: str, **changes: Any) -> TestFailoverRecord:
        with self._lock:
            record = msgspec.structs.replace(self._records.get(identity), **changes)
            self._records.save(record)
            return record

    def _change_status(self, identity: str, **changes: Any) -> TestFailoverRecord:
        with self._lock:
            record = self._records.get(identity)
            record = msgspec.structs.replace(record, status=msgspec.structs.replace(record.status, **changes))
            self._records.save(record)
            return record

    @contextmanager
    def _step(self, identity: str, name: str) -> Iterator[None]:
        steps = self._records.get(identity).status.steps
        # a step done again after a crash replaces its first attempt
        before = tuple(step for step in steps if step.name != name)
        step = Step(name=name, started_at=self._now())
        self._change_status(identity, steps=(*before, step))
        yield
        ended = msgspec.structs.replace(step, ended_at=self._now())
        self._change_status(identity, steps=(*before, ended))
