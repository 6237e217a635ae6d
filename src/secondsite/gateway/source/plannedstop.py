"""Stopping a source in order, so that it can be moved with nothing lost: shut down, last changes, proof.

    shut down (agent, power button, time limit, then asked) -> isolated -> last point -> proof -> off

The last changes of a guest are those of its shutdown, when the hypervisor that tracks them has ended. So the
machine is started again without executing anything (its processors stand still, its links are down): the
same capture as ever reads the last increment, and nothing can be written meanwhile or after. It is isolated
from before that on: from the last point until the other site has claimed it, nobody lets it write unnoticed.

The proof reads all of its disks once more, while nothing executes, and compares their fingerprints with those
the target computed from what it holds.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from secondsite.base import files
from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.fabrics.base import Fabric, Quiesce, Source
from secondsite.fabrics.errors import SourceBusy
from secondsite.gateway.common.workthreads import WorkThreads, named
from secondsite.gateway.messages.failover import HeldMachine, PlannedStop, PlannedStopStatus
from secondsite.gateway.messages.failovererrors import (
    AlreadyTakenOver,
    FailoverDefect,
    PlannedStopExists,
    PlannedStopRefused,
    PlannedStopUnknown,
    SourceDiffers,
)
from secondsite.gateway.messages.testfailover import Step
from secondsite.journal.digests import combine, digest_sub_blocks, fingerprint_text
from secondsite.journal.keys import DiskKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import HeldState
from secondsite.model.ids import DiskId, MachineId, machine_id
from secondsite.model.machines import PowerState
from secondsite.transfer.protocols import CommittedPoint, Link, StopNote, TargetHead

log = logging.getLogger(__name__)

SHUT_DOWN = mark("planned.shut-down")
ISOLATED = mark("planned.isolated")
LAST_POINT = mark("planned.last-point")
PROVED = mark("planned.proved")
NOTED = mark("planned.noted")
VOIDED = mark("cancel-stop.voided")

POLL_SECONDS = 0.2
RECORD_BYTES_MAX = 64 * 1024
# A source whose capture is busy (a cycle that is just ending) is asked again for so long.
BUSY_SECONDS_MAX = 60.0
SHUTTING_DOWN, WAITING, LAST, PROVING = "ShuttingDown", "Waiting", "LastChanges", "Proving"
COMPLETED, CANCELLED, FAILED = "Completed", "Cancelled", "Failed"
_PASSING = (SHUTTING_DOWN, LAST, PROVING)
_ELSEWHERE = (HeldState.HELD, HeldState.RELEASED, HeldState.DISCARDED, HeldState.REVERSED)


class Stoppable(Protocol):
    """Of what this gateway protects: what a stop needs of it (`runtime.Protections`)."""

    def ways(self) -> list[tuple[MachineId, str, Link]]:
        """Machine, name and the way to its target."""

    def source(self, machine: MachineId) -> Source:
        """The machine, opened. Raises NotProtected and what the fabric raises."""

    def data_key(self, machine: MachineId, disk: DiskId) -> DiskKey:
        """What the disk's fingerprints are made with."""

    def hindrance(self, machine: MachineId) -> str:
        """Why its next change would not become a point soon; empty where nothing is known of that."""

    def hurry(self, machine: MachineId) -> None:
        """Run its next cycle now."""

    def drain(self, machine: MachineId) -> bool:
        """Begin no cycle of it; True once nothing that was captured is left to be committed."""

    def rest(self, machine: MachineId) -> None:
        """End its loop, and begin none until `begin_again`."""

    def begin_again(self, machine: MachineId) -> None:
        """Let its loop find out anew where it stands."""


