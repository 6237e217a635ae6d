"""The machines of the in-memory twin: disks, checkpoints, captures, and what can go wrong with them.

A disk is a map from chunk number to immutable bytes: an instant is a shallow copy of the map, a chunk that is
absent is a hole, and tracking counts whole chunks, as coarse as a hypervisor's 64 KiB. As at a hypervisor a
checkpoint is two things that can get lost without each other: the host's record of it (`checkpoints`), and on
each disk a bitmap (`dirty`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from secondsite.base.clock import Clock
from secondsite.base.units import GIB
from secondsite.fabrics import errors
from secondsite.fabrics.base import Instant, Quiesce
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Disk, Machine, Nic, PowerState
from secondsite.model.points import Consistency

HOST = "memory"
FROZEN_SECONDS = 0.01


@dataclass
class MemoryDisk:
    """One disk: `chunks` by number, each `chunk_bytes` long (the last may be cut); absent means a hole."""

    id: DiskId
    size_bytes: int
    chunk_bytes: int
    chunks: dict[int, bytes] = field(default_factory=dict)
    # chunks written since each checkpoint and until the next, as a hypervisor's chain of bitmaps
    dirty: dict[str, set[int]] = field(default_factory=dict)
    snapshots: int = 0  # taken and not merged: each is another image file on top
    written_at: int = 0  # what a file's time of change is for a real image; changed by writes while off

    @property
    def location(self) -> str:
        """As a path names an image."""
        return f"memory:{self.id}" + f"+{self.snapshots}" * bool(self.snapshots)

    def write(self, offset: int, data: bytes | memoryview, *, tracked: bool = True) -> None:
        """Put bytes; `tracked` False: behind the bitmaps' back."""
        view = memoryview(data).cast("B")
        assert 0 <= offset <= self.size_bytes - len(view), "a guest writes inside its disk only"
        newest = next(reversed(self.dirty.values()), None) if tracked else None
        position = 0
        while position < len(view):
            number, start = divmod(offset + position, self.chunk_bytes)
            length = min(self.chunk_bytes - start, len(view) - position)
            piece = view[position : position + length]
            if length == self.chunk_bytes:
                self.chunks[number] = bytes(piece)
            else:
                chunk = bytearray(self.chunks.get(number, b"").ljust(self.chunk_bytes, b"\0"))
                chunk[start : start + length] = piece
                self.chunks[number] = bytes(chunk)
            if newest is not None:
                newest.add(number)
            position += length

    def discard(self, offset: int, length: int) -> None:
        """Whole chunks inside the range become holes; they count as changed."""
        first, last = -(-offset // self.chunk_bytes), (offset + length) // self.chunk_bytes
        newest = next(reversed(self.dirty.values()), None)
        for number in range(first, last):
            if self.chunks.pop(number, None) is not None and newest is not None:
                newest.add(number)

    def resize(self, size_bytes: int) -> None:
        """Cut its end off, or give it a new one that reads as zeros."""
        if size_bytes < self.size_bytes:
            for number in [n for n in self.chunks if n * self.chunk_bytes >= size_bytes]:
                del self.chunks[number]
            last, kept = divmod(size_bytes, self.chunk_bytes)
            if last in self.chunks:
                self.chunks[last] = self.chunks[last][:kept].ljust(self.chunk_bytes, b"\0")
        self.size_bytes = size_bytes

    def content(self) -> bytes:
        """All of it."""
        data = bytearray(self.size_bytes)
        for number, chunk in self.chunks.items():
            start = number * self.chunk_bytes
            data[start : start + self.chunk_bytes] = chunk[: self.size_bytes - start]
        assert len(data) == self.size_bytes
        return bytes(data)


@dataclass
class MemoryMachine:
    """One machine, as its host has it."""

    id: MachineId
    name: str
    disks: dict[DiskId, MemoryDisk]
    agent: bool
    unprotectable: tuple[str, ...]
    power: PowerState = PowerState.RUNNING
    killed: bool = False  # it is off because its hypervisor process was killed
    paused: bool = False  # its processors stand still
    isolated: str | None = None  # why its links are down and it is paused; None: it is not
    autostart: bool = True
    autostarted: bool = True  # as it was before it was isolated
    away: str = ""  # why it is not at this host; empty: it is
    checkpoints: list[str] = field(default_factory=list)
    refused: dict[DiskId, str] = field(default_factory=dict)  # disks that cannot be captured, and why
    lock: threading.RLock = field(default_factory=threading.RLock)
    busy: str = ""  # why another job holds it; empty: none does
    capture: MemoryCapture | None = None
    freeze_fails: str = ""
    read_fails: int = 0  # so many reads of captures fail yet


class MemoryDiskCapture:
    """See `fabrics.base.DiskCapture`: the chunks as they were at the instant."""

    def __init__(self, disk: MemoryDisk, changed: Extents, untracked: str, capture: MemoryCapture) -> None:
        self._id = disk.id
        self._size_bytes = disk.size_bytes
        self._chunk_bytes = disk.chunk_bytes
        self._chunks = dict(disk.chunks)
        self._location = disk.location
        self._changed = changed
        self._untracked = untracked
        self._capture = capture

    @property
    def id(self) -> DiskId:
        """The disk's name on its machine."""
        return self._id

    @property
    def size_bytes(self) -> int:
        """Its size at the instant; of an open capture, as a hypervisor's job tells it."""
        if self._capture.closed:
            raise errors.SourceGone(machine=self._id, why="the capture was closed")
        return self._size_bytes

    @property
    def location(self) -> str:
        """See `DiskCapture.location`."""
        return self._location

    @property
    def untracked(self) -> str:
        """See `DiskCapture.untracked`."""
        return self._untracked

    def changed(self) -> Extents:
        """See `DiskCapture.changed`."""
        return self._changed

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """See `DiskCapture.read`."""
        buffer = bytearray(0)
        for offset, length in ranges:
            assert 0 < length <= self._size_bytes - offset, "reads lie inside the disk"
            self._capture.check_readable()
            if len(buffer) < length:
                buffer = bytearray(length)
            view = memoryview(buffer)[:length]
            position = 0
            while position < length:
                number, start = divmod(offset + position, self._chunk_bytes)
                count = min(self._chunk_bytes - start, length - position)
                chunk = self._chunks.get(number)
                view[position : position + count] = (
                    bytes(count) if chunk is None else memoryview(chunk)[start : start + count]
                )
                position += count
            yield offset, view.toreadonly()


class MemoryCapture:
    """See `fabrics.base.Capture`."""

    def __init__(self, machine: MemoryMachine, instant: Instant, left_out: Mapping[DiskId, str]) -> None:
        self._machine = machine
        self._instant = instant
        self._disks: list[MemoryDiskCapture] = []
        self._left_out = left_out
        self.closed = False

    def __enter__(self) -> MemoryCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def instant(self) -> Instant:
        """When its content was fixed."""
        return self._instant

    @property
    def disks(self) -> Sequence[MemoryDiskCapture]:
        """See `Capture.disks`."""
        return self._disks

    @property
    def left_out(self) -> Mapping[DiskId, str]:
        """See `Capture.left_out`."""
        return self._left_out

    def fix(self, disk: MemoryDisk, changed: Extents, untracked: str) -> None:
        """Take one disk in, as it is now."""
        self._disks.append(MemoryDiskCapture(disk, changed, untracked, self))

    def check_readable(self) -> None:
        """Raise SourceGone when the job has ended, or a failure was ordered."""
        machine = self._machine
        with machine.lock:
            if machine.read_fails:
                machine.read_fails -= 1
                raise errors.SourceGone(machine=machine.name, why="the read failed, as ordered")
            if self.closed:
                raise errors.SourceGone(machine=machine.name, why="the capture was closed")

    def close(self) -> None:
        """End it; may be called twice."""
        with self._machine.lock:
            self.closed = True
            if self._machine.capture is self:
                self._machine.capture = None


class MemorySource:
    """See `fabrics.base.Source`. `check`: raises while the host's daemon does not answer."""

    def __init__(
        self,
        machine: MemoryMachine,
        disks: Sequence[DiskId] | None,
        clock: Clock,
        check: Callable[[], None] = lambda: None,
        *,
        left_out: Collection[DiskId] = (),
    ) -> None:
        self._machine = machine
        self._not_wanted = frozenset(left_out)
        self._wanted = None if disks is None else tuple(disks)
        self._clock = clock
        self._check = check
        self._seen_off: dict[DiskId, int] = {}  # when each image was written to, as seen while it is off
        self._lying: dict[DiskId, set[str]] = {}  # checkpoints whose bitmaps know nothing of such a write

    @property
    def machine(self) -> Machine:
        """As the inventory has it now."""
        return describe(self._machine)

    def definition(self) -> Definition:
        """See `Source.definition`."""
        with self._machine.lock:
            sizes = {disk.id: disk.size_bytes for disk in self._machine.disks.values()}
            nics = [{"mac": nic.mac, "network": nic.network} for nic in describe(self._machine).nics]
            said = {"name": self._machine.name, "id": self._machine.id, "disks": sizes, "nics": nics}
            text = json.dumps(said)
        return Definition(format="memory", text=text)

    def checkpoints(self) -> Sequence[str]:
        """See `Source.checkpoints`."""
        with self._machine.lock:
            self._here()
            return list(self._machine.checkpoints)

    def power(self) -> PowerState:
        """See `Source.power`."""
        machine = self._machine
        with machine.lock:
            self._here()
            if machine.power is PowerState.OFF:
                for disk in machine.disks.values():
                    before = self._seen_off.setdefault(disk.id, disk.written_at)
                    if before != disk.written_at:
                        self._lying.setdefault(disk.id, set()).update(machine.checkpoints)
                        self._seen_off[disk.id] = disk.written_at
            else:
                self._seen_off.clear()
            return machine.power

    def recall(self, checkpoint: str) -> bool:
        """See `Source.recall`."""
        machine = self._machine
        with machine.lock:
            self._here()
            if checkpoint in machine.checkpoints:
                return True
            if self.power() is not PowerState.RUNNING:
                raise self._is_off()
            holders = [disk for disk in self._ours() if checkpoint in disk.dirty]
            if not holders:
                return False
            order = list(holders[0].dirty)
            later = [name for name in machine.checkpoints if name in order[order.index(checkpoint) :]]
            place = machine.checkpoints.index(later[0]) if later else len(machine.checkpoints)
            machine.checkpoints.insert(place, checkpoint)
            return True

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> MemoryCapture:
        """See `Source.capture`."""
        machine = self._machine
        with machine.lock:
            self._check_ready(since)
            ours = self._ours()
            untracked = {disk.id: self._why_untracked(disk, since) for disk in ours}
            if since is not None and all(untracked.values()):
                why = next(iter(untracked.values()))
                raise _lost(untracked[ours[0].id])(machine=machine.name, checkpoint=since, why=why)
            asked_at = self._clock.utc().isoformat(timespec="microseconds")
            consistency, frozen, note = self._freeze(quiesce)
            given_at = self._clock.utc().isoformat(timespec="microseconds")
            refused = {name: why for name, why in machine.refused.items() if self._is_wanted(name)}
            capture = MemoryCapture(
                machine, Instant(asked_at, given_at, consistency, frozen, note), left_out=refused
            )
            for disk in ours:
                why = untracked[disk.id]
                capture.fix(disk, self._changed(disk, None if why else since), why)
            if checkpoint is not None:
                assert checkpoint not in machine.checkpoints, "a checkpoint's name is used once"
                machine.checkpoints.append(checkpoint)
                for disk in ours:
                    disk.dirty[checkpoint] = set()
            machine.capture = capture
            return capture

    def _here(self) -> None:
        self._check()
        if self._machine.away:
            raise errors.SourceMoved(machine=self._machine.name, why=self._machine.away)

    def _is_off(self) -> errors.SourceOff:
        how = "its hypervisor process was killed" if self._machine.killed else "it was shut down"
        return errors.SourceOff(machine=self._machine.name, why=how)

    def _is_wanted(self, disk: DiskId) -> bool:
        wanted = self._wanted is None or disk in self._wanted
        return disk in self._machine.disks and wanted and disk not in self._not_wanted

    def _ours(self) -> list[MemoryDisk]:
        machine = self._machine
        return [d for d in machine.disks.values() if self._is_wanted(d.id) and d.id not in machine.refused]

    def _check_ready(self, since: str | None) -> None:
        machine = self._machine
        if self.power() is not PowerState.RUNNING:
            raise self._is_off()
        if not self._ours():
            raise errors.SourceGone(machine=machine.name, why="it has none of its protected disks any more")
        if machine.busy or machine.capture is not None:
            raise errors.SourceBusy(
                machine=machine.name, why=machine.busy or "another capture of ours is open"
            )
        if since is not None and since not in machine.checkpoints:
            raise errors.CheckpointUnknown(
                machine=machine.name, checkpoint=since, why="there is no such checkpoint"
            )

    def _why_untracked(self, disk: MemoryDisk, since: str | None) -> str:
        if since is None:
            return ""
        if since in self._lying.get(disk.id, ()):
            return WRITTEN_WHILE_OFF
        return "" if since in disk.dirty else NO_BITMAP

    def _changed(self, disk: MemoryDisk, since: str | None) -> Extents:
        if since is None:
            numbers = set(disk.chunks)
        else:
            names = list(disk.dirty)
            numbers = set().union(*(disk.dirty[name] for name in names[names.index(since) :]))
        unit = disk.chunk_bytes
        extents = Extents.of((number * unit, (number + 1) * unit) for number in numbers)
        return extents.clip(0, disk.size_bytes)

    def _freeze(self, quiesce: Quiesce) -> tuple[Consistency, float | None, str]:
        if quiesce is Quiesce.NONE:
            return Consistency.CRASH, None, ""
        if not self._machine.agent:
            return Consistency.CRASH, None, "the machine has no guest agent"
        if self._machine.freeze_fails:
            return Consistency.CRASH, None, self._machine.freeze_fails
        return Consistency.APPLICATION, FROZEN_SECONDS, ""

    def forget(self, checkpoint: str) -> None:
        """See `Source.forget`."""
        machine = self._machine
        with machine.lock:
            self._here()
            if checkpoint not in machine.checkpoints:
                return
            for disk in machine.disks.values():
                names = list(disk.dirty)
                if checkpoint not in names:
                    continue
                changes = disk.dirty.pop(checkpoint)
                index = names.index(checkpoint)
                if index:  # merged into the parent: since an older checkpoint it all still counts
                    disk.dirty[names[index - 1]] |= changes
            machine.checkpoints.remove(checkpoint)

    def release(self) -> None:
        """See `Source.release`."""
        with self._machine.lock:
            if self._machine.capture is not None:
                self._machine.capture.close()
            self._machine.checkpoints.clear()
            for disk in self._machine.disks.values():
                disk.dirty.clear()


NO_BITMAP = "its image has no bitmap of that checkpoint"
WRITTEN_WHILE_OFF = "its image was written to while the machine was off"


def _lost(why: str) -> type[errors.TrackingLost]:
    return errors.ChangedWhileOff if why == WRITTEN_WHILE_OFF else errors.BitmapLost


def describe(machine: MemoryMachine) -> Machine:
    """A machine as the inventory lists it."""
    with machine.lock:
        disks = tuple(
            Disk(id=disk.id, size_bytes=disk.size_bytes, format="raw", location=disk.location)
            for disk in machine.disks.values()
        )
        return Machine(
            id=machine.id,
            name=machine.name,
            host=HOST,
            power=PowerState.PAUSED if machine.paused else machine.power,
            disks=disks,
            nics=(Nic(mac="52:54:00:00:00:01", network="default"),),
            memory_bytes=GIB,
            cpus=1,
            agent=machine.agent,
            unprotectable=machine.unprotectable,
        )
