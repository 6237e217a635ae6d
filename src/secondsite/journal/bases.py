"""Bases: what a replica's journal stands on. A base reads and writes at an offset and has an identity.

The identity is random and kept with the base itself, so that another file at the same place is noticed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
from pathlib import Path
from typing import Protocol

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import create_file, fsync_directory, read_limited
from secondsite.model.extents import Extents

AFTER_BASE_WRITE = mark("base.after-write")

_ATTRIBUTE = "user.secondsite.base"
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_ZEROS = bytes(1024 * 1024)


class BaseFailed(SecondsiteError):
    """The base's storage failed."""

    code = "base.failed"
    outcome = Outcome.UNAVAILABLE
    happened = "The base {locator} failed: {why}."
    cause = "The volume that holds it is full, was removed or has an error."
    action = (
        "Make room or repair the volume; nothing is lost, promotion is repeated. See RUNBOOK.md, store full."
    )


class BaseMismatch(SecondsiteError):
    """The base is missing or not the one the store knows."""

    code = "base.mismatch"
    outcome = Outcome.REFUSED
    happened = "The base of disk {disk} cannot be used: {why}."
    cause = "The file was moved, replaced or restored from a copy."
    action = "Put back the base {locator}, or name where it is now. See RUNBOOK.md, rescue without a server."


class BaseImage(Protocol):
    """A disk image a journal is promoted into and views read from. Thread-safe for reading."""

    @property
    def format(self) -> str:
        """How it is to be opened: "raw" or "qcow2"."""

    @property
    def locator(self) -> str:
        """Where it is, for people and for finding it again."""

    @property
    def identity(self) -> str:
        """32 hexadecimal digits, random, kept with the image."""

    @property
    def size_bytes(self) -> int:
        """Its size now."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; beyond the end are zeros. Raises BaseFailed."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write inside the size; not durable before `sync`. Raises BaseFailed."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, freeing its room where possible. Raises BaseFailed."""

    def resize(self, size_bytes: int) -> None:
        """Grow with zeros, or cut. Raises BaseFailed."""

    def sync(self) -> None:
        """Make everything written durable. Raises BaseFailed."""

    def data_extents(self, offset: int, length: int) -> Extents:
        """Where there may be data; everything else in the range reads as zeros."""

    def close(self) -> None:
        """Let go of it."""


class RawBase:
    """A sparse raw image file."""

    format = "raw"

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        """Open an existing image. Raises BaseFailed (also when there is none)."""
        self._path = Path(path).absolute()
        try:
            flags = os.O_RDONLY if read_only else os.O_RDWR
            self._fd = os.open(self._path, flags | os.O_CLOEXEC)
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            self._identity = self._read_identity()
        except OSError as error:
            raise self._failed(error) from error

    @classmethod
    def create(cls, path: Path | str, size_bytes: int) -> RawBase:
        """Make an empty image of `size_bytes`, or open the one that is there (and give it an identity)."""
        path = Path(path).absolute()
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < size_bytes:
                    os.ftruncate(fd, size_bytes)
                os.fsync(fd)
            finally:
                os.close(fd)
            fsync_directory(path.parent)
        except OSError as error:
            raise BaseFailed(locator=path, why=error.strerror) from error
        base = cls(path)
        if not base.identity:
            base._write_identity()
        return base

    @property
    def locator(self) -> str:
        """Its path."""
        return str(self._path)

    @property
    def identity(self) -> str:
        """As kept in the file's extended attribute or beside it; empty when it was never given one."""
        return self._identity

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return self._size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; see the protocol."""
        try:
            done = os.preadv(self._fd, (buffer,), offset)
            while done < len(buffer):
                if offset + done >= self._size_bytes:
                    buffer[done:] = bytes(len(buffer) - done)
                    return
                more = os.preadv(self._fd, (buffer[done:],), offset + done)
                if not more:  # cut meanwhile
                    buffer[done:] = bytes(len(buffer) - done)
                    return
                done += more
        except OSError as error:
            raise self._failed(error) from error

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write inside the size; see the protocol."""
        left = memoryview(data).cast("B")
        assert offset + len(left) <= self._size_bytes, "writes stay inside the image"
        try:
            while left:
                count = os.pwrite(self._fd, left, offset)
                left, offset = left[count:], offset + count
        except OSError as error:
            raise self._failed(error) from error
        crash_point(AFTER_BASE_WRITE)

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole; writes zeros where the file system cannot."""
        length = min(length, self._size_bytes - offset)
        if length <= 0:
            return
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        while _libc.fallocate(self._fd, mode, offset, length):
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise self._failed(OSError(number, os.strerror(number)))
            for start in range(offset, offset + length, len(_ZEROS)):
                self.write(start, memoryview(_ZEROS)[: min(len(_ZEROS), offset + length - start)])
            return

    def resize(self, size_bytes: int) -> None:
        """Grow with a hole, or cut."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise self._failed(error) from error
        self._size_bytes = size_bytes

    def sync(self) -> None:
        """fdatasync; it writes the size too."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def data_extents(self, offset: int, length: int) -> Extents:
        """SEEK_DATA and SEEK_HOLE; where they fail, everything may be data."""
        end = min(offset + length, self._size_bytes)
        found: list[tuple[int, int]] = []
        try:
            while offset < end:
                offset = os.lseek(self._fd, offset, os.SEEK_DATA)
                if offset >= end:
                    break
                hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
                found.append((offset, min(hole, end)))
                offset = hole
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data after the offset
                found.append((offset, end))
        return Extents.of(found)

    def close(self) -> None:
        """Close the file; twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed(self, error: OSError) -> BaseFailed:
        return BaseFailed(locator=self._path, why=error.strerror)

    @property
    def _beside(self) -> Path:
        return self._path.with_name(f".{self._path.name}.secondsite")

    def _read_identity(self) -> str:
        with contextlib.suppress(OSError):
            return os.getxattr(self._fd, _ATTRIBUTE).decode("ascii", "replace")
        with contextlib.suppress(FileNotFoundError):
            return read_limited(self._beside, size_bytes_max=64).decode("ascii", "replace").strip()
        return ""

    def _write_identity(self) -> None:
        identity = secrets.token_hex(16)
        try:
            try:
                os.setxattr(self._fd, _ATTRIBUTE, identity.encode())
                os.fsync(self._fd)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EPERM}:
                    raise
                create_file(self._beside, identity.encode() + b"\n")
        except OSError as error:
            raise self._failed(error) from error
        self._identity = identity
