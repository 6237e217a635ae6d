"""Failovers of one site: looked at before, begun, moved to another point, committed, rolled back.

Every call is idempotent under the caller's number of the operation: a job of a server may repeat any of them
after it lost an answer. What takes long happens in a thread and shows in the record.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.common.resolving import Unresolved
from secondsite.gateway.common.workthreads import WorkThreads
from secondsite.gateway.failover.calledoff import CalledOff
from secondsite.gateway.failover.checks import look, require
from secondsite.gateway.failover.claim import check_free, writer_of
from secondsite.gateway.failover.former import Former, about_former, answered
from secondsite.gateway.failover.guests import FailoverGuests
from secondsite.gateway.failover.looks import Rights, look_at_authority, look_at_names, look_at_replica
from secondsite.gateway.failover.noted import EndsNoted
from secondsite.gateway.failover.record import FailoverRecord, FailoverRecords, guests_of
from secondsite.gateway.failover.run import FailoverRunner, Hands
from secondsite.gateway.failover.said import before_commit, label_of, require_decided, require_said
from secondsite.gateway.failover.timer import BY_ITSELF, FailoverTimers, commit_of, roll_back_of, timer_of
from secondsite.gateway.messages.failover import (
    CancelTimer,
    ChangePoint,
    CommitFailover,
    FailoverPreview,
    FailoverStatus,
    FailoverTimer,
    LookAtFailover,
    RemoveFormer,
    RollBackFailover,
    StartFailover,
    TimerAction,
)
from secondsite.gateway.messages.failovererrors import (
    FailoverDiffers,
    FailoverExists,
    FailoverInterrupted,
    FailoverUnknown,
)
from secondsite.gateway.messages.protecterrors import FailoverOpen
from secondsite.gateway.messages.testfailover import InjectionStatus
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.injecting import Guest, Injector, NotStanding
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.recovery.recoveredspec import Wanted
from secondsite.gateway.target.pins import Pins
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model import confirmations
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import MIGRATED, PASSING, FailoverEvent, FailoverState, after
from secondsite.model.ids import MachineId
from secondsite.model.machines import Mapping
from secondsite.model.points import Claim, Point
from secondsite.model.recovered import UNCHANGED


class Failovers:
    """Of one gateway. Thread-safe; `resume` once, after the exports were."""

    def __init__(
        self,
        *,
        us: str,
        store: ObjectStore,
        vault: VaultKey,
        exports: Exports,
        recovery: Recovery,
        state_dir: Path,
        socket_dir: Path,
        fabric: Fabric | None,
        mapping: Mapping,
        clock: Clock,
        events: EventSink,
        base_dir: Path | None = None,
        former: Former | None = None,
        names: Unresolved = lambda: (),
    ) -> None:
        """us: this gateway's name, as certificates and claims carry it; the rest as for `Recovery`.

        base_dir: where images that replicas stand on are ours to remove. former: who knows of machines that
        were taken over elsewhere, and of their copies here; None: there are none. names: of other hosts, that
        do not resolve here.
        """
        self._stop = threading.Event()
        self._records = FailoverRecords(state_dir / "failovers")
        self._hands = Hands(
            us=us,
            records=self._records,
            exports=exports,
            pins=Pins(store, vault, recovery.journal),
            vault=vault,
            socket_dir=socket_dir,
            fabric=fabric,
            mapping=mapping,
            clock=clock,
            events=events,
            journal=recovery.journal,
            choose=recovery.point_of,
            stop=self._stop,
            base_dir=base_dir,
            former=former,
        )
        self._runner = FailoverRunner(self._hands)
        self.guests = FailoverGuests(self._records, fabric, clock, events)
        self._timers = FailoverTimers(self._records, clock, events, self._act_by_itself)
        self._lock = threading.RLock()
        self._called_off = CalledOff()
        self._rights, self._names = Rights(clock), names
        self.injector: Injector | None = None
        self._ends = EndsNoted(self._records, self._runner, clock)
        self._threads = WorkThreads("failover", self._ends.failed)
        self._resumed = False

    @property
    def records(self) -> FailoverRecords:
        """Of all of them; changed by what follows a commit as well (`kept`)."""
        return self._records

    def before_each_run(self, call: Callable[[MachineId], None]) -> None:
        """Have it called before a machine is started here that was taken over."""
        self._runner.about_to_run = call

    def require_settled(self, machine: MachineId) -> None:
        """Raise FailoverOpen where a failover of it stands here: it is protected once that is committed."""
        standing = self._records.standing(machine)
        if standing is not None:
            raise FailoverOpen(machine=standing.status.name, state=standing.status.state.value)

    def is_committed(self, claim: Claim) -> bool:
        """Whether it was made by a failover of this gateway that is committed, or says so itself."""
        try:
            return claim.reason == MIGRATED or self.get(claim.nonce).state is FailoverState.COMMITTED
        except SecondsiteError:
            return False

    def delete_points(self, identity: str) -> bool:
        """Of a committed one, as far as it goes now; True once nothing is left of them."""
        return self._runner.deletion.run(identity)

    # life

    def resume(self) -> None:
        """Go on where the gateway before ended; what it had not claimed it gives up."""
        for error in self._records.damaged():
            self._hands.events.emit(error.code, Severity.CRITICAL, " ".join(error.sentences()))
        for record in self._records.all():
            status = record.status
            if status.state is FailoverState.INITIATED:
                self._threads.begin(status.id, functools.partial(self._settle_initiated, status.id))
            elif status.state in PASSING:
                self._threads.begin(status.id, self._work_of(status))
            elif status.state is FailoverState.CLAIMED and status.error is None:
                self._threads.begin(status.id, functools.partial(self._runner.boot, status.id))
        self._resumed = True
        self.tick()

    def export_restored(self, export: str) -> None:
        """See `recover.GuestWatch`."""
        self.guests.export_restored(export)

    def resume_guests(self) -> None:
        """See `recover.GuestWatch`."""
        try:
            self.guests.resume_guests()
        finally:
            self.tick()

    def tick(self) -> None:
        """Look what is due by now and begin it; called again and again, and cheap.

        Raises at its end what the last look at one of them raised: no failover holds up another one.
        """
        trouble: Exception | None = None
        for record in self._records.all() if self._resumed else ():
            try:
                self._look(record)
            except (SecondsiteError, OSError) as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def _look(self, record: FailoverRecord) -> None:
        identity = record.status.id
        if self._threads.busy(identity):
            return
        if self._ends.due(identity):
            self._threads.begin(identity, functools.partial(self._ends.note, identity))
            return
        if self._runner.deletion.due(record):
            self._threads.begin(identity, functools.partial(self._runner.deletion.run, identity))
        with self._lock:  # nobody decides meanwhile that the machine goes
            if not self._threads.busy(identity):
                self._runner.restarts.look(identity, self._hands.fabric)
        self._timers.look(record)

    def _act_by_itself(self, status: FailoverStatus, action: TimerAction) -> None:
        if action is TimerAction.COMMIT:
            self.commit(status.id, commit_of(status))
        else:
            self.roll_back(status.id, roll_back_of(status))

    def cancel_timer(self, identity: str, request: CancelTimer) -> FailoverStatus:
        """Leave the decision to people."""
        return self._timers.cancel(identity, request.requested_by)

    def close(self) -> None:
        """End our threads; machines and exports go on, and so does the work with the next gateway."""
        self._stop.set()
        if self.injector is not None:
            self.injector.close()
        self._threads.wait(seconds_max=10)

    def _settle_initiated(self, identity: str) -> None:
        """It goes on only if the claim was made: hours may have passed, and the source worked on."""
        status = self._records.get(identity).status
        if self._runner.claim_in_force(status) is None:
            raise FailoverInterrupted(machine=status.machine_name)
        self._run(identity)

    # reading

    def all(self) -> list[FailoverStatus]:
        """Standing and past ones, oldest first."""
        return [record.status for record in self._records.all()]

    def get(self, wanted: str) -> FailoverStatus:
        """One of them. Raises FailoverUnknown."""
        return self._records.get(wanted).status

    def preview(self, machine: MachineId, asked: LookAtFailover) -> FailoverPreview:
        """What it would do and cost now, and all that is looked at. Raises NoSuchPoint, InvalidInput."""
        seen, hands, now = self._preview(machine, asked), self._hands, self._hands.clock.utc()
        journal = hands.journal(machine)
        point, ours = journal.point(seen.point), self._records.standing(machine) is not None
        checks = [*look_at_replica(journal, hands.vault, point, now)]
        checks += look_at_authority(journal.head(), point, ours=ours, now=now)
        checks += [look_at_names(self._names()), *self._rights.look(hands.fabric)]
        return msgspec.structs.replace(seen, checks=(*seen.checks, *checks))

    def _preview(self, machine: MachineId, asked: LookAtFailover) -> FailoverPreview:
        """What has to be known of it. Its point is not read: that is the export's to do, once."""
        point = self._hands.choose(machine, asked.point)
        journal = self._hands.journal(machine)
        writer = writer_of(journal, journal.head())
        hands, settings = self._hands, asked.settings or UNCHANGED
        name = asked.name or settings.name or ""
        wanted = Wanted(name=name, network=asked.network, settings=settings, keep_identity=True)
        outlook, checks = look(hands.fabric, hands.vault, hands.mapping, point, wanted)
        return FailoverPreview(
            machine=machine,
            machine_name=point.machine_name,
            point=point.number,
            point_at=point.given_at,
            consistency=point.consistency,
            expected_loss_seconds=self._age(point),
            writer=writer,
            confirm=confirmations.taken_over(point.machine_name, writer),
            checks=about_former(checks, self._hands.fabric, self._hands.former, machine, point.machine_name),
            settings=asked.settings,
            outlook=outlook,
        )

    def _age(self, point: Point) -> float:
        return max(0.0, (self._hands.clock.utc() - parse_time(point.given_at)).total_seconds())

    # what is asked for

    def start(self, machine: MachineId, request: StartFailover) -> FailoverStatus:
        """Check, record and begin; asked again: the same one, begun again where it had stopped."""
        with self._lock:
            self._called_off.refuse(request.operation)
            earlier = self._earlier(machine, request)
            if earlier is not None and earlier.status.state is not FailoverState.FAILED:
                return self._again(earlier)
            standing = self._records.standing(machine)
            if standing is not None:
                status = standing.status
                raise FailoverExists(
                    machine=status.machine_name,
                    id=status.id,
                    point=status.point,
                    state=status.state.value,
                )
            asked = LookAtFailover(
                point=request.point, network=request.network, name=request.name, settings=request.settings
            )
            seen = self._preview(machine, asked)
            check_free(self._hands.journal(machine).head(), seen.machine_name)
            require(seen.machine_name, answered(seen.checks, request.old_machine))
            require_said(request, seen)
            timer = timer_of(request, seen.machine_name)
            record = self._record(machine, request, seen, timer)
            self._records.save(record)
            self._threads.begin(request.operation, lambda: self._run(request.operation))
            return record.status

    def call_off(self, operation: str) -> FailoverStatus:
        """Have one never begin that has not (raises FailoverUnknown); else this is how far it is."""
        with self._lock:
            try:
                return self._records.get(operation).status
            except FailoverUnknown:
                self._called_off.add(operation)
                raise

    def _earlier(self, machine: MachineId, request: StartFailover) -> FailoverRecord | None:
        found = [record for record in self._records.all() if record.status.id == request.operation]
        for record in found:
            status = record.status
            same = (machine, request.kind, request.network) == (status.machine, status.kind, status.network)
            if not same or (request.name, request.settings) != (record.name_asked, status.settings):
                raise FailoverDiffers(id=status.id, machine=status.machine_name, point=status.point)
            return record
        return None

    def _again(self, record: FailoverRecord) -> FailoverStatus:
        """A claimed one whose machine did not come up is tried again; everything else goes its way."""
        status = record.status
        if status.state is FailoverState.INITIATED and not self._threads.busy(status.id):
            self._threads.begin(status.id, functools.partial(self._settle_initiated, status.id))
        if status.state is FailoverState.CLAIMED and not self._threads.busy(status.id):
            self._records.tell(status.id, error=None)
            self._threads.begin(status.id, lambda: self._runner.boot(status.id))
        return self._records.get(status.id).status

    def _record(
        self,
        machine: MachineId,
        request: StartFailover,
        seen: FailoverPreview,
        timer: FailoverTimer | None,
    ) -> FailoverRecord:
        status = FailoverStatus(
            id=request.operation,
            machine=machine,
            machine_name=seen.machine_name,
            name=seen.outlook.name if seen.outlook is not None else request.name or seen.machine_name,
            kind=request.kind,
            state=FailoverState.INITIATED,
            point=seen.point,
            point_at=seen.point_at,
            consistency=seen.consistency,
            network=request.network,
            requested_at=self._runner.now(),
            requested_by=request.requested_by,
            writer=seen.writer,
            expected_loss_seconds=seen.expected_loss_seconds,
            settings=request.settings,
            timer=timer,
        )
        return FailoverRecord(
            status=status,
            wanted=request.point,
            autostart=request.autostart,
            name_asked=request.name,
            old_machine=request.old_machine,
            bytes_per_second=request.bytes_per_second,
        )

    # what was set for its guest

    def settings_guests(self) -> list[Guest]:
        """Machines that were taken over and have something to take."""
        return guests_of(self._records)

    def note_injection(self, identity: str, injection: InjectionStatus) -> None:
        """How far its guest is."""
        self._records.tell(identity, injection=injection)

    def bring_in_again(self, identity: str) -> InjectionStatus:
        """Into the guest of a failover or a test failover. Raises NotStanding."""
        if self.injector is None:
            raise NotStanding(name=f"the machine of operation {identity[:32]}")
        return self.injector.again(identity)

    def change_point(self, identity: str, request: ChangePoint) -> FailoverStatus:
        """Run on another point. What the machine wrote here is lost, and that has to be said."""
        with self._lock:
            status = self._at_rest(identity)
            point = self._hands.choose(status.machine, request.point)
            running = status.state in (FailoverState.CLAIMED, FailoverState.COMPLETED)
            there = status.point == point.number and request.with_writes == (status.goes_on is not None)
            if running and there and status.error is None:
                return status  # asked again: it is on that point, or on its way to it
            after(status.state, FailoverEvent.CHANGE_ASKED, status.machine_name)
            why = f"The machine runs on point {status.point}; its writes since lie on that point alone."
            require_decided(status, request.confirm, confirmations.lost, why)
            goes_on = label_of(status, point.number) if request.with_writes else None
            self._records.change(identity, wanted=str(point.number))
            moved = self._records.move(identity, FailoverEvent.CHANGE_ASKED, goes_on=goes_on, error=None)
            self._threads.begin(identity, self._work_of(moved.status))
            return moved.status

    def commit(self, identity: str, request: CommitFailover) -> FailoverStatus:
        """Keep it. Refused unless the machine is seen to run."""
        with self._lock:
            status = self._at_rest(identity)
            if status.state in (FailoverState.COMMITTING, FailoverState.COMMITTED):
                return self._continued(status)
            after(status.state, FailoverEvent.COMMIT_ASKED, status.machine_name)
            record = self._records.get(identity)
            self._runner.require_in_force(status)
            by_itself = request.requested_by == BY_ITSELF
            differs = self.guests.require_verified(record, by_itself=by_itself)
            require_decided(status, request.confirm, confirmations.kept, before_commit(differs))
            rate = request.bytes_per_second or record.bytes_per_second
            self._records.change(identity, bytes_per_second=rate)
            moved = self._records.move(
                identity,
                FailoverEvent.COMMIT_ASKED,
                ended_by=request.requested_by,
                delete_points=request.delete_points,
                error=None,
            )
            self._threads.begin(identity, self._work_of(moved.status))
            return moved.status

    def roll_back(self, identity: str, request: RollBackFailover) -> FailoverStatus:
        """Undo it: the machine here goes, its source is the authority again."""
        with self._lock:
            status = self._at_rest(identity)
            if status.state in (FailoverState.ROLLING_BACK, FailoverState.ROLLED_BACK):
                return self._continued(status)
            after(status.state, FailoverEvent.ROLL_BACK_ASKED, status.machine_name)
            why = "The machine that runs here is removed, with all it wrote since it was taken over."
            require_decided(status, request.confirm, confirmations.lost, why)
            moved = self._records.move(
                identity, FailoverEvent.ROLL_BACK_ASKED, ended_by=request.requested_by, error=None
            )
            self._threads.begin(identity, self._work_of(moved.status))
            return moved.status

    def remove_former(self, identity: str, request: RemoveFormer) -> FailoverStatus:
        """Give up what it wrote on former points, which a commit or a roll-back would do as well."""
        with self._lock:
            status = self._at_rest(identity)
            if all(request.point not in (None, kept.point) for kept in status.former_writes):
                return status  # asked again
            why = "Until the failover is committed or rolled back the machine can be wanted as it was there."
            require_decided(status, request.confirm, confirmations.former, why)
            self._runner.remove_former(identity, request.point)
            return self._records.get(identity).status

    def _at_rest(self, identity: str) -> FailoverStatus:
        """Its status once the step at hand is over; a commit, or a roll-back, is not waited for."""
        status = self._records.get(identity).status
        if status.state not in (
            FailoverState.COMMITTING,
            FailoverState.COMMITTED,
            FailoverState.ROLLING_BACK,
        ):
            self._threads.wait(identity)
        return self._records.get(identity).status

    def _continued(self, status: FailoverStatus) -> FailoverStatus:
        """Asked again: what stopped with an error is begun again."""
        if status.state in PASSING and not self._threads.busy(status.id):
            self._records.tell(status.id, error=None)
            self._threads.begin(status.id, self._work_of(status))
        return self._records.get(status.id).status

    # work

    def _run(self, identity: str) -> None:
        self._runner.take_over(identity)
        self._runner.boot(identity)

    def _work_of(self, status: FailoverStatus) -> Callable[[], None]:
        identity = status.id

        def change() -> None:
            self._runner.change(identity)
            self._runner.boot(identity)

        def commit() -> None:
            self._runner.commit(identity)

        def roll_back() -> None:
            self._runner.roll_back(identity)

        works = {
            FailoverState.CHANGING: change,
            FailoverState.COMMITTING: commit,
            FailoverState.ROLLING_BACK: roll_back,
        }
        return works[status.state]
