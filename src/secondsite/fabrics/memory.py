"""The in-memory twin of a hypervisor: machines, writes of their guests, checkpoints, faults to order.

It passes the contract suite every fabric passes (tests/contract/test_fabrics.py), so that what is built on a
fabric can be tested without a hypervisor. A disk is a map from chunk number to immutable bytes: an instant
is a shallow copy of the map, a chunk that is absent is a hole, and tracking counts whole chunks, as coarse
as a hypervisor's 64 KiB.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.units import BLOCK_BYTES_MAX, GIB
from secondsite.fabrics import errors
from secondsite.fabrics.base import Instant, Quiesce, Recovered, RecoverySpec
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId, disk_id, machine_id
from secondsite.model.machines import Definition, Disk, Host, Machine, Network, Nic, Pool, PowerState
from secondsite.model.points import Consistency

HOST = "memory"
FROZEN_SECONDS = 0.01


@dataclass
class _MemoryDisk:
    """One disk: `chunks` by number, each `chunk_bytes` long (the last may be cut); absent means a hole."""

    id: DiskId
    size_bytes: int
    chunk_bytes: int
    chunks: dict[int, bytes] = field(default_factory=dict)
    # chunks written since each checkpoint and until the next, as a hypervisor's chain of bitmaps
    dirty: dict[str, set[int]] = field(default_factory=dict)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        assert 0 <= offset <= self.size_bytes - len(view), "a guest writes inside its disk only"
        newest = next(reversed(self.dirty.values()), None)
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
        if size_bytes < self.size_bytes:
            for number in [n for n in self.chunks if n * self.chunk_bytes >= size_bytes]:
                del self.chunks[number]
            last, kept = divmod(size_bytes, self.chunk_bytes)
            if last in self.chunks:
                self.chunks[last] = self.chunks[last][:kept].ljust(self.chunk_bytes, b"\0")
        self.size_bytes = size_bytes


@dataclass
class _MemoryMachine:
    id: MachineId
    name: str
    disks: dict[DiskId, _MemoryDisk]
    agent: bool
    unprotectable: tuple[str, ...]
    power: PowerState = PowerState.RUNNING
    checkpoints: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    busy: str = ""  # why another job holds it; empty: none does
    capture: MemoryCapture | None = None
    freeze_fails: str = ""
    read_fails: int = 0  # so many reads of captures fail yet


class MemoryDiskCapture:
    """See `fabrics.base.DiskCapture`: the chunks as they were at the instant."""

    def __init__(self, disk: _MemoryDisk, changed: Extents, capture: MemoryCapture) -> None:
        self._id = disk.id
        self._size_bytes = disk.size_bytes
        self._chunk_bytes = disk.chunk_bytes
        self._chunks = dict(disk.chunks)
        self._changed = changed
        self._capture = capture

    @property
    def id(self) -> DiskId:
        """The disk's name on its machine."""
        return self._id

    @property
    def size_bytes(self) -> int:
        """Its size at the instant."""
        return self._size_bytes

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

    def __init__(self, machine: _MemoryMachine, instant: Instant) -> None:
        self._machine = machine
        self._instant = instant
        self._disks: list[MemoryDiskCapture] = []
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
        """Every protected disk, in the machine's order."""
        return self._disks

    def fix(self, disk: _MemoryDisk, changed: Extents) -> None:
        """Take one disk in, as it is now."""
        self._disks.append(MemoryDiskCapture(disk, changed, self))

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
    """See `fabrics.base.Source`."""

    def __init__(self, machine: _MemoryMachine, disks: Sequence[DiskId], clock: Clock) -> None:
        self._machine = machine
        self._disks = tuple(disks)
        self._clock = clock

    @property
    def machine(self) -> Machine:
        """As the inventory has it now."""
        return _describe(self._machine)

    def definition(self) -> Definition:
        """See `Source.definition`."""
        with self._machine.lock:
            sizes = {disk.id: disk.size_bytes for disk in self._machine.disks.values()}
            text = json.dumps({"name": self._machine.name, "id": self._machine.id, "disks": sizes})
        return Definition(format="memory", text=text)

    def checkpoints(self) -> Sequence[str]:
        """See `Source.checkpoints`."""
        with self._machine.lock:
            return list(self._machine.checkpoints)

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> MemoryCapture:
        """See `Source.capture`."""
        machine = self._machine
        with machine.lock:
            self._check_ready(since)
            asked_at = self._clock.utc().isoformat(timespec="microseconds")
            changed = {name: self._changed(machine.disks[name], since) for name in self._disks}
            consistency, frozen, note = self._freeze(quiesce)
            given_at = self._clock.utc().isoformat(timespec="microseconds")
            capture = MemoryCapture(machine, Instant(asked_at, given_at, consistency, frozen, note))
            for name in self._disks:
                capture.fix(machine.disks[name], changed[name])
            if checkpoint is not None:
                assert checkpoint not in machine.checkpoints, "a checkpoint's name is used once"
                machine.checkpoints.append(checkpoint)
                for disk in machine.disks.values():
                    disk.dirty[checkpoint] = set()
            machine.capture = capture
            return capture

    def _check_ready(self, since: str | None) -> None:
        machine = self._machine
        if machine.power is not PowerState.RUNNING:
            raise errors.SourceGone(machine=machine.name, why="it is shut off")
        if machine.busy or machine.capture is not None:
            raise errors.SourceBusy(
                machine=machine.name, why=machine.busy or "another capture of ours is open"
            )
        if since is not None and since not in machine.checkpoints:
            raise errors.TrackingLost(
                machine=machine.name, checkpoint=since, why="there is no such checkpoint"
            )

    def _changed(self, disk: _MemoryDisk, since: str | None) -> Extents:
        if since is None:
            numbers = set(disk.chunks)
        else:
            names = self._machine.checkpoints[self._machine.checkpoints.index(since) :]
            numbers = set().union(*(disk.dirty[name] for name in names))
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
            if checkpoint not in machine.checkpoints:
                return
            index = machine.checkpoints.index(checkpoint)
            for disk in machine.disks.values():
                changes = disk.dirty.pop(checkpoint)
                if index:  # merged into the parent: since an older checkpoint it all still counts
                    disk.dirty[machine.checkpoints[index - 1]] |= changes
            machine.checkpoints.remove(checkpoint)

    def release(self) -> None:
        """See `Source.release`."""
        with self._machine.lock:
            if self._machine.capture is not None:
                self._machine.capture.close()
            self._machine.checkpoints.clear()
            for disk in self._machine.disks.values():
                disk.dirty.clear()


