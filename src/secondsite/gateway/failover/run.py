"""The steps of a failover at the site that takes over: intent, deed, record; each may be repeated.

    pin the point -> claim in the store -> export -> machine          take_over, boot
    machine -> export -> another point's pin -> boot                  change
    machine -> claim back for the source -> export -> pin             roll_back
    plain disks -> a machine like any other -> export -> pin          commit
    -> nobody needs a point -> hidden -> deleted                      and after it, see `failover.drop`

The claim comes before anything boots, and before the claim back the machine is gone: at no moment do two
copies run that the store does not tell apart. A gateway that ends anywhere goes on from its record.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric, Recovered, RecoverySpec
from secondsite.gateway.failover.claim import give_back, take_over
from secondsite.gateway.failover.drop import PointsDeletion
from secondsite.gateway.failover.former import Former
from secondsite.gateway.failover.record import UNSEEN, FailoverRecord, FailoverRecords
from secondsite.gateway.failover.restarts import FailoverRestarts
from secondsite.gateway.failover.stopped import cancelled, require_stopped, stopped_on
from secondsite.gateway.failover.verified import asked_of
from secondsite.gateway.messages.failover import FailoverStatus, FormerWrites
from secondsite.gateway.messages.failovererrors import AlreadyTakenOver, WriterUnknown
from secondsite.gateway.messages.gateway import ExportStatus
from secondsite.gateway.messages.testfailover import Step
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.injecting import begun
from secondsite.gateway.recovery.recoveredspec import Wanted, merge_mapping, spec_of, with_pool
from secondsite.gateway.target.pins import Pins
from secondsite.gateway.target.views import open_point_definition
from secondsite.journal.chain import Head, Journal
from secondsite.journal.keys import VaultKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import MOVED, FailoverEvent, FailoverKind
from secondsite.model.ids import MachineId
from secondsite.model.machines import Mapping
from secondsite.model.points import Claim, Point
from secondsite.model.recovered import UNCHANGED

AFTER_PIN = mark("failover.after-pin")
AFTER_CLAIMED = mark("failover.after-claimed")
AFTER_EXPORT = mark("failover.after-export")
AFTER_BOOT = mark("failover.after-boot")
AFTER_RECORD = mark("failover.after-record")
CHANGE_INTENDED = mark("failover.change-intended")
CHANGE_REMOVED = mark("failover.change-removed")
CHANGE_KEPT = mark("failover.change-kept")
CHANGE_MOVED = mark("failover.change-moved")
ROLL_BACK_INTENDED = mark("failover.roll-back-intended")
ROLL_BACK_REMOVED = mark("failover.roll-back-removed")
ROLL_BACK_CLAIMED = mark("failover.roll-back-claimed")
ROLL_BACK_EXPORT = mark("failover.roll-back-export")
ROLL_BACK_KEPT = mark("failover.roll-back-kept")
COMMIT_INTENDED = mark("failover.commit-intended")
COMMIT_FLATTENED = mark("failover.commit-flattened")
COMMIT_SETTLED = mark("failover.commit-settled")
COMMIT_EXPORT = mark("failover.commit-export")
COMMIT_KEPT = mark("failover.commit-kept")
ROOM_RECORDED = mark("removal.room-recorded")
COMMIT_RECORDED = mark("failover.commit-recorded")

# Between two looks at how far the disks are; a look costs some milliseconds a disk.
FLATTEN_SECONDS = 0.5


@dataclass(frozen=True)
class Hands:
    """What the steps are done with."""

    us: str  # this gateway's name, as claims carry it
    records: FailoverRecords
    exports: Exports
    pins: Pins
    vault: VaultKey
    socket_dir: Path
    fabric: Fabric | None
    mapping: Mapping
    clock: Clock
    events: EventSink
    journal: Callable[[MachineId], Journal]
    choose: Callable[[MachineId, str], Point]
    stop: threading.Event
    base_dir: Path | None = None
    former: Former | None = None


class FailoverRunner:
    """The steps. Not locked: `Failovers` sees to it that one record is worked on by one thread."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._records = hands.records
        # ends what replicates a machine from here by a protection of an earlier time
        self.about_to_run: Callable[[MachineId], None] = lambda _: None
        self.restarts = FailoverRestarts(
            hands.records, hands.exports.serves, self.superseded, hands.clock, hands.events
        )
        self.deletion = PointsDeletion(
            hands.records,
            hands.journal,
            us=hands.us,
            base_dir=hands.base_dir,
            clock=hands.clock,
            events=hands.events,
            stop=hands.stop,
        )

    @property
    def fabric(self) -> Fabric:
        """Of the site."""
        assert self._hands.fabric is not None, "refused without a fabric before a record was made"
        return self._hands.fabric

    # taking over

    def take_over(self, identity: str) -> None:
        """The claim, on the point as of the head it is made on. Raises what the store raises."""
        record = self._records.get(identity)
        status, hands = record.status, self._hands
        journal = hands.journal(status.machine)

        def choose(head: Head) -> None:
            point = hands.choose(status.machine, record.wanted)
            if status.kind is FailoverKind.PLANNED:
                require_stopped(journal, head, point)
            self._records.tell(
                identity, point=point.number, point_at=point.given_at, consistency=point.consistency
            )
            hands.pins.take(status.machine, point.number, holder=record.holder, reason="failed over")
            crash_point(AFTER_PIN)

        with self._step(identity, "claimed in the store"):
            claim = take_over(
                journal,
                us=hands.us,
                operation=identity,
                name=status.machine_name,
                clock=hands.clock,
                choose=choose,
            )
            status = self.note_claim(identity, claim)
        crash_point(AFTER_CLAIMED)
        self.emit(
            "failover.claimed",
            Severity.WARNING,
            f"{status.machine_name} belongs to this site from epoch {claim.epoch} on, as of point "
            f"{status.point}: {status.writer or 'whoever wrote it'} may commit nothing more.",
            status,
        )

    def note_claim(self, identity: str, claim: Claim, error: dict[str, str] | None = None) -> FailoverStatus:
        """That this site is the authority, and what of the machine is lost with that."""
        status = self._records.get(identity).status
        lost = (moment(claim.claimed_at) - moment(status.point_at)).total_seconds()
        stop = None
        if status.kind is FailoverKind.PLANNED:
            # looked at after the claim: who cancels it looks at the claims after that (`failover.stopped`)
            stop = stopped_on(self._hands.journal(status.machine), status.point)
            if stop is None:
                self.emit("failover.stop-cancelled", Severity.WARNING, cancelled(status.machine_name), status)
            else:
                lost = 0.0  # it stood still since before the point's instant, and this is its newest
        return self._records.move(
            identity,
            FailoverEvent.CLAIMED,
            epoch=claim.epoch,
            claimed_at=claim.claimed_at,
            loss_seconds=max(0.0, lost),
            stop=stop.operation if stop is not None else None,
            error=error,
        ).status

    def claim_in_force(self, status: FailoverStatus) -> Claim | None:
        """Its claim, as long as nobody has made a later one. Raises what the store raises."""
        claim = self._hands.journal(status.machine).head().claim
        return claim if claim is not None and claim.nonce == status.id else None

    def superseded(self, status: FailoverStatus) -> Claim | None:
        """The claim of a later failover of the machine, where there is one: it runs there, or will."""
        claim = self._hands.journal(status.machine).head().claim
        return claim if claim is not None and claim.reason in MOVED and claim.nonce != status.id else None

    def require_in_force(self, status: FailoverStatus) -> None:
        """Raise AlreadyTakenOver where the machine is somebody else's by now."""
        if (claim := self.superseded(status)) is not None:
            raise AlreadyTakenOver(
                machine=status.machine_name,
                claimant=claim.claimant,
                epoch=claim.epoch,
                claimed_at=claim.claimed_at,
            )

    def boot(self, identity: str) -> None:
        """The machine, with its own identity, on the export of its point; found again after a crash."""
        record = self._records.get(identity)
        status = record.status
        assert status.claimed_at is not None, "nothing boots before its claim"
        self.require_in_force(status)
        point = self._hands.journal(status.machine).point(status.point)
        self.about_to_run(status.machine)
        self._make_room(record)
        with self._step(identity, "point exported"):
            export = self._export(record, point)
        crash_point(AFTER_EXPORT)
        with self._step(identity, "machine started"):
            spec = self._spec(record, point, export)
            asked = asked_of(self.fabric, spec, status.network)
            recovered = self._start(record, spec)
            crash_point(AFTER_BOOT)
            self._records.change(identity, recovered=recovered, asked=asked)
            booted_at = self.now()
            status = self._records.move(
                identity,
                FailoverEvent.BOOTED,
                booted_at=booted_at,
                injection=begun(status.settings, booted_at),
                console_log=recovered.console_log,
                **UNSEEN,
                error=None,
            ).status
        crash_point(AFTER_RECORD)
        text = f"{status.machine_name} runs at this site as {status.name}, from point {status.point}."
        self.emit("failover.completed", Severity.WARNING, text, status)

    def _make_room(self, record: FailoverRecord) -> None:
        """The machine's former copy here goes, once; nothing isolates what takes its place."""
        if self._hands.former is None or record.room_made:
            return
        status = record.status
        held = self._hands.former.get(status.machine)
        if held is not None and not self.found(record):  # else it was done before a crash
            with self._step(status.id, "room made"):
                disks = record.old_machine == "remove-with-disks"
                self._hands.former.make_room(status.machine, disks=disks)
        self._records.change(status.id, room_made=True)
        crash_point(ROOM_RECORDED)

    def _start(self, record: FailoverRecord, spec: RecoverySpec) -> Recovered:
        for found in self.found(record):
            if self.fabric.run_recovered(found):
                return found
            self.fabric.remove_recovered(found)
        return self.fabric.start_recovered(spec)

    def _spec(self, record: FailoverRecord, point: Point, export: ExportStatus) -> RecoverySpec:
        status = record.status
        definition = open_point_definition(self._hands.vault, point)
        mapping = with_pool(merge_mapping(definition.mapping, self._hands.mapping), self.fabric)
        wanted = Wanted(
            name=status.name,
            network=status.network,
            settings=status.settings or UNCHANGED,
            keep_identity=True,
            note=f"failover {status.id} of {status.machine_name}, point {point.number} ({point.given_at})",
            instance=f"{status.id}-{point.number}",
        )
        spec = spec_of(wanted, definition, mapping, export.disks)
        return replace(spec, goes_on=status.goes_on)

    def _export(self, record: FailoverRecord, point: Point) -> ExportStatus:
        status = record.status
        return self._hands.exports.begin(
            identity=record.export,
            machine=status.machine,
            machine_name=status.machine_name,
            point=point.number,
            disks={disk.id: disk.size_bytes for disk in point.disks},
            reason=f"failover {status.name}",
            socket_path=self._hands.socket_dir / f"fo-{status.id[:10]}-{point.number}.sock",
            bases=record.bases,
        )

    def found(self, record: FailoverRecord) -> list[Recovered]:
        """What the fabric has of it, also of a process that ended before it could write that down."""
        status = record.status
        return [
            each
            for each in self.fabric.recovered()
            if each.id == status.machine or (record.recovered is not None and each.id == record.recovered.id)
            or each.name == status.name
        ]  # fmt: skip

    # another point

    def change(self, identity: str) -> None:
        """Take down what runs on the former point; the record names the new one, and the state is CLAIMED."""
        record = self._records.get(identity)
        status = record.status
        crash_point(CHANGE_INTENDED)
        self._put_aside(record)
        crash_point(CHANGE_KEPT)
        point = self._hands.choose(status.machine, record.wanted)
        former = [number for number in (*status.points_tried, status.point) if number != point.number]
        with self._step(identity, "former export ended"):
            self._hands.exports.end(record.export)
        holder, reason = record.holder, "failed over"
        self._hands.pins.take(status.machine, point.number, holder=holder, reason=reason)
        crash_point(CHANGE_MOVED)
        assert status.claimed_at is not None, "changed after the claim only"
        lost = (moment(status.claimed_at) - moment(point.given_at)).total_seconds()
        if status.stop is not None and stopped_on(self._hands.journal(status.machine), point.number):
            lost = 0.0  # its source stood still since then, also where other points were tried meanwhile
        self._records.change(identity, recovered=None)
        self._records.move(
            identity,
            FailoverEvent.REMOVED,
            point=point.number,
            point_at=point.given_at,
            consistency=point.consistency,
            points_tried=tuple(dict.fromkeys(former)),
            loss_seconds=max(0.0, lost),
            booted_at=None,
            **UNSEEN,
        )

    def _put_aside(self, record: FailoverRecord) -> None:
        """The machine goes, what it wrote stays: nobody knows yet on which point the machine will be kept."""
        status = record.status
        booted_at = status.booted_at or status.claimed_at or status.requested_at
        label = f"p{status.point}-{moment(booted_at):%Y%m%d%H%M%S}-{status.id[:8]}"
        found = self.found(record)
        if record.recovered is None and found:
            # what it wrote is found again by this also once the host knows the machine no more
            record = self._records.change(status.id, recovered=found[0])
        gone = [record.recovered] if record.recovered is not None and not found else []
        with self._step(status.id, "machine removed, its writes kept"):
            files = [file for each in found or gone for file in self.fabric.keep_overlays(each, label)]
            crash_point(CHANGE_REMOVED)
            if files:
                made = FormerWrites(
                    point=status.point,
                    booted_at=booted_at,
                    kept_at=self.now(),
                    label=label,
                    files=tuple(file.path for file in files),
                    bytes=sum(file.bytes for file in files),
                )
                others = tuple(kept for kept in status.former_writes if kept.files != made.files)
                self._records.tell(status.id, former_writes=(*others, made))

    def remove_former(self, identity: str, point: int | None = None) -> None:
        """What it wrote on points it does not run on any more; on one of them, or on all."""
        for kept in self._records.get(identity).status.former_writes:
            if point in (None, kept.point):
                self.fabric.remove_kept(kept.files)
                left = self._records.get(identity).status.former_writes
                self._records.tell(identity, former_writes=tuple(each for each in left if each != kept))

    def _remove(self, record: FailoverRecord) -> None:
        with self._step(record.status.id, "machine removed"):
            for found in self.found(record):
                self.fabric.remove_recovered(found)

    # roll-back

    def roll_back(self, identity: str) -> None:
        """The machine goes first, then the source is the authority again, then what it stood on."""
        record = self._records.get(identity)
        status, hands = record.status, self._hands
        if not status.writer:
            raise WriterUnknown(machine=status.machine_name)
        crash_point(ROLL_BACK_INTENDED)
        self._remove(record)
        crash_point(ROLL_BACK_REMOVED)
        later = self.superseded(status)
        if later is None:
            with self._step(identity, "given back to its source"):
                claim = give_back(
                    hands.journal(status.machine),
                    to=status.writer,
                    operation=identity,
                    name=status.machine_name,
                    clock=hands.clock,
                )
            whose = f"{status.writer} is its writer again, from epoch {claim.epoch} on."
        else:  # what was taken over from us is not ours to give away
            whose = f"{later.claimant} took it over in epoch {later.epoch}, and stays its authority."
        crash_point(ROLL_BACK_CLAIMED)
        self._end_export(record)
        crash_point(ROLL_BACK_EXPORT)
        self.remove_former(identity)
        crash_point(ROLL_BACK_KEPT)
        hands.pins.release(status.machine, holder=record.holder)
        self._records.move(identity, FailoverEvent.ROLLED_BACK, ended_at=self.now(), error=None)
        text = f"The failover of {status.machine_name} was rolled back: {whose}"
        self.emit("failover.rolled-back", Severity.WARNING, text, status)

    def _end_export(self, record: FailoverRecord) -> None:
        with self._step(record.status.id, "export ended"):
            for export in self._hands.exports.all():
                if export.id.startswith(f"failover-{record.status.id}-"):
                    self._hands.exports.end(export.id)

    # commit

    def commit(self, identity: str) -> bool:
        """Make its disks plain, then let go of everything beneath. False when the gateway stops meanwhile."""
        record = self._records.get(identity)
        crash_point(COMMIT_INTENDED)
        if not record.flattened:
            if not self._flatten(record):
                return False
            record = self._records.change(identity, flattened=True)
        crash_point(COMMIT_FLATTENED)
        assert record.recovered is not None, "committed only where a machine runs"
        with self._step(identity, "a machine of this site"):
            self.fabric.settle_recovered(record.recovered, autostart=record.autostart)
        crash_point(COMMIT_SETTLED)
        self._end_export(record)
        crash_point(COMMIT_EXPORT)
        self.remove_former(identity)
        crash_point(COMMIT_KEPT)
        status = record.status
        self._hands.pins.release(status.machine, holder=record.holder)
        self._records.move(identity, FailoverEvent.COMMITTED, ended_at=self.now(), note="", error=None)
        crash_point(COMMIT_RECORDED)
        text = f"The failover of {status.machine_name} is committed: its disks are plain files of this site."
        self.emit("failover.committed", Severity.INFORMATION, text, status)
        self.deletion.run(identity)
        return True

    def _flatten(self, record: FailoverRecord) -> bool:
        hands, identity = self._hands, record.status.id
        assert record.recovered is not None, "committed only where a machine runs"
        told = ""
        with self._step(identity, "disks made plain"):
            while not hands.stop.is_set():
                try:
                    done = self.fabric.flatten(record.recovered, bytes_per_second=record.bytes_per_second)
                except SecondsiteError as error:  # it is off, or its hypervisor process died under the call
                    trouble = str(error)
                    self.restarts.look(identity, self.fabric)
                else:
                    trouble = done.error
                    self._tell_progress(identity, done.done_bytes, done.total_bytes, trouble)
                    if done.finished:
                        return True
                if trouble and trouble != told:
                    told = trouble
                    text = f"Copying the disks of {record.status.name} stopped and is begun again: {trouble}"
                    self._records.tell(identity, note=text)
                    self.emit("failover.flattening-stopped", Severity.WARNING, text, record.status)
                hands.clock.wait(hands.stop, FLATTEN_SECONDS)
        return False

    def _tell_progress(self, identity: str, done: int, total: int, note: str) -> None:
        status = self._records.get(identity).status
        if (status.flattened_bytes, status.total_bytes, status.note) != (done, total, note):
            self._records.tell(identity, flattened_bytes=done, total_bytes=total, note=note)

    # before the claim

    def let_go(self, record: FailoverRecord) -> None:
        """Of one that was never claimed: nothing stays."""
        self._hands.pins.release(record.status.machine, holder=record.holder)

    # small things

    def now(self) -> str:
        """As records carry it."""
        return self._hands.clock.utc().isoformat()

    def emit(self, code: str, severity: Severity, text: str, status: FailoverStatus) -> None:
        """Tell it, with whose it is."""
        self._hands.events.emit(code, severity, text, machine=status.machine, operation=status.id)

    @contextmanager
    def _step(self, identity: str, name: str) -> Iterator[None]:
        # a step done again after a crash replaces its first attempt
        before = tuple(step for step in self._records.get(identity).status.steps if step.name != name)
        step = Step(name=name, started_at=self.now())
        self._records.tell(identity, steps=(*before, step))
        yield
        ended = msgspec.structs.replace(step, ended_at=self.now())
        self._records.tell(identity, steps=(*before, ended))


def moment(text: str) -> datetime:
    """A time of a record."""
    return datetime.fromisoformat(text)


def told(error: SecondsiteError) -> dict[str, str]:
    """An error as records carry it."""
    return {key: str(value) for key, value in error.as_dict().items()}
