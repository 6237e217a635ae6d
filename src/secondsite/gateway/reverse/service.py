"""Reversing onto a held source: its site becomes the target of the machine that was taken over.

    off and guarded -> its own protection ended -> the other site claimed for -> former points dropped
    -> its disks offered as the beginning -> the other site compares with them, only differences travel

The claim is made here for the gateway that took the machine over: its epoch is above every one known, so that
whoever was left behind earlier is refused and held by later failovers as well. The old disks are only read;
they stay as they are until a failover of this site takes the machine's place (`failover`, `old_machine`), and
nobody starts the machine meanwhile: what it wrote last is on them alone.

Each step may be repeated; a gateway that ends anywhere goes on from the record. Taken back, the other site's
claim here is ended, and the machine is held as before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.workthreads import WorkThreads, named
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.messages.adopterrors import AdoptionUnknown
from secondsite.gateway.messages.adoption import ENDED, AdoptionState
from secondsite.gateway.messages.failover import HeldMachine
from secondsite.gateway.messages.failovererrors import MachineNotHeld
from secondsite.gateway.messages.reverse import ReversePreview, ReverseRequest, ReverseState, ReverseStatus
from secondsite.gateway.messages.reverseerrors import (
    MovedForGood,
    ReverseComplete,
    ReverseDefect,
    ReverseExists,
    ReverseUnknown,
)
from secondsite.gateway.messages.testfailover import Step
from secondsite.gateway.reverse.checks import (
    Looker,
    about_theirs,
    find_machine,
    images_of,
    require,
    theirs_of,
)
from secondsite.gateway.reverse.record import ReverseRecord, ReverseRecords
from secondsite.gateway.reverse.steps import Adopting, Protecting, ReverseSteps
from secondsite.journal.chain import Journal
from secondsite.model import confirmations
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import AUTHORITY, HELD_TABLE, HeldEvent, HeldState
from secondsite.model.ids import MachineId
from secondsite.model.reversals import reversed_onto
from secondsite.transfer.protocols import TargetHead

INTENDED = mark("reverse.intended")
BACK_INTENDED = mark("reverse.back-intended")

_WORKING = (ReverseState.INITIATED, ReverseState.ADOPTING, ReverseState.TAKING_BACK)
_OVER = (ReverseState.TAKEN_BACK,)
_Theirs = TargetHead | SecondsiteError | None


class Reversals:
    """Of one gateway with a fabric and a store that receives. Thread-safe; `resume` once, then `close`."""

    def __init__(
        self,
        *,
        fabric: Fabric,
        fencing: Fencing,
        protecting: Protecting,
        adoptions: Adopting,
        journal: Callable[[MachineId], Journal],
        forget: Callable[[MachineId], None],
        looker: Looker,
        base_dir: Path | None,
        state_dir: Path,
        clock: Clock,
        events: EventSink,
    ) -> None:
        """forget: whatever is known of a machine's points here is of what was.

        base_dir: images of former replicas below it are ours to remove.
        """
        self._fabric = fabric
        self._fencing = fencing
        self._protecting = protecting
        self._adoptions = adoptions
        self._journal = journal
        self._looker = looker
        self._events = events
        self._records = ReverseRecords(state_dir / "reversals")
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._threads = WorkThreads("reverse", self._stopped)
        self._steps = ReverseSteps(
            fabric=fabric,
            fencing=fencing,
            protecting=protecting,
            adoptions=adoptions,
            journal=journal,
            forget=forget,
            records=self._records,
            base_dir=base_dir,
            clock=clock,
            events=events,
            stop=self._stop,
        )

    def resume(self) -> None:
        """Go on with what the gateway before had begun."""
        found, damaged = self._records.all()
        for error in damaged:
            self._events.emit(error.code, Severity.CRITICAL, " ".join(error.sentences()))
        for record in found:
            if record.status.state in _WORKING:
                self._begin(record.status.machine)

    def close(self) -> None:
        """End our threads; the work goes on with the next gateway."""
        self._stop.set()
        self._threads.wait(seconds_max=10)

    # reading

    def get(self, machine: MachineId) -> ReverseStatus:
        """A machine's, as far as it is now. Raises ReverseUnknown."""
        record = self._records.get(machine)
        if record is None:
            raise ReverseUnknown(machine=machine)
        if record.status.state is not ReverseState.READY or record.status.ended_at is not None:
            return record.status
        with self._lock:
            return self._progress(record.status)

    def _progress(self, status: ReverseStatus) -> ReverseStatus:
        """Of one the other site may have begun with: how far its disks are sealed, and its first point."""
        with contextlib.suppress(AdoptionUnknown):
            found = self._adoptions.show(status.machine)
            note, sent = found.note, found.sent_bytes
            if found.state in ENDED and found.state is not AdoptionState.ADOPTED:
                note, sent = f"the old disks are not begun with ({found.state.value})", None
            status = msgspec.structs.replace(
                status,
                done_bytes=found.done_bytes,
                total_bytes=found.total_bytes,
                note=note,
                sent_bytes=sent,
            )
        point = self._journal(status.machine).head().point
        if point is None:
            return status
        text = f"{status.writer} protects {status.name} to this site: point {point.number} is its first seen."
        self._steps.tell("reverse.complete", status, text, Severity.INFORMATION)
        return self._records.tell(
            status.machine,
            point=point.number,
            done_bytes=status.done_bytes,
            total_bytes=status.total_bytes,
            sent_bytes=status.sent_bytes,
            note="",
            ended_at=self._steps.now(),
        )

    def preview(self, machine: MachineId) -> ReversePreview:
        """What it would do, and what would be in its way. Raises MachineNotHeld, MachineGone, DisksGone."""
        held = self._held(machine)
        return self._preview(held, theirs_of(self._protecting.ways(), held))

    def _preview(self, held: HeldMachine, theirs: _Theirs) -> ReversePreview:
        if held.final:
            raise MovedForGood(machine=held.name, site=held.claimant)
        found = find_machine(self._fabric, held)
        images = images_of(found, held)
        return ReversePreview(
            machine=held.machine,
            name=held.name,
            writer=held.claimant,
            epoch_floor=max(_known(held.epoch, theirs), self._journal(held.machine).head().epoch),
            total_bytes=sum(disk.size_bytes for disk in found.disks if disk.id in images),
            confirm=reversed_onto(held.name),
            checks=(
                about_theirs(held, theirs),
                *self._looker.look(held, found, self._journal(held.machine)),
            ),
        )

    def _held(self, machine: MachineId) -> HeldMachine:
        held = self._fencing.get(machine)
        if held is None or HeldEvent.REVERSED not in HELD_TABLE[held.state]:
            raise MachineNotHeld(machine=held.name if held is not None else machine)
        return held

    # what is asked for

    def start(self, machine: MachineId, request: ReverseRequest) -> ReverseStatus:
        """Begin, or go on: the same operation is begun where it had stopped.

        Raises what `preview` does, ReverseExists, ReverseRefused, ConfirmationMissing: nothing was done.
        """
        with self._lock:
            held, record = self._held(machine), self._records.get(machine)
            if record is not None and self._stands(record.status, held):
                return self._again(record, request)
            theirs = theirs_of(self._protecting.ways(), held)
            seen = self._preview(held, theirs)
            require(held.name, seen.checks)
            why = "The machine is switched off, and what it wrote last is on its disks alone."
            confirmations.require(held.name, request.confirm, seen.confirm, why)
            status = ReverseStatus(
                operation=request.operation,
                machine=machine,
                name=held.name,
                state=ReverseState.INITIATED,
                writer=held.claimant,
                requested_at=self._steps.now(),
                requested_by=request.requested_by,
                total_bytes=seen.total_bytes,
                epoch_floor=seen.epoch_floor,
            )
            images = images_of(find_machine(self._fabric, held), held)
            protection = self._protecting.protection(machine)
            self._records.save(
                ReverseRecord(
                    status=status,
                    images=images,
                    protection=protection,
                    holding=self._holds(machine),
                    known=_known(held.known(), theirs),
                )
            )
            crash_point(INTENDED)
            self._begin(machine)
            return status

    def _holds(self, machine: MachineId) -> bool:
        """Whether a source of before, which heard of nothing yet, is held by what the store here says."""
        head = self._journal(machine).head()
        if head.claim is None:  # it has lost that record, and may have said so
            return head.epoch > 0
        return head.claim.reason in AUTHORITY

    @staticmethod
    def _stands(status: ReverseStatus, held: HeldMachine) -> bool:
        """Whether a reversal is of this hold: an earlier one's machine was replaced, and taken over again."""
        return status.state not in _OVER and (
            held.state is HeldState.REVERSED or status.requested_at >= held.held_at
        )

    def _again(self, record: ReverseRecord, request: ReverseRequest) -> ReverseStatus:
        status = record.status
        if status.operation != request.operation:
            raise ReverseExists(machine=status.name, state=status.state.value, operation=status.operation)
        if status.state is ReverseState.FAILED and not self._threads.busy(status.machine):
            self._records.tell(status.machine, state=ReverseState.INITIATED, error=None, note="")
            self._begin(status.machine)
        return self.get(status.machine)

    def take_back(self, machine: MachineId) -> ReverseStatus:
        """Hold the machine as before. Raises ReverseUnknown, ReverseComplete."""
        with self._lock:
            status = self.get(machine)
            if status.state in (ReverseState.TAKING_BACK, *_OVER):
                if status.state is ReverseState.TAKING_BACK and not self._threads.busy(machine):
                    self._begin(machine)
                return status
            self._steps.require_not_complete(status)
            status = self._records.tell(machine, state=ReverseState.TAKING_BACK, error=None, note="")
            self._threads.wait(machine)  # it sees that it is to end before each step
            crash_point(BACK_INTENDED)
            self._begin(machine)
            return status

    # the steps

    def _begin(self, machine: MachineId) -> None:
        self._threads.begin(machine, lambda: self._work(machine))

    def _stopped(self, identity: str, error: Exception) -> None:
        self._failed(MachineId(identity), named(error, identity, ReverseDefect))

    def _work(self, machine: MachineId) -> None:
        status = self._records.status(machine)
        back = status.state is ReverseState.TAKING_BACK
        for name, step, passed in self._steps.back() if back else self._steps.forth():
            now = self._records.status(machine)
            if self._stop.is_set() or now.state not in _WORKING:
                return
            if back is not (now.state is ReverseState.TAKING_BACK):
                return
            with self._step(machine, name):
                if not step(now):
                    return  # the gateway ends, or it is taken back
            crash_point(passed)

    # small things

    def _failed(self, machine: MachineId, error: SecondsiteError) -> None:
        told = {key: str(value) for key, value in error.as_dict().items()}
        status = self._records.status(machine)
        state = ReverseState.FAILED
        if isinstance(error, ReverseComplete):
            state = ReverseState.READY  # the other site was quicker
        elif status.state is ReverseState.TAKING_BACK:
            state = status.state
        status = self._records.tell(machine, state=state, error=told)
        text = f"The reversal of {status.name} could not go on: {' '.join(error.sentences())}"
        self._steps.tell("reverse.failed", status, text, Severity.CRITICAL)

    def _tell(self, code: str, status: ReverseStatus, text: str, severity: Severity) -> None:
        self._events.emit(code, severity, text, machine=status.machine, operation=status.operation)

    @contextmanager
    def _step(self, machine: MachineId, name: str) -> Iterator[None]:
        before = tuple(step for step in self._records.status(machine).steps if step.name != name)
        step = Step(name=name, started_at=self._steps.now())
        self._records.tell(machine, steps=(*before, step))
        yield
        self._records.tell(
            machine, steps=(*before, msgspec.structs.replace(step, ended_at=self._steps.now()))
        )


def _known(here: int, theirs: _Theirs) -> int:
    """Of an epoch and that of the other site's journal the higher; its writer looks at its own store too."""
    return max(here, theirs.epoch) if isinstance(theirs, TargetHead) else here
