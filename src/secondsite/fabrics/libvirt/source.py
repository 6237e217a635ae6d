"""A machine under protection on a libvirt host."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from secondsite.base.clock import Clock
from secondsite.fabrics.base import Instant, Quiesce, Source
from secondsite.fabrics.errors import (
    BitmapLost,
    ChangedWhileOff,
    SourceBusy,
    SourceGone,
    SourceMoved,
    SourceOff,
)
from secondsite.fabrics.libvirt import checkpoints, definition, inventory, jobs, quiesce, refusals, tracking
from secondsite.fabrics.libvirt.capture import JOB_SECONDS_MAX, Fixed, LibvirtCapture, stamp
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.domxml import DomainDisk
from secondsite.fabrics.libvirt.errors import connection_lost, translate, translated, words
from secondsite.fabrics.libvirt.inventory import Found
from secondsite.fabrics.libvirt.places import Places
from secondsite.fabrics.libvirt.space import free_bytes
from secondsite.fabrics.libvirt.watch import WRITTEN_WHILE_OFF, Images, was_migrated, why_off
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId, disk_id
from secondsite.model.machines import Definition, Machine, PowerState
from secondsite.model.points import Consistency

# Below this a job would be ended by the guard before it is read.
SCRATCH_FREE_BYTES_MIN = 8 * 1024 * 1024
# After a job whose end libvirt did not notice by itself (see `jobs.JobEnd`): the guest's events piled up, and
# the next job, begun at once, would meet the next of them. It needs milliseconds for all.
REST_SECONDS = 0.5


@dataclass(frozen=True)
class Hands:
    """What a source works with."""

    connection: Connection
    places: Places
    guard: quiesce.Guard
    clock: Clock
    events: EventSink


NOT_COVERED = "it was added to the machine since"


@dataclass(frozen=True)
class _Asked:
    """What a capture was asked for."""

    devs: Sequence[DiskId]
    since: str | None
    checkpoint: str | None
    quiesce: Quiesce


class LibvirtSource(Source):
    """One protected machine; one capture at a time."""

    def __init__(self, hands: Hands, machine: MachineId, name: str, wanted: inventory.Chosen) -> None:
        """wanted: the disks to be captured."""
        self._hands = hands
        self._id = machine
        self._name = name
        self._wanted = wanted
        self._off_images = Images()
        self._rest_until = 0.0
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
                chosen=self._wanted,
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

    def power(self) -> PowerState:
        """See `Source.power`."""
        with translated("look at the machine", machine=self._name):
            return self._power(self._look())

    def recall(self, checkpoint: str) -> bool:
        """See `Source.recall`."""
        with translated("find a checkpoint again", machine=self._name):
            found = self._look()
            if checkpoint in checkpoints.listed(found.domain):
                return True
            if self._power(found) is PowerState.OFF:
                raise self._is_off(found)  # libvirt asks the running QEMU for the bitmaps
            created = int(self._hands.clock.utc().timestamp())
            all_devs = [disk.dev for disk in found.disks]
            devs = self._chosen(found)[0]
            recalled = checkpoints.recall(found.domain, checkpoint, devs, all_devs, created=created)
            if recalled:
                self._remove_orphans(found)
            return recalled

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> LibvirtCapture:
        """See `Source.capture`."""
        self._hands.clock.wait(threading.Event(), self._rest_until - self._hands.clock.monotonic())
        with self._lock, translated("begin a backup", machine=self._name):
            if self._open is not None and not self._open.closed:
                raise SourceBusy(machine=self._name, why="another capture of ours is open")
            found = self._ready(since)
            devs, left_out = self._chosen(found)
            untracked = self._untracked(found, devs, since)
            lease = self._hands.guard.job(self._id, seconds=JOB_SECONDS_MAX)
            with contextlib.ExitStack() as undo:
                # A begin that fails half way (a timeout) may leave a job: it ends before the lease does.
                undo.callback(lease.release)
                undo.callback(jobs.abort_ours, found.domain, self._hands.places, self._id, self._hands.clock)
                instant = self._begin(found, _Asked(devs, since, checkpoint, quiesce), untracked)
                undo.pop_all()
            paths = {disk.dev: disk.path or "" for disk in found.disks}
            self._open = LibvirtCapture(
                domain=found.domain,
                machine=self._id,
                name=self._name,
                disks=[Fixed(dev, paths[dev], untracked.get(dev, "")) for dev in devs],
                left_out=left_out,
                since=since,
                instant=instant,
                lease=lease,
                places=self._hands.places,
                clock=self._hands.clock,
                on_stuck_end=self._rest,
            )
            return self._open

    def forget(self, checkpoint: str) -> None:
        """See `Source.forget`."""
        with translated("delete a checkpoint", machine=self._name):
            found = self._look()
            checkpoints.delete(found.domain, checkpoint, self._images(found).values())
            self._off_images.ours(self._images(found))

    def release(self) -> None:
        """See `Source.release`."""
        with self._lock, translated("release the machine", machine=self._name):
            if self._open is not None:
                self._open.close()
            found = self._look()
            jobs.abort_ours(found.domain, self._hands.places, self._id, self._hands.clock)
            # newest first: each deletion would otherwise merge a bitmap into one that goes next
            for name in reversed(checkpoints.listed(found.domain)):
                checkpoints.delete(found.domain, name, self._images(found).values())
            self._remove_orphans(found)
            if found.domain.isActive():
                quiesce.reset(found.domain)
            self._hands.places.remove_leftovers(self._id)

    # --- steps of a capture ---

    def _remove_orphans(self, found: Found) -> None:
        created = int(self._hands.clock.utc().timestamp())
        all_devs = [disk.dev for disk in found.disks]
        readable = {
            disk.dev for disk in found.disks if disk.format == "qcow2" and Path(disk.path or "").exists()
        }
        images = {dev: path for dev, path in self._images(found).items() if dev in readable}
        checkpoints.remove_orphans(found.domain, images, all_devs, created)

    def _rest(self) -> None:
        self._rest_until = self._hands.clock.monotonic() + REST_SECONDS

    def _domain(self) -> Any:
        return self._hands.connection.get().lookupByUUIDString(self._id)

    def _look(self) -> Found:
        return inventory.look(self._hands.connection.get(), self._domain())

    def _images(self, found: Found) -> dict[DiskId, str]:
        wanted = [disk for disk in found.disks if self._is_wanted(disk) and disk.path]
        return {disk_id(disk.dev): disk.path or "" for disk in wanted}

    def _is_wanted(self, disk: DomainDisk) -> bool:
        return disk.copied and self._wanted.has(disk.dev)

    def _chosen(self, found: Found) -> tuple[list[DiskId], dict[DiskId, str]]:
        """The disks to capture as the machine is now, and those that cannot be, with the reason."""
        devs: list[DiskId] = []
        left_out: dict[DiskId, str] = {}
        for disk in found.disks:
            if not self._is_wanted(disk):
                continue
            reasons = refusals.lasting_reasons(disk)
            if reasons:
                left_out[disk_id(disk.dev)] = "; ".join(reasons)
            else:
                devs.append(disk_id(disk.dev))
        if not devs:
            why = "; ".join(left_out.values()) or "it has none of its protected disks any more"
            raise SourceGone(machine=self._name, why=why)
        return devs, left_out

    def _untracked(self, found: Found, devs: Sequence[DiskId], since: str | None) -> dict[DiskId, str]:
        """Disks that changes are not known of, as far as can be seen before asking.

        Raises TrackingLost when that are all of them.
        """
        if since is None:
            return {}
        covered = checkpoints.covered(found.domain, since)
        lost: dict[DiskId, str] = {dev: NOT_COVERED for dev in devs if dev not in covered}
        lying = {dev: WRITTEN_WHILE_OFF for dev in devs if self._off_images.lies(dev, since)}
        lost.update(lying)
        if len(lost) == len(devs):
            kind = ChangedWhileOff if lying else BitmapLost
            raise kind(machine=self._name, checkpoint=since, why=lost[devs[0]])
        return lost

    def _power(self, found: Found) -> PowerState:
        if found.domain.isActive():
            self._off_images.running()
            return PowerState.RUNNING
        self._off_images.look(self._images(found), checkpoints.listed(found.domain))
        return PowerState.OFF

    def _is_off(self, found: Found) -> SourceGone:
        reason = found.domain.state()[1]
        if was_migrated(reason):
            return SourceMoved(machine=self._name, why="it was migrated and runs at another host")
        return SourceOff(machine=self._name, why=why_off(reason))

    def _ready(self, since: str | None) -> Found:
        found = self._look()
        if self._power(found) is not PowerState.RUNNING:
            raise self._is_off(found)
        ours = jobs.is_ours(found.domain, self._hands.places, self._id)
        if ours and self._hands.guard.held_elsewhere(self._id):
            raise SourceBusy(machine=self._name, why="another process of secondsite captures it")
        if ours and jobs.abort_ours(found.domain, self._hands.places, self._id, self._hands.clock):
            text = f"A backup job that an earlier process left open on {self._name} was ended."
            self._hands.events.emit("capture.job-ended", Severity.WARNING, text, machine=self._id)
        elif jobs.any_running(found.domain):
            # Asked first: libvirt itself would make us wait 30 s for the machine's lock, maybe frozen.
            raise SourceBusy(machine=self._name, why="another program's job is running on it")
        if since is not None:
            tracking.check(found, self._name, since)
        free = free_bytes(self._hands.places.scratch_dir)
        if free < SCRATCH_FREE_BYTES_MIN:
            raise SourceBusy(machine=self._name, why=f"the scratch directory has only {free} bytes free")
        return found

    def _begin(self, found: Found, asked: _Asked, untracked: dict[DiskId, str]) -> Instant:
        """Begin the job; disks whose bitmaps turn out to be missing are added to `untracked`."""
        while True:
            try:
                return self._try_to_begin(found, asked, untracked)
            except BitmapLost as error:
                why = str(error.fields["why"])
                dev = tracking.disk_named(why, asked.devs)
                if dev is None or dev in untracked or len(untracked) + 1 == len(asked.devs):
                    raise
                untracked[disk_id(dev)] = why

    def _try_to_begin(self, found: Found, asked: _Asked, untracked: Mapping[DiskId, str]) -> Instant:
        hands, domain = self._hands, found.domain
        all_devs = [disk.dev for disk in found.disks]
        job = jobs.backup_xml(
            hands.places, self._id, asked.devs, all_devs, since=asked.since, untracked=untracked
        )
        mark = None
        if asked.checkpoint is not None:
            mark = checkpoints.xml(asked.checkpoint, asked.devs, all_devs, tracking.note(found))
        frozen = None
        if asked.quiesce is Quiesce.FREEZE:
            frozen = quiesce.freeze(domain, self._id, hands.guard, hands.clock)
        given = False
        asked_at = hands.clock.utc()
        try:
            domain.backupBegin(job, mark, 0)
            given_at = hands.clock.utc()
            given = True
        except libvirt.libvirtError as error:
            raise self._begin_failed(error, asked) from error
        finally:
            earned = None
            if frozen is not None:
                earned = quiesce.thaw(domain, frozen, hands.clock, instant_given=given)
        if earned is None:
            earned = quiesce.Earned(Consistency.CRASH, None, "")
        if earned.note:
            text = f"A point of {self._name} is less consistent than asked for: {earned.note}."
            text += quiesce.advice(earned.note)
            hands.events.emit("capture.consistency-lowered", Severity.WARNING, text, machine=self._id)
        return Instant(
            asked_at=stamp(asked_at),
            given_at=stamp(given_at),
            consistency=earned.consistency,
            frozen_seconds=earned.frozen_seconds,
            note=earned.note,
        )

    def _begin_failed(self, error: libvirt.libvirtError, asked: _Asked) -> Exception:
        since = asked.since
        if since is not None and tracking.says_lost(error):
            return BitmapLost(machine=self._name, checkpoint=since, why=words(error))
        if connection_lost(error):
            return translate(error, machine=self._name, what="begin a backup")
        if not self._domain().isActive():
            return SourceOff(machine=self._name, why="it was switched off just now")
        if self._chosen(self._look())[0] != list(asked.devs):
            return SourceBusy(machine=self._name, why="its disks are being changed")
        return translate(error, machine=self._name, what="begin a backup")
