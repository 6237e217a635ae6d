"""A simulated hypervisor as a process of its own: machines in memory that are written to at a given rate.

    python -m bench.churn_host DIRECTORY MACHINES DISK_BYTES

It listens on ``DIRECTORY/host.sock`` (see `churn_wire`): checkpoints and captures as a hypervisor has them,
each capture's disks served over NBD on a unix socket, tracked in chunks of 64 KiB, as coarse as QEMU. What is
written is half random, half text, in whole blocks at random places. It ends with its standard input.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path

import msgspec
import numpy as np

from bench.churn_wire import Ask, CaptureFacts, DiskFacts, Do, Tell, send
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.fabrics.base import Capture
from secondsite.fabrics.memory import MemoryCapture, MemoryFabric, MemorySource
from secondsite.fabrics.memory_machine import MemoryDisk, MemoryDiskCapture
from secondsite.model.ids import MachineId, disk_id
from secondsite.nbd.server import NbdServer

TICK_SECONDS = 0.005
BLOCKS_AT_ONCE = 32
_POOL_BYTES = 32 * MIB


class HostDisk(MemoryDisk):
    """Copies a chunk before its first write after a capture, as QEMU does, and then writes in place."""

    ours: set[int]  # numbers of chunks that no capture shares

    def write_blocks(self, places: list[int], content: memoryview, starts: list[int], length: int) -> None:
        """Blocks that divide a chunk, each at its place, from its start in `content`."""
        newest = next(reversed(self.dirty.values()), set())
        chunk_bytes, chunks, ours = self.chunk_bytes, self.chunks, self.ours
        for place, start in zip(places, starts, strict=True):
            number, at = divmod(place, chunk_bytes)
            if number not in ours:
                chunks[number] = bytearray(chunks.get(number, bytes(chunk_bytes)))  # type: ignore[assignment]
                ours.add(number)
            chunks[number][at : at + length] = content[start : start + length]  # type: ignore[index]
            newest.add(number)


class HostFabric(MemoryFabric):
    """Its disks are `HostDisk`s."""

    def _disk(self, name: str, size_bytes: int) -> MemoryDisk:
        disk = HostDisk(disk_id(name), size_bytes, self._chunk_bytes)
        disk.ours = set()
        return disk

    def write_blocks(
        self, machine: MachineId, places: list[int], content: memoryview, starts: list[int], length: int
    ) -> None:
        """See `HostDisk.write_blocks`; no capture falls between them."""
        found = self._find(machine)
        with found.lock:
            disk = found.disks[disk_id("vda")]
            assert isinstance(disk, HostDisk)
            disk.write_blocks(places, content, starts, length)

    def capture(self, asked: Ask, source: MemorySource) -> MemoryCapture:
        """One of its machines'; from now on no chunk is the disks' alone."""
        found = self._find(asked.machine)
        with found.lock:
            capture = source.capture(since=asked.since, checkpoint=asked.checkpoint, quiesce=asked.quiesce)
            for disk in found.disks.values():
                if isinstance(disk, HostDisk):
                    disk.ours.clear()
            return capture


class Feeder:
    """Writes at a rate; what it cannot keep up with is not made up for, and shows in `written_bytes`."""

    def __init__(self, fabric: HostFabric, machines: list[MachineId], disk_bytes: int) -> None:
        self._fabric, self._machines, self._disk_bytes = fabric, machines, disk_bytes
        self._chance, self._dice = random.Random(1), np.random.default_rng(1)
        text = b"a line of a log file, number %d, and what it says\n" * 40
        half = b"".join(text % tuple([n] * 40) for n in range(_POOL_BYTES // 2 // len(text)))
        self._pool = memoryview(self._chance.randbytes(_POOL_BYTES // 2) + half)
        self.rate, self.block = 0.0, 16384
        self.written_bytes = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        owed, before, turn = 0.0, time.monotonic(), 0
        while True:
            time.sleep(TICK_SECONDS)
            now, rate, block = time.monotonic(), self.rate, self.block
            owed = min(owed + (now - before) * rate, rate * 0.5)
            before = now
            count = int(owed // block)
            owed -= count * block
            for first in range(0, count, BLOCKS_AT_ONCE):  # few under one lock: a capture waits for it
                self._write(
                    self._machines[turn % len(self._machines)], block, min(BLOCKS_AT_ONCE, count - first)
                )
                turn += 1

    def _write(self, machine: MachineId, block: int, count: int) -> None:
        places = (self._dice.integers(0, self._disk_bytes // block, count) * block).tolist()
        starts = self._dice.integers(0, len(self._pool) - block, count).tolist()
        self._fabric.write_blocks(machine, places, self._pool, starts, block)
        self.written_bytes += count * block

    def fill(self) -> None:
        """Every disk whole, so that a rate changes data and takes no new room."""
        for machine in self._machines:
            for place in range(0, self._disk_bytes, MIB):
                start = self._chance.randrange(len(self._pool) - MIB)
                self._fabric.write(machine, "vda", place, self._pool[start : start + MIB])


class CaptureExport:
    """A disk of a capture as NBD serves it."""

    def __init__(self, disk: MemoryDiskCapture) -> None:
        # its `read` copies twice
        self._chunks, self._chunk_bytes = disk._chunks, disk._chunk_bytes  # noqa: SLF001
        self._size_bytes = disk.size_bytes

    @property
    def size_bytes(self) -> int:
        """See `Export`."""
        return self._size_bytes

    def read_into(self, offset: int, target: memoryview) -> None:
        """See `Export`."""
        done, unit = 0, self._chunk_bytes
        while done < len(target):
            number, at = divmod(offset + done, unit)
            count = min(unit - at, len(target) - done)
            chunk = self._chunks.get(number)
            target[done : done + count] = (
                bytes(count) if chunk is None else memoryview(chunk)[at : at + count]
            )
            done += count

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, int, bool]]:
        """Everything may be data."""
        return [(offset, offset + length, False)]

    def close(self) -> None:
        """Let go of the chunks: a capture and its disks refer to each other, and are collected late."""
        self._chunks.clear()


class Host:
    """Answers requests, one thread a connection."""

    def __init__(self, directory: Path, count: int, disk_bytes: int) -> None:
        self._directory = directory
        self.fabric = HostFabric()
        machines = [self.fabric.add_machine(f"churn-{n}", {"vda": disk_bytes}) for n in range(count)]
        self.feeder = Feeder(self.fabric, machines, disk_bytes)
        self._sources = {machine: self.fabric.open_source(machine) for machine in machines}
        self._open: dict[MachineId, tuple[Capture, NbdServer, list[CaptureExport]]] = {}

    def listen(self) -> None:
        """Accept until the process ends."""
        listener = Listener(str(self._directory / "host.sock"), "AF_UNIX", backlog=64)
        while True:
            connection = listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        while True:
            try:
                asked = msgspec.msgpack.decode(connection.recv_bytes(), type=Ask)
            except (EOFError, OSError):
                return
            try:
                told = self._answer(asked)
            except SecondsiteError as error:
                told = Tell(error=(error.code, {key: str(value) for key, value in error.fields.items()}))
            send(connection, told)

    def _answer(self, asked: Ask) -> Tell:
        if asked.do is Do.MACHINES:
            return Tell(machines=list(self.fabric.machines()))
        if asked.do in {Do.FILL, Do.RATE, Do.TOLD}:
            if asked.do is Do.FILL:
                self.feeder.fill()
            elif asked.do is Do.RATE:
                self.feeder.rate, self.feeder.block = asked.mb_s * 1e6, asked.block_bytes
            return Tell(written_bytes=self.feeder.written_bytes, process=os.getpid())
        source = self._sources[asked.machine]
        match asked.do:
            case Do.DEFINITION:
                return Tell(definition=source.definition())
            case Do.CHECKPOINTS:
                return Tell(checkpoints=list(source.checkpoints()))
            case Do.RECALL:
                return Tell(found=source.recall(asked.checkpoint or ""))
            case Do.FORGET:
                source.forget(asked.checkpoint or "")
            case Do.RELEASE:
                self._close(asked.machine)
                source.release()
            case Do.CLOSE:
                self._close(asked.machine)
            case Do.CAPTURE:
                return Tell(capture=self._capture(asked))
        return Tell()

    def _capture(self, asked: Ask) -> CaptureFacts:
        source = self._sources[asked.machine]
        capture = self.fabric.capture(asked, source)
        exports = {str(disk.id): CaptureExport(disk) for disk in capture.disks}
        server = NbdServer(exports)
        socket_path = str(self._directory / f"{asked.machine[:8]}.sock")
        server.listen_unix(socket_path)
        self._open[asked.machine] = capture, server, list(exports.values())
        disks = []
        for disk in capture.disks:
            changed = disk.changed()
            disks.append(
                DiskFacts(
                    id=disk.id,
                    size_bytes=disk.size_bytes,
                    location=disk.location,
                    untracked=disk.untracked,
                    starts=changed.starts.tobytes(),
                    ends=changed.ends.tobytes(),
                )
            )
        left_out = dict(capture.left_out)
        return CaptureFacts(instant=capture.instant, left_out=left_out, disks=disks, socket=socket_path)

    def _close(self, machine: MachineId) -> None:
        found = self._open.pop(machine, None)
        if found is not None:
            capture, server, exports = found
            server.close()
            capture.close()
            for export in exports:
                export.close()


def main() -> None:
    """See the module's text."""
    # the thread that serves a capture waits for the interpreter while the feeder writes; 5 ms by default
    sys.setswitchinterval(0.0005)
    directory, count, disk_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    host = Host(directory, count, disk_bytes)
    threading.Thread(target=host.listen, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
