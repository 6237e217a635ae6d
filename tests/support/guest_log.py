"""A guest whose writes outlive any gateway: an append-only log, replayed by a memory fabric on top of it.

The log is the truth: a disk's content at an instant is the log up to a position. Each capture notes
(checkpoint, position) before it returns, so that a test can say what every point must hold, whoever was
killed when. Checkpoints live in a file, as a hypervisor keeps its bitmaps while our process dies.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.files import replace_file
from secondsite.fabrics.base import Quiesce
from secondsite.fabrics.memory import MemoryCapture, MemoryFabric, MemorySource
from secondsite.model.ids import DiskId, MachineId

RECORD = struct.Struct("<BQI")  # index of the disk, offset, length; the bytes follow
MACHINE = "7d3c2a52-6a50-4e6b-9d0f-0f6f7b1d2c11"
DISKS = {"vda": 8 << 20, "vdb": 4 << 20}
NAMES = list(DISKS)


class GuestLog:
    """The writing side."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / "guest.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        record = RECORD.pack(NAMES.index(disk), offset, len(data)) + data
        assert os.write(self._fd, record) == len(record)

    def close(self) -> None:
        os.close(self._fd)


def contents_at(directory: Path, positions: list[int]) -> dict[int, dict[str, bytes]]:
    """Both disks at each position of the log."""
    data = (directory / "guest.log").read_bytes()
    disks = {name: bytearray(size) for name, size in DISKS.items()}
    found: dict[int, dict[str, bytes]] = {}
    wanted = set(positions)
    at = 0
    while True:
        if at in wanted:
            found[at] = {name: bytes(disk) for name, disk in disks.items()}
        if at + RECORD.size > len(data):
            return found
        index, offset, length = RECORD.unpack_from(data, at)
        start = at + RECORD.size
        if start + length > len(data):
            return found
        disks[NAMES[index]][offset : offset + length] = data[start : start + length]
        at = start + length


def positions_of(directory: Path) -> dict[str, int]:
    """Where in the log each captured checkpoint stands."""
    lines = (directory / "instants.log").read_text().splitlines()
    return {name: int(position) for name, position in (line.split() for line in lines)}


class ReplayedFabric(MemoryFabric):
    """One machine whose guest writes to the log in `directory`."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.directory = directory
        self.identity = self.add_machine("shop", DISKS, machine=MACHINE)
        self.position = 0
        self._marks: dict[str, int] = {}
        path = directory / "checkpoints.json"
        if path.exists():
            self._marks = json.loads(path.read_text())
        for name, position in sorted(self._marks.items(), key=lambda mark: mark[1]):
            self.replay(position)
            machine = self._find(self.identity)
            machine.checkpoints.append(name)
            for disk in machine.disks.values():
                disk.dirty[name] = set()

    def replay(self, until: int | None = None) -> None:
        """Apply the log up to `until`, or all whole records."""
        with (self.directory / "guest.log").open("rb") as file:
            file.seek(self.position)
            while until is None or self.position < until:
                head = file.read(RECORD.size)
                if len(head) < RECORD.size:
                    return
                index, offset, length = RECORD.unpack(head)
                data = file.read(length)
                if len(data) < length:
                    return
                self.write(self.identity, NAMES[index], offset, data)
                self.position += RECORD.size + length

    def write_between(self) -> None:
        """The guest wrote since the last capture, however fast the next one followed: no increment is empty.

        A writer in the test's process alone may not have had its turn: then a copy ends without increments.
        """
        guest = GuestLog(self.directory)
        guest.write(NAMES[0], 0, os.urandom(512))
        guest.close()

    def mark(self, name: str) -> None:
        """A checkpoint was made at the position reached."""
        self._marks[name] = self.position
        with (self.directory / "instants.log").open("a") as file:
            file.write(f"{name} {self.position}\n")
        self.keep()

    def keep(self) -> None:
        """Write down which checkpoints there are."""
        known = self._find(self.identity).checkpoints
        self._marks = {name: at for name, at in self._marks.items() if name in known}
        replace_file(self.directory / "checkpoints.json", json.dumps(self._marks).encode())

    def open_source(
        self, machine: MachineId, disks: object = None, *, left_out: object = (), taken: bool = False
    ) -> ReplayedSource:
        found = self._find(machine)
        return ReplayedSource(self, found, [DiskId(name) for name in NAMES], self._clock)


class ReplayedSource(MemorySource):
    """Its captures begin by catching up with the log."""

    def __init__(self, fabric: ReplayedFabric, machine: object, disks: list[DiskId], clock: Clock) -> None:
        super().__init__(machine, disks, clock)  # type: ignore[arg-type]
        self._fabric = fabric

    def capture(self, *, since: str | None, checkpoint: str | None, quiesce: Quiesce) -> MemoryCapture:
        with self._machine.lock:
            if since is not None:
                self._fabric.write_between()
            self._fabric.replay()
            capture = super().capture(since=since, checkpoint=checkpoint, quiesce=quiesce)
            if checkpoint is not None:
                self._fabric.mark(checkpoint)
            return capture

    def forget(self, checkpoint: str) -> None:
        with self._machine.lock:
            super().forget(checkpoint)
            self._fabric.keep()

    def release(self) -> None:
        with self._machine.lock:
            super().release()
            self._fabric.keep()
