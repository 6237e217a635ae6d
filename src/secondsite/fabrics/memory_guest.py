"""The other side of the in-memory twin: what guests, administrators and bad luck do to its machines."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence

from secondsite.fabrics import errors
from secondsite.fabrics.memory_machine import HOST, MemoryDisk, MemoryMachine
from secondsite.model.ids import DiskId, MachineId, disk_id, machine_id
from secondsite.model.machines import PowerState


class MemoryGuests:
    """Machines to be written to, changed, broken and taken away. Thread-safe."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._lock = threading.RLock()
        self._machines: dict[MachineId, MemoryMachine] = {}
        self._daemon_down = ""

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
        made = {disk_id(disk): self._disk(disk, size_bytes) for disk, size_bytes in disks.items()}
        with self._lock:
            self._machines[identity] = MemoryMachine(identity, name, made, agent, tuple(unprotectable))
        return identity

    def _disk(self, name: str, size_bytes: int) -> MemoryDisk:
        return MemoryDisk(disk_id(name), size_bytes, self._chunk_bytes)

    def _find(self, machine: MachineId) -> MemoryMachine:
        with self._lock:
            found = self._machines.get(machine)
        if found is None:
            raise errors.MachineUnknown(machine=machine, host=HOST)
        return found

    # -- the guest --------------------------------------------------------------------------------

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
            return found.disks[DiskId(disk)].content()

    # -- the administrator ------------------------------------------------------------------------

    def resize(self, machine: MachineId, disk: str, size_bytes: int) -> None:
        """Change a disk's size, also while the machine runs."""
        found = self._find(machine)
        with found.lock:
            found.disks[DiskId(disk)].resize(size_bytes)

    def add_disk(self, machine: MachineId, disk: str, size_bytes: int, *, refused: str = "") -> None:
        """Plug an empty disk in; `refused`: why it cannot be captured."""
        found = self._find(machine)
        with found.lock:
            found.disks[disk_id(disk)] = self._disk(disk, size_bytes)
            if refused:
                found.refused[disk_id(disk)] = refused

    def remove_disk(self, machine: MachineId, disk: str) -> None:
        """Unplug one; its content and bitmaps go with it."""
        found = self._find(machine)
        with found.lock:
            del found.disks[DiskId(disk)]
            found.refused.pop(DiskId(disk), None)

    def set_power(self, machine: MachineId, power: PowerState) -> None:
        """Start it or shut it off. Tracking stays, as an orderly shutdown keeps a hypervisor's bitmaps."""
        found = self._find(machine)
        with found.lock:
            found.power, found.killed, found.paused = power, False, False
            if power is PowerState.RUNNING and found.isolated is not None:
                found.paused = True  # the guard of a real host does that within a second
            if found.capture is not None and power is PowerState.OFF:
                found.capture.close()

    def write_offline(self, machine: MachineId, disk: str, offset: int, data: bytes) -> None:
        """Somebody changes the image of a machine that is off, with a tool that knows no bitmaps."""
        found = self._find(machine)
        with found.lock:
            assert found.power is PowerState.OFF
            image = found.disks[DiskId(disk)]
            image.write(offset, data, tracked=False)
            image.written_at += 1

    def take_snapshot(self, machine: MachineId) -> None:
        """The machine writes to other image files from now on; tracking goes on in them."""
        found = self._find(machine)
        with found.lock:
            for disk in found.disks.values():
                disk.snapshots += 1

    def merge_snapshot(self, machine: MachineId) -> None:
        """The newest image files are merged into those beneath."""
        found = self._find(machine)
        with found.lock:
            for disk in found.disks.values():
                disk.snapshots -= 1

    def migrate_away(self, machine: MachineId, why: str) -> None:
        """To another host; empty `why`: it is back, its bitmaps with it, this host's records without."""
        found = self._find(machine)
        with found.lock:
            found.away = why
            if found.capture is not None:
                found.capture.close()
            found.checkpoints.clear()

    # -- bad luck ---------------------------------------------------------------------------------

    def lose_tracking(self, machine: MachineId) -> None:
        """Forget every checkpoint and bitmap."""
        found = self._find(machine)
        with found.lock:
            found.checkpoints.clear()
            for disk in found.disks.values():
                disk.dirty.clear()

    def lose_records(self, machine: MachineId) -> None:
        """The host forgets its checkpoints, the images keep their bitmaps: it was defined anew."""
        found = self._find(machine)
        with found.lock:
            found.checkpoints.clear()

    def lose_bitmaps(self, machine: MachineId, disk: str | None = None) -> None:
        """The images (or one) lose their bitmaps, the host lists its checkpoints: exchanged, or broken."""
        found = self._find(machine)
        with found.lock:
            for each in found.disks.values():
                if disk is None or each.id == disk:
                    each.dirty.clear()

    def kill_hypervisor(self, machine: MachineId) -> None:
        """Its process dies: the machine is off at once, bitmaps that were not stored are broken."""
        self.set_power(machine, PowerState.OFF)
        self._find(machine).killed = True
        self.lose_bitmaps(machine)

    def stop_daemon(self, why: str) -> None:
        """The host's daemon does not answer; its machines run on. Empty: it does again."""
        self._daemon_down = why

    def set_busy(self, machine: MachineId, why: str) -> None:
        """Another product's job holds the machine; empty: none does any more."""
        self._find(machine).busy = why

    def fail_freeze(self, machine: MachineId, why: str) -> None:
        """The guest agent fails with this; empty: it works."""
        self._find(machine).freeze_fails = why

    def fail_reads(self, machine: MachineId, count: int) -> None:
        """Let the next `count` reads of captures fail."""
        self._find(machine).read_fails = count

    def open_captures(self, machine: MachineId) -> int:
        """How many captures are open now."""
        return int(self._find(machine).capture is not None)

    def _check_daemon(self) -> None:
        if self._daemon_down:
            raise errors.HypervisorUnreachable(uri="memory:///", why=self._daemon_down)
