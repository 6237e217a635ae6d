"""Digest tables: what each 4 KiB of a replica holds, so that a fingerprint follows from changes alone.

A table is a cache on the cache volume: one sparse file a disk. Everything in it can be had again from the
store, so it is never synced while in use; it is not mapped either, because on a full volume even reading a
hole through a map may end the process (SIGBUS, seen on tmpfs). What makes it trustworthy is its stamp: the
point it holds, the data key its digests were made with, and the boot it was written in. A kill leaves
the pages in the kernel; a power cut changes the boot, and a table of another boot that was not closed
cleanly is void.

Header (4,096 bytes), little-endian, then 16 bytes (two lanes) a sub-block
 0   8  magic "2SITEDIG"         44  16  boot id, zero when closed cleanly
 8   4  version                  60   8  number of the point it holds
12   8  disk size in bytes       68   8  number of the point being folded in, 0: none
20  16  data key id              76  16  the sum of all digests, two lanes
36   8  zero                     92   8  xxh3_64 of bytes 0..91
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.journal.compare import RANGE_SUB_BLOCKS
from secondsite.journal.digests import Digests, update_lanes
from secondsite.model.ids import KeyId

HEADER = struct.Struct("<8sIQ16s8x16sQQQQ")
HEADER_BYTES = 4096
# A page of the file: writing it whole costs as much as writing a part of it.
NEAR_ROWS = 256
RUN_ROWS_MAX = 64 * 1024  # 1 MiB of them
MAGIC = b"2SITEDIG"
VERSION = 1
_CLEAN = bytes(16)


def boot_id() -> bytes:
    """16 bytes that change with every start of the kernel."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes


@dataclass(frozen=True)
class Stamp:
    """What a table holds."""

    size_bytes: int
    key: KeyId
    number: int = 0  # of the point; 0: an empty disk
    folding: int = 0  # the point whose changes are being written into the table, or 0
    lanes: tuple[int, int] = (0, 0)