class PlannedStops:
    """Of one gateway. Thread-safe; `resume` once, `close` at the end."""

    def __init__(
        self,
        protected: Stoppable,
        fabric: Fabric,
        *,
        us: str,
        state_dir: Path,
        autostart: bool,
        clock: Clock,
        events: EventSink,
    ) -> None:
        """us: as claims name this gateway. autostart: machines may be kept from starting with their host."""
        self._protected = protected
        self._fabric = fabric
        self._us = us
        self._directory = state_dir / "planned"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.remove_leftovers(self._directory)
        self._autostart = autostart
        self._clock = clock
        self._events = events
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._threads = WorkThreads("planned", self._stopped)
        # what is on record of a machine that was taken over elsewhere
        self.held: Callable[[MachineId], HeldMachine | None] = lambda _: None

    def resume(self) -> None:
        """Go on with what the gateway before had begun; what it had stopped stays so."""
        for status in self.all():
            if status.state == COMPLETED and self._fabric.isolated(status.machine) is not None:
                self._protected.rest(status.machine)
            elif status.state == CANCELLED and self._fabric.isolated(status.machine) is not None:
                self._threads.begin(status.machine, functools.partial(self._let_run, status))
            elif status.state in _PASSING:
                asked = PlannedStop(
                    operation=status.operation,
                    seconds_max=status.seconds_max,
                    power_off=status.power_off,
                    prove=status.prove,
                )
                self._begin(status.machine, asked)

    def close(self) -> None:
        """End our threads; the work goes on with the next gateway."""
        self._stop.set()
        self._threads.wait(seconds_max=10)

    def protected(self) -> list[tuple[MachineId, str, Link]]:
        """What can be stopped."""
        return self._protected.ways()

    def all(self) -> list[PlannedStopStatus]:
        """The newest of each machine, by name."""
        found = []
        for path in self._directory.glob("[0-9a-f]*.json"):
            status = self._read(machine_id(path.stem))
            if status is not None:
                found.append(status)
        return sorted(found, key=lambda status: (status.name, status.machine))

    def get(self, machine: MachineId) -> PlannedStopStatus:
        """A machine's. Raises PlannedStopUnknown."""
        status = self._read(machine)
        if status is None:
            raise PlannedStopUnknown(machine=machine)
        return status

    def start(self, machine: MachineId, name: str, request: PlannedStop) -> PlannedStopStatus:
        """Begin, or go on: the same operation is begun where it had stopped. Raises PlannedStopExists."""
        with self._lock:
            runs, status = self._runs(machine), self._read(machine)
            if status is not None and status.operation != request.operation:
                if runs or status.state in (*_PASSING, WAITING):
                    raise PlannedStopExists(machine=name, operation=status.operation, state=status.state)
                status = None
            if status is not None and (runs or status.state == COMPLETED):
                return status
            if status is None:
                self._require_ready(machine, name)
                status = PlannedStopStatus(
                    operation=request.operation,
                    machine=machine,
                    name=name,
                    state=SHUTTING_DOWN,
                    requested_at=self._now(),
                )
            begun = msgspec.structs.replace(
                status,
                state=SHUTTING_DOWN,
                seconds_max=request.seconds_max,
                power_off=request.power_off,
                prove=request.prove,
                error=None,
                note="",
            )
            self._save(begun)
            self._begin(machine, request)
            return self.get(machine)

    def cancel(self, machine: MachineId) -> PlannedStopStatus:
        """Let the machine run again and be replicated as before, as long as nobody has taken it over."""
        with self._lock:
            runs, status = self._runs(machine), self.get(machine)
            if runs:
                raise PlannedStopExists(machine=status.name, operation=status.operation, state=status.state)
            if status.state != CANCELLED or self._fabric.isolated(machine) is not None:
                self._let_run(status)
            return self.get(machine)

    def _let_run(self, status: PlannedStopStatus) -> None:
        """Repeated where it did not get to its end. Raises AlreadyTakenOver, what link and fabric raise."""
        self._require_ours(status.machine, status.name)
        self._change(status.machine, state=CANCELLED, note="", error=None)
        try:
            # told first, then looked at: who claims it does so the other way round (`target.stops`)
            self._note_stop(status.machine, status.operation, 0)
            crash_point(VOIDED)
            self._require_ours(status.machine, status.name)
        except AlreadyTakenOver:
            self._save(status)
            raise
        self._fabric.lift_isolation(status.machine, run=True)
        self._protected.begin_again(status.machine)

    def _require_ready(self, machine: MachineId, name: str) -> None:
        """Raise PlannedStopRefused, or what the link raises, before a running machine is asked anything."""
        self._require_not_held(machine)
        why = self._protected.hindrance(machine)
        if not why and self._head(machine) is None:
            why = "its target has no point of it yet"
        if why:
            raise PlannedStopRefused(machine=name, why=why)

    def _runs(self, machine: MachineId) -> bool:
        """Whether a step of it is being done; one that has come to its end is waited for."""
        if not self._threads.busy(machine):
            return False
        status = self._read(machine)
        if status is not None and status.state in _PASSING:
            return True
        self._threads.wait(machine)
        return False

    def _require_ours(self, machine: MachineId, name: str) -> TargetHead:
        """Where its journal stands.

        Raises AlreadyTakenOver where the other site has claimed it; what the link raises, if it is cut.
        """
        self._require_not_held(machine)
        head = self._target(machine)
        if head.claimant not in (None, self._us):
            raise AlreadyTakenOver(
                machine=name, claimant=head.claimant, epoch=head.epoch, claimed_at="see its record"
            )
        return head

    def _require_not_held(self, machine: MachineId) -> None:
        """Raise AlreadyTakenOver also where a site claimed it that is not its target any more."""
        held = self.held(machine)
        if held is not None and held.state in _ELSEWHERE:
            raise AlreadyTakenOver(
                machine=held.name, claimant=held.claimant, epoch=held.epoch, claimed_at=held.claimed_at
            )

    # the steps

    def _begin(self, machine: MachineId, request: PlannedStop) -> None:
        self._threads.begin(machine, lambda: self._run(machine, request))

    def _stopped(self, identity: str, error: Exception) -> None:
        self._failed(MachineId(identity), named(error, identity, FailoverDefect))

    def _run(self, machine: MachineId, request: PlannedStop) -> None:
        source = self._protected.source(machine)
        if self._fabric.isolated(machine) is None and not self._shut_down(source, machine, request):
            return
        crash_point(SHUT_DOWN)
        self._change(machine, state=LAST)
        why = f"it was stopped to be moved (operation {request.operation})"
        self._fabric.isolate(machine, why=why, autostart=self._autostart)
        crash_point(ISOLATED)
        since = self._now()
        self._protected.begin_again(machine)  # in case it rests from an earlier attempt
        with self._step(machine, "last changes carried over"):
            self._fabric.hold_open(machine)
            point = self._last_point(machine, since, frozenset(source.checkpoints()))
            if point is None or not self._drained(machine):
                return  # the gateway ends; the next one goes on
            self._protected.rest(machine)
            point = self._head(machine) or point
        self._change(machine, point=point.number, point_at=point.given_at)
        crash_point(LAST_POINT)
        if request.prove:
            self._change(machine, state=PROVING)
            with self._step(machine, "proved by hash"):
                self._prove(source, machine, point)
        crash_point(PROVED)
        self._fabric.power_off(machine)
        if not self._note(machine, request.operation, point):
            return  # the gateway ends; the next one goes on
        crash_point(NOTED)
        status = self._change(machine, state=COMPLETED)
        proof = ", proved by hash" if status.proved else ""
        text = f"{status.name} is stopped, and point {point.number} holds all of it{proof}."
        self._events.emit("planned.stopped", Severity.INFORMATION, text, machine=machine)

    def _shut_down(self, source: Source, machine: MachineId, request: PlannedStop) -> bool:
        """Whether it is off. The agent is asked first, for a third of the time, then the power button."""
        if source.power() is PowerState.OFF:
            self._change(machine, shut_down_by="it was off")
            return True
        ways: list[tuple[str, bool, float]] = [("power button", False, request.seconds_max)]
        if source.machine.agent:
            third = request.seconds_max / 3
            ways = [("agent", True, third), ("power button", False, request.seconds_max - third)]
        with self._step(machine, "shut down"):
            for name, agent, seconds in ways:
                try:
                    self._fabric.ask_to_shut_down(machine, agent=agent)
                except SecondsiteError as error:
                    self._change(machine, note=f"the {name} could not be asked: {error}")
                    continue
                if self._wait_off(source, seconds):
                    self._change(machine, shut_down_by=name, note="")
                    return True
            if request.power_off:
                self._fabric.power_off(machine)
                self._change(machine, shut_down_by="power off", note="")
                return True
        note = f"it did not shut down within {request.seconds_max:.0f} s; wait, or have it switched off"
        status = self._change(machine, state=WAITING, note=note)
        text = f"{status.name} was asked to shut down: {note}."
        self._events.emit("planned.waiting", Severity.WARNING, text, machine=machine)
        return False

    def _wait_off(self, source: Source, seconds: float) -> bool:
        end = self._clock.monotonic() + seconds
        while not self._stop.is_set():
            if source.power() is PowerState.OFF:
                return True
            if self._clock.monotonic() >= end:
                return False
            self._clock.wait(self._stop, POLL_SECONDS)
        return False

    def _last_point(self, machine: MachineId, since: str, before: frozenset[str]) -> CommittedPoint | None:
        """A point whose instant was asked for while nothing executes any more; None: the gateway ends.

        since: by the time of day, which may be set back. before: checkpoints there were already.

        Raises AlreadyTakenOver: an unplanned failover did not wait for it, and no point of ours can come.
        """
        while not self._stop.is_set():
            try:
                found = self._require_ours(machine, self.get(machine).name).point
            except AlreadyTakenOver:
                raise
            except SecondsiteError as error:
                self._change(machine, note=f"waiting for the target: {error}")
                found = None
            since = min(since, self._now())  # set back meanwhile: so are the times of the points to come
            if found is not None and found.asked_at >= since and found.checkpoint not in before:
                self._change(machine, note="")
                return found
            if why := self._protected.hindrance(machine):  # a pause of meanwhile: it ends when that does
                self._change(machine, note=f"waiting for its last point: {why}")
            self._protected.hurry(machine)
            self._clock.wait(self._stop, POLL_SECONDS)
        return None

    def _drained(self, machine: MachineId) -> bool:
        """Nothing is on its way any more; False: the gateway ends.

        What was captured while the last point was on its way would become a point once the stop is cancelled,
        also of a machine that a person paused before that. Raises AlreadyTakenOver, as `_last_point` does.
        """
        while not self._protected.drain(machine):
            if not self.get(machine).note:
                self._change(machine, note="waiting for what was captured after its last point")
            try:
                self._require_ours(machine, self.get(machine).name)
            except AlreadyTakenOver:
                raise
            except SecondsiteError:
                log.debug("the target says nothing of %s", machine, exc_info=True)
            if self._clock.wait(self._stop, POLL_SECONDS):
                return False
        self._change(machine, note="")
        return True

    def _note(self, machine: MachineId, operation: str, point: CommittedPoint) -> bool:
        """Tell the target that the point holds all; False: the gateway ends. Raises AlreadyTakenOver."""
        while not self._stop.is_set():
            try:
                self._note_stop(machine, operation, point.number)
            except SecondsiteError as error:
                self._require_not_held(machine)
                if not error.retryable:
                    self._require_ours(machine, self.get(machine).name)
                    raise
                self._change(machine, note=f"waiting for the target: {error}")
            else:
                self._change(machine, note="")
                return True
            self._clock.wait(self._stop, POLL_SECONDS)
        return False

    def _note_stop(self, machine: MachineId, operation: str, point: int) -> None:
        self._link(machine).note_stop(StopNote(machine=machine, operation=operation, point=point))

    def _head(self, machine: MachineId) -> CommittedPoint | None:
        return self._target(machine).point

    def _target(self, machine: MachineId) -> TargetHead:
        return self._link(machine).head(machine)

    def _link(self, machine: MachineId) -> Link:
        for known, _name, link in self._protected.ways():
            if known == machine:
                return link
        raise InvalidInput(what=f"the machine {machine}", why="it is not protected here")

    def _prove(self, source: Source, machine: MachineId, point: CommittedPoint) -> None:
        """Read everything, and compare. Raises SourceDiffers."""
        found = self._fingerprints(source, machine)
        theirs = {disk.id: disk.fingerprint for disk in point.disks}
        unknown = [disk for disk in found if theirs.get(disk) is None]
        status = self._change(machine, fingerprints=found, proved=not unknown and found == theirs)
        if unknown:
            self._change(machine, note=f"the target knows no fingerprint of {', '.join(unknown)}")
        elif not status.proved:
            wrong = ", ".join(disk for disk in found if found[disk] != theirs[disk])
            raise SourceDiffers(machine=status.name, disks=wrong, point=point.number)

    def _fingerprints(self, source: Source, machine: MachineId) -> dict[DiskId, str]:
        end = self._clock.monotonic() + BUSY_SECONDS_MAX
        while True:
            try:
                capture = source.capture(since=None, checkpoint=None, quiesce=Quiesce.NONE)
                break
            except SourceBusy:
                if self._clock.monotonic() >= end or self._clock.wait(self._stop, POLL_SECONDS):
                    raise
        made: dict[DiskId, str] = {}
        with capture:
            for disk in capture.disks:
                seed = self._protected.data_key(machine, disk.id).digest_seed()
                # whole sub-blocks: what a capture leaves out reads as zeros, which count as nothing
                ranges, lanes = disk.changed().align(SUB_BLOCK_BYTES, disk.size_bytes), [0, 0]
                for offset, data in disk.read(ranges.pieces(MIB, aligned=True)):
                    low, high = combine(digest_sub_blocks(data, offset // SUB_BLOCK_BYTES, seed))
                    lanes = [lanes[0] + low, lanes[1] + high]
                made[disk.id] = fingerprint_text((lanes[0], lanes[1]))
        return made

    # records

    def _failed(self, machine: MachineId, error: SecondsiteError) -> None:
        told = {key: str(value) for key, value in error.as_dict().items()}
        status = self._change(machine, state=FAILED, error=told)
        text = f"{status.name} could not be stopped in order: {' '.join(error.sentences())}"
        self._events.emit("planned.failed", Severity.CRITICAL, text, machine=machine)

    def _now(self) -> str:
        return self._clock.utc().isoformat(timespec="microseconds")

    def _read(self, machine: MachineId) -> PlannedStopStatus | None:
        path = self._directory / f"{machine}.json"
        try:
            data = files.read_limited(path, size_bytes_max=RECORD_BYTES_MAX)
            return msgspec.json.decode(data, type=PlannedStopStatus)
        except FileNotFoundError:
            return None
        except JSON_ERRORS as error:
            log.warning("the record %s of a planned stop cannot be read: %s", path, error)
            return None  # it is only a record: what is isolated says so at its host

    def _save(self, status: PlannedStopStatus) -> PlannedStopStatus:
        with self._lock:
            files.replace_file(self._directory / f"{status.machine}.json", msgspec.json.encode(status))
        return status

    def _change(self, machine: MachineId, **changes: Any) -> PlannedStopStatus:
        with self._lock:
            return self._save(msgspec.structs.replace(self.get(machine), **changes))

    @contextmanager
    def _step(self, machine: MachineId, name: str) -> Iterator[None]:
        before = tuple(step for step in self.get(machine).steps if step.name != name)
        step = Step(name=name, started_at=self._now())
        self._change(machine, steps=(*before, step))
        yield
        self._change(machine, steps=(*before, msgspec.structs.replace(step, ended_at=self._now())))
