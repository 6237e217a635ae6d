"""What a target keeps of an adoption: a record, and a log of every object it puts into the store.

    STATE/adoptions/MACHINE.json   the record, replaced whole
    STATE/adoptions/MACHINE.log    a line of JSON a segment (`SegmentRef`), synced before the segment is put

So whatever is killed when, every object that was put is named in the log, and is removed from the store when
the adoption is given up, or its part of the image is sealed again: what follows `log_bytes` of the record.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec

from secondsite.base.files import fsync_directory, read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.gateway.adopt.image import Image
from secondsite.gateway.messages.adoption import AdoptionState
from secondsite.model.ids import DiskId, KeyId, MachineId
from secondsite.model.points import SegmentRef

RECORD_BYTES_MAX = 1 * MIB


class AdoptionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How far an adoption came."""

    id: str  # 32 hexadecimal digits
    machine: MachineId
    name: str
    begun_at: str
    images: dict[DiskId, Image]  # ascending by disk
    state: AdoptionState = AdoptionState.OFFERED
    attempt: int = 0  # raised when everything is sealed anew
    epoch: int = 0  # the segments are of, and
    keys: dict[DiskId, KeyId] = {}  # sealed with, as the source said
    disk: int = 0  # index of the one sealing goes on in
    offset: int = 0
    log_bytes: int = 0  # of the log: what follows is of a part that is sealed again
    stored_bytes: int = 0
    nonce: str = ""  # of the proposal that is being committed
    point: int | None = None
    sent_bytes: int | None = None
    error: dict[str, str] | None = None
    version: int = 1

    @property
    def total_bytes(self) -> int:
        """Of the disks."""
        return sum(image.size_bytes for image in self.images.values())

    @property
    def done_bytes(self) -> int:
        """Of the disks, sealed."""
        before = list(self.images.values())[: self.disk]
        return sum(image.size_bytes for image in before) + self.offset


class RecordFile:
    """The two files of one machine's adoption."""

    def __init__(self, directory: Path, machine: MachineId) -> None:
        self._path = directory / f"{machine}.json"
        self.log_path = directory / f"{machine}.log"

    def load(self) -> AdoptionRecord | None:
        """The record; None when there is none that can be read."""
        try:
            data = read_limited(self._path, size_bytes_max=RECORD_BYTES_MAX)
            found = msgspec.json.decode(data, type=AdoptionRecord)
        except (FileNotFoundError, *JSON_ERRORS):
            return None
        return found if found.version == 1 else None

    def keep(self, record: AdoptionRecord) -> None:
        """Replace it, durable."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path, msgspec.json.encode(record))

    def remove(self) -> None:
        """Both; the log first, what it names must be gone by then."""
        self.remove_log()
        remove_file(self._path)

    def remove_log(self) -> None:
        """What it names is gone, or is a point's."""
        remove_file(self.log_path)

    @property
    def has_log(self) -> bool:
        """Whether anything may have been put."""
        return self.log_path.exists()

    def log(self) -> RefsLog:
        """Open it, made if there is none."""
        return RefsLog(self.log_path)

    def refs(self) -> list[SegmentRef]:
        """Everything the log names, in its order."""
        if not self.has_log:
            return []
        log = self.log()
        try:
            return log.after(0)
        finally:
            log.close()


class RefsLog:
    """The log, open. `add` is thread-safe."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fsync_directory(path.parent)
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return os.fstat(self._fd).st_size

    def add(self, ref: SegmentRef) -> None:
        """Name a segment that is about to be put; durable. Raises OSError."""
        line = msgspec.json.encode(ref) + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._fd, line) :]
            os.fdatasync(self._fd)

    def after(self, offset: int) -> list[SegmentRef]:
        """Segments named from `offset` on. A line cut short names one that was never put."""
        data = bytearray()
        while block := os.pread(self._fd, MIB, offset + len(data)):
            data += block
        lines = bytes(data).split(b"\n")[:-1]
        return [msgspec.json.decode(line, type=SegmentRef) for line in lines]

    def cut(self, offset: int) -> None:
        """What it named from there on is gone."""
        os.ftruncate(self._fd, offset)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