def sub_blocks(size_bytes: int) -> int:
    """How many sub-blocks a disk has."""
    return -(-size_bytes // SUB_BLOCK_BYTES)


class DigestTable:
    """One disk's table. Not thread-safe: the machine's lock is held around every use."""

    def __init__(self, path: Path, stamp: Stamp, fd: int) -> None:
        self._path = path
        self._stamp = stamp
        self._fd = fd
        self._boot = boot_id()

    @classmethod
    def create(cls, path: Path, stamp: Stamp) -> DigestTable:
        """A table of zeros at `path`, replacing what was there."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        table = cls(path, stamp, fd)
        try:
            os.ftruncate(fd, HEADER_BYTES + 16 * sub_blocks(stamp.size_bytes))
            table.set_stamp(stamp)
        except OSError:
            table.drop()
            raise
        return table

    @classmethod
    def open(cls, path: Path) -> DigestTable | None:
        """The table at `path`; None when there is none that can be trusted."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        data = os.pread(fd, HEADER.size + 8, 0)
        stamp = _decode(data)
        if stamp is None or os.fstat(fd).st_size != HEADER_BYTES + 16 * sub_blocks(stamp.size_bytes):
            os.close(fd)
            return None
        table = cls(path, stamp, fd)
        table.set_stamp(stamp)  # of this boot from now on
        return table

    @property
    def stamp(self) -> Stamp:
        """What it holds now."""
        return self._stamp

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    def set_stamp(self, stamp: Stamp) -> None:
        """Say what it holds, for whoever opens it after a kill."""
        assert stamp.size_bytes == self._stamp.size_bytes, "resize first"
        self._stamp = stamp
        self._write_header(self._boot)

    def look_up(self, where: NDArray[np.int64]) -> Digests:
        """Digests of distinct sub-blocks by number, ascending."""
        found = [self._read(part)[1] for part in _near(where)]
        return np.concatenate(found) if found else np.empty((0, 2), dtype=np.uint64)

    def rows(self, first: int, count: int) -> Digests:
        """Digests of a run of sub-blocks; zeros beyond the disk's end."""
        data = os.pread(self._fd, 16 * count, HEADER_BYTES + 16 * first)
        found = np.zeros((count, 2), dtype=np.uint64)
        got = np.frombuffer(data, dtype="<u8").reshape(-1, 2)
        found[: len(got)] = got
        return found

    def sums(self, first: int, count: int) -> Digests:
        """Sums of the digests of `count` ranges from range `first` on. Holes of the file are not read."""
        found = np.zeros((count, 2), dtype=np.uint64)
        step = RUN_ROWS_MAX // RANGE_SUB_BLOCKS
        number = first
        while (number := self._next_used(number)) < first + count:
            part = min(step, first + count - number)
            rows = self.rows(number * RANGE_SUB_BLOCKS, part * RANGE_SUB_BLOCKS)
            by_range = rows.reshape(part, RANGE_SUB_BLOCKS, 2)
            found[number - first : number - first + part] = by_range.sum(axis=1, dtype=np.uint64)
            number += part
        return found

    def _next_used(self, number: int) -> int:
        """The first range from `number` on that the file has anything for; far beyond all: none."""
        try:
            at = os.lseek(self._fd, HEADER_BYTES + 16 * RANGE_SUB_BLOCKS * number, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return sys.maxsize
        return (at - HEADER_BYTES) // (16 * RANGE_SUB_BLOCKS)

    def write(self, where: NDArray[np.int64], digests: Digests) -> tuple[int, int]:
        """Replace digests of distinct sub-blocks, ascending; returns the sum afterwards.

        The stamp stays as it is. Raises OSError, e.g. when the volume is full.
        """
        lanes, done = self._stamp.lanes, 0
        for part in _near(where):
            new = digests[done : done + len(part)]
            done += len(part)
            rows, old = self._read(part)
            lanes = update_lanes(lanes, old, new)
            rows[part - part[0]] = new
            os.pwrite(self._fd, rows.tobytes(), HEADER_BYTES + 16 * int(part[0]))
        return lanes

    def _read(self, part: NDArray[np.int64]) -> tuple[Digests, Digests]:
        """(all rows from the first to the last sub-block of `part`, those of `part`)."""
        first, count = int(part[0]), int(part[-1] - part[0]) + 1
        data = os.pread(self._fd, 16 * count, HEADER_BYTES + 16 * first)
        assert len(data) == 16 * count, "a sub-block beyond the disk's end"
        rows = np.frombuffer(data, dtype="<u8").reshape(count, 2).astype(np.uint64)
        return rows, rows[part - first]

    def resize(self, size_bytes: int) -> bool:
        """Follow the disk's size, new sub-blocks being zero; False when the table cannot know the result.

        A sub-block cut short by the disk's end is digested as it is, so its digest says nothing about the
        whole one: such sizes void the table.
        """
        old = self._stamp.size_bytes
        if size_bytes == old:
            return True
        if size_bytes % SUB_BLOCK_BYTES or old % SUB_BLOCK_BYTES:
            return False
        lanes = self._stamp.lanes
        nothing = np.zeros((1, 2), dtype=np.uint64)
        for first in range(sub_blocks(size_bytes), sub_blocks(old), RUN_ROWS_MAX):
            gone = np.arange(first, min(first + RUN_ROWS_MAX, sub_blocks(old)), dtype=np.int64)
            lanes = update_lanes(lanes, self.look_up(gone), nothing)
        os.ftruncate(self._fd, HEADER_BYTES + 16 * sub_blocks(size_bytes))
        self._stamp = replace(self._stamp, size_bytes=size_bytes, lanes=lanes)
        self._write_header(self._boot)
        return True

    def close(self) -> None:
        """Sync it, mark it clean."""
        os.fdatasync(self._fd)
        self._write_header(_CLEAN)
        os.fdatasync(self._fd)
        os.close(self._fd)

    def drop(self) -> None:
        """It cannot be trusted: remove it."""
        os.close(self._fd)
        self._path.unlink(missing_ok=True)

    def move(self, path: Path) -> None:
        """Take the place of another table's file."""
        self._path.rename(path)
        self._path = path

    def _write_header(self, boot: bytes) -> None:
        stamp = self._stamp
        data = HEADER.pack(
            MAGIC,
            VERSION,
            stamp.size_bytes,
            bytes.fromhex(stamp.key),
            boot,
            stamp.number,
            stamp.folding,
            *stamp.lanes,
        )
        # a header cut short has a checksum that does not fit: void
        os.pwrite(self._fd, data + xxhash.xxh3_64_digest(data), 0)


def _near(where: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Ascending numbers in parts that are read and written at once."""
    if not len(where):
        return
    cuts = np.flatnonzero(np.diff(where) > NEAR_ROWS) + 1
    for part in np.split(where, cuts):
        while len(part) and part[-1] - part[0] >= RUN_ROWS_MAX:
            end = int(np.searchsorted(part, part[0] + RUN_ROWS_MAX))
            yield part[:end]
            part = part[end:]  # noqa: PLW2901 - what is left of it
        yield part


def _decode(data: bytes) -> Stamp | None:
    if len(data) != HEADER.size + 8 or xxhash.xxh3_64_digest(data[:-8]) != data[-8:]:
        return None
    magic, version, size_bytes, key, boot, number, folding, low, high = HEADER.unpack(data[:-8])
    if magic != MAGIC or version != VERSION or boot not in {_CLEAN, boot_id()}:
        return None
    return Stamp(size_bytes, KeyId(key.hex()), number, folding, (low, high))