class MemoryFabric:
    """One imaginary host. The methods before `hosts` are the guest's and the tests' side of it."""

    def __init__(self, *, clock: Clock | None = None, chunk_bytes: int = BLOCK_BYTES_MAX) -> None:
        self._clock = clock or SystemClock()
        self._chunk_bytes = chunk_bytes
        self._lock = threading.RLock()
        self._machines: dict[MachineId, _MemoryMachine] = {}
        self._networks: dict[str, Network] = {"default": Network(name="default", active=True, isolated=False)}
        self._recovered: dict[MachineId, tuple[Recovered, RecoverySpec]] = {}
        self._stopped: set[MachineId] = set()
        self._recovery_fails = ""

    def add_machine(
        self,
        name: str,
        disks: Mapping[str, int],
        *,
        machine: str | None = None,
        agent: bool = True,
        unprotectable: Sequence[str] = (),
    ) -> MachineId:
        """A running machine with empty disks of the given sizes in bytes."""
        identity = machine_id(machine or str(uuid.uuid4()))
        made = {
            disk_id(disk): _MemoryDisk(disk_id(disk), size_bytes, self._chunk_bytes)
            for disk, size_bytes in disks.items()
        }
        with self._lock:
            self._machines[identity] = _MemoryMachine(identity, name, made, agent, tuple(unprotectable))
        return identity

    def write(self, machine: MachineId, disk: str, offset: int, data: bytes | memoryview) -> None:
        """The guest writes; atomic against captures, also for writes to several disks by one thread."""
        found = self._find(machine)
        with found.lock:
            found.disks[DiskId(disk)].write(offset, data)

    def discard(self, machine: MachineId, disk: str, offset: int, length: int) -> None:
        """The guest trims; whole tracking units in the range become holes."""
        found = self._find(machine)
        with found.lock:
            found.disks[DiskId(disk)].discard(offset, length)

    def content(self, machine: MachineId, disk: str) -> bytes:
        """The whole disk as of now."""
        found = self._find(machine)
        with found.lock:
            store = found.disks[DiskId(disk)]
            data = bytearray(store.size_bytes)
            for number, chunk in store.chunks.items():
                start = number * store.chunk_bytes
                data[start : start + store.chunk_bytes] = chunk[: store.size_bytes - start]
            assert len(data) == store.size_bytes
            return bytes(data)

    def resize(self, machine: MachineId, disk: str, size_bytes: int) -> None:
        """Change a disk's size while the machine runs."""
        found = self._find(machine)
        with found.lock:
            found.disks[DiskId(disk)].resize(size_bytes)

    def set_power(self, machine: MachineId, power: PowerState) -> None:
        """Start it or shut it off. Tracking stays, as an orderly shutdown keeps a hypervisor's bitmaps."""
        self._find(machine).power = power

    def lose_tracking(self, machine: MachineId) -> None:
        """Forget every checkpoint, as a killed hypervisor process does."""
        found = self._find(machine)
        with found.lock:
            found.checkpoints.clear()
            for disk in found.disks.values():
                disk.dirty.clear()

    def set_busy(self, machine: MachineId, why: str) -> None:
        """Another product's job holds the machine; empty: none does any more."""
        self._find(machine).busy = why

    def fail_freeze(self, machine: MachineId, why: str) -> None:
        """The guest agent fails with this; empty: it works."""
        self._find(machine).freeze_fails = why

    def fail_reads(self, machine: MachineId, count: int) -> None:
        """Let the next `count` reads of captures fail."""
        self._find(machine).read_fails = count

    def fail_recovery(self, why: str) -> None:
        """The next `start_recovered` fails with this."""
        self._recovery_fails = why

    def stop_recovered(self, recovered: Recovered) -> None:
        """Stop a recovered machine as the loss of its export does."""
        with self._lock:
            self._stopped.add(recovered.id)

    def open_captures(self, machine: MachineId) -> int:
        """How many captures are open now."""
        return int(self._find(machine).capture is not None)

    def _find(self, machine: MachineId) -> _MemoryMachine:
        with self._lock:
            found = self._machines.get(machine)
        if found is None:
            raise errors.MachineUnknown(machine=machine, host=HOST)
        return found

    # the contract

    def hosts(self) -> Sequence[Host]:
        """See `Fabric`."""
        return [Host(name=HOST, hypervisor="memory", memory_bytes=GIB, cpus=1)]

    def machines(self) -> Sequence[Machine]:
        """See `Fabric`."""
        with self._lock:
            known = sorted(self._machines.values(), key=lambda machine: machine.name)
        return [_describe(machine) for machine in known]

    def networks(self) -> Sequence[Network]:
        """See `Fabric`."""
        with self._lock:
            return list(self._networks.values())

    def pools(self) -> Sequence[Pool]:
        """See `Fabric`."""
        return [Pool(name="memory", path="", active=True, capacity_bytes=GIB, free_bytes=GIB)]

    def open_source(self, machine: MachineId, disks: Sequence[DiskId] | None = None) -> MemorySource:
        """See `Fabric`."""
        found = self._find(machine)
        chosen = [name for name in found.disks if disks is None or name in disks]
        reasons = list(found.unprotectable)
        reasons += [f"it has no disk {name}" for name in disks or () if name not in found.disks]
        if reasons or not chosen:
            why = "; ".join(reasons) or "it has no disk to protect"
            raise errors.Unprotectable(machine=found.name, reasons=why)
        return MemorySource(found, chosen, self._clock)

    def make_isolated_network(self, name: str) -> Network:
        """See `Fabric`."""
        with self._lock:
            return self._networks.setdefault(name, Network(name=name, active=True, isolated=True))

    def remove_network(self, name: str) -> None:
        """See `Fabric`."""
        with self._lock:
            found = self._networks.get(name)
            if found is not None and found.isolated:
                del self._networks[name]

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        """See `Fabric`."""
        with self._lock:
            why, self._recovery_fails = self._recovery_fails, ""
            if not why and spec.network is not None and spec.network not in self._networks:
                why = f"there is no network {spec.network}"
            if not why and any(known.name == spec.name for known, _ in self._recovered.values()):
                why = "a machine of this name exists"
            if why:
                raise errors.RecoveryFailed(machine=spec.name, why=why)
            identity = machine_id(str(uuid.uuid4()))
            overlays = [f"memory:{identity}:{disk.id}" for disk in spec.disks]
            made = Recovered(id=identity, name=spec.name, overlays=overlays, networks=[])
            self._recovered[identity] = (made, spec)
            return made

    def recovered(self) -> Sequence[Recovered]:
        """See `Fabric`."""
        with self._lock:
            return [made for made, _ in self._recovered.values()]

    def recovered_spec(self, recovered: Recovered) -> RecoverySpec:
        """What a recovered machine was started with."""
        with self._lock:
            return self._recovered[recovered.id][1]

    def resume_stopped(self, recovered: Recovered) -> bool:
        """See `Fabric`."""
        with self._lock:
            stopped = recovered.id in self._stopped
            self._stopped.discard(recovered.id)
            return stopped

    def remove_recovered(self, recovered: Recovered) -> None:
        """See `Fabric`."""
        with self._lock:
            self._recovered.pop(recovered.id, None)
            self._stopped.discard(recovered.id)

    def close(self) -> None:
        """See `Fabric`."""


def _describe(machine: _MemoryMachine) -> Machine:
    with machine.lock:
        disks = tuple(
            Disk(id=disk.id, size_bytes=disk.size_bytes, format="raw", location=f"memory:{disk.id}")
            for disk in machine.disks.values()
        )
        return Machine(
            id=machine.id,
            name=machine.name,
            host=HOST,
            power=machine.power,
            disks=disks,
            nics=(Nic(mac="52:54:00:00:00:01", network="default"),),
            memory_bytes=GIB,
            cpus=1,
            agent=machine.agent,
            unprotectable=machine.unprotectable,
        )
