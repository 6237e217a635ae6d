"""A machine under protection on a libvirt host."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.base import Instant, Quiesce, Source
from secondsite.fabrics.errors import SourceBusy, SourceGone, TrackingLost
from secondsite.fabrics.libvirt import checkpoints, definition, inventory, jobs, quiesce, tracking
from secondsite.fabrics.libvirt.capture import JOB_SECONDS_MAX, LibvirtCapture, stamp
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.errors import translate, translated, words
from secondsite.fabrics.libvirt.inventory import Found
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.space import free_bytes
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Machine
from secondsite.model.points import Consistency

# Below this a job would be ended by the guard before it is read.
SCRATCH_FREE_BYTES_MIN = 8 * 1024 * 1024


@dataclass(frozen=True)
class Hands:
    """What a source works with."""

    connection: Connection
    places: Places
    guard: quiesce.Guard
    clock: Clock
    events: EventSink


class LibvirtSource(Source):
    """One protected machine; one capture at a time."""

    def __init__(self, hands: Hands, machine: MachineId, name: str, devs: Sequence[DiskId]) -> None:
        self._hands = hands
        self._id = machine
        self._name = name
        self._devs = tuple(devs)
        self._lock = threading.Lock()
        self._open: LibvirtCapture | None = None

    @property
    def machine(self) -> Machine:
        """As the inventory has it now."""
        with translated("describe the machine", machine=self._name):
            connection = self._hands.connection.get()
            return inventory.machine(
                self._look(),
                host_name=connection.getHostname(),
                known_pools=inventory.pools(connection),
                users={},
                chosen=self._devs,
            )

    def definition(self) -> Definition:
        """See `Source.definition`."""
        with translated("describe the machine", machine=self._name):
            found = self._look()
            return definition.read(found, inventory.pools(self._hands.connection.get()))

    def checkpoints(self) -> Sequence[str]:
        """See `Source.checkpoints`."""
        with translated("list its checkpoints", machine=self._name):
            return checkpoints.listed(self._domain())

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> LibvirtCapture:
        """See `Source.capture`."""
        with self._lock, translated("begin a backup", machine=self._name):
            if self._open is not None and not self._open.closed:
                raise SourceBusy(machine=self._name, why="another capture of ours is open")
            found = self._ready(since)
            lease = self._hands.guard.job(self._id, seconds=JOB_SECONDS_MAX)
            with contextlib.ExitStack() as undo:
                # A begin that fails half way (a timeout) may leave a job: it ends before the lease does.
                undo.callback(lease.release)
                undo.callback(jobs.abort_ours, found.domain, self._hands.places, self._id, self._hands.clock)
                instant = self._begin(found, since, checkpoint, quiesce)
                undo.pop_all()
            self._open = LibvirtCapture(
                domain=found.domain,
                machine=self._id,
                name=self._name,
                devs=self._devs,
                since=since,
                instant=instant,
                lease=lease,
                places=self._hands.places,
                clock=self._hands.clock,
            )
            return self._open

    def forget(self, checkpoint: str) -> None:
        """See `Source.forget`."""
        with translated("delete a checkpoint", machine=self._name):
            found = self._look()
            checkpoints.delete(found.domain, checkpoint, self._images(found))

    def release(self) -> None:
        """See `Source.release`."""
        with self._lock, translated("release the machine", machine=self._name):
            if self._open is not None:
                self._open.close()
            found = self._look()
            jobs.abort_ours(found.domain, self._hands.places, self._id, self._hands.clock)
            # newest first: each deletion would otherwise merge a bitmap into one that goes next
            for name in reversed(checkpoints.listed(found.domain)):
                checkpoints.delete(found.domain, name, self._images(found))
            if found.domain.isActive():
                quiesce.reset(found.domain)
            self._hands.places.remove_leftovers(self._id)

    # --- steps of a capture ---

    def _domain(self) -> Any:
        return self._hands.connection.get().lookupByUUIDString(self._id)

    def _look(self) -> Found:
        return inventory.look(self._hands.connection.get(), self._domain())

    def _images(self, found: Found) -> list[str]:
        return [disk.path for disk in found.disks if disk.dev in self._devs and disk.path]

    def _ready(self, since: str | None) -> Found:
        found = self._look()
        if not found.domain.isActive():
            raise SourceGone(machine=self._name, why="it is shut off")
        missing = sorted(set(self._devs) - {disk.dev for disk in found.disks})
        if missing:
            raise SourceGone(machine=self._name, why=f"it has no disk {', '.join(missing)} any more")
        ours = jobs.is_ours(found.domain, self._hands.places, self._id)
        if ours and self._hands.guard.held_elsewhere(self._id):
            raise SourceBusy(machine=self._name, why="another process of secondsite captures it")
        if ours and jobs.abort_ours(found.domain, self._hands.places, self._id, self._hands.clock):
            text = f"A backup job that an earlier process left open on {self._name} was ended."
            self._hands.events.emit("capture.job-ended", Severity.WARNING, text, machine=self._id)
        elif found.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            # Asked first: libvirt itself would make us wait 30 s for the machine's lock, maybe frozen.
            raise SourceBusy(machine=self._name, why="another program's job is running on it")
        if since is not None:
            lost = tracking.why_lost(found, since)
            if lost:
                raise TrackingLost(machine=self._name, checkpoint=since, why=lost)
        free = free_bytes(self._hands.places.scratch_dir)
        if free < SCRATCH_FREE_BYTES_MIN:
            raise SourceBusy(machine=self._name, why=f"the scratch directory has only {free} bytes free")
        return found

    def _begin(self, found: Found, since: str | None, checkpoint: str | None, wanted: Quiesce) -> Instant:
        hands, domain = self._hands, found.domain
        all_devs = [disk.dev for disk in found.disks]
        job = jobs.backup_xml(hands.places, self._id, self._devs, all_devs, since)
        mark = None
        if checkpoint is not None:
            mark = checkpoints.xml(checkpoint, self._devs, all_devs, tracking.note(found))
        frozen = None
        if wanted is Quiesce.FREEZE:
            frozen = quiesce.freeze(domain, self._id, hands.guard, hands.clock)
        given = False
        asked_at = hands.clock.utc()
        try:
            domain.backupBegin(job, mark, 0)
            given_at = hands.clock.utc()
            given = True
        except libvirt.libvirtError as error:
            raise self._begin_failed(error, since) from error
        finally:
            earned = None
            if frozen is not None:
                earned = quiesce.thaw(domain, frozen, hands.clock, instant_given=given)
        if earned is None:
            earned = quiesce.Earned(Consistency.CRASH, None, "")
        if earned.note:
            text = f"A point of {self._name} is less consistent than asked for: {earned.note}."
            hands.events.emit("capture.consistency-lowered", Severity.WARNING, text, machine=self._id)
        return Instant(
            asked_at=stamp(asked_at),
            given_at=stamp(given_at),
            consistency=earned.consistency,
            frozen_seconds=earned.frozen_seconds,
            note=earned.note,
        )

    def _begin_failed(self, error: libvirt.libvirtError, since: str | None) -> Exception:
        if since is not None and tracking.says_lost(error):
            return TrackingLost(machine=self._name, checkpoint=since, why=words(error))
        if not self._domain().isActive():
            return SourceGone(machine=self._name, why="it was shut off")
        return translate(error, machine=self._name, what="begin a backup")
