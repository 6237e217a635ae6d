"""What a server serves: the protocols, a file, and bytes in memory."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from secondsite.base.units import MIB

# fallocate(2), which Python's os module lacks in the form that punches holes
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Export(Protocol):
    """A disk that can be read. Called by several threads at once, one per connection."""

    @property
    def size_bytes(self) -> int:
        """Its size; fixed while it is served."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target`, which lies inside the disk. Raises OSError or SecondsiteError."""

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, int, bool]]:
        """``(start, end, is_zero)``, ascending, inside the range; gaps count as data."""


@runtime_checkable
class WritableExport(Export, Protocol):
    """A disk that can also be written. Only served as such where the server is told so."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`, which lies inside the disk."""

    def zero(self, offset: int, length: int, may_punch: bool) -> None:
        """Make a range read as zeroes; `may_punch`: its storage may be given back."""

    def flush(self) -> None:
        """Return when everything written is on stable storage."""


class MemoryExport:
    """A disk in memory, for tests and measurements."""

    def __init__(self, data: bytearray) -> None:
        self._view = memoryview(data)

    @property
    def size_bytes(self) -> int:
        """The length of the bytes it was made with."""
        return len(self._view)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Copy out."""
        target[:] = self._view[offset : offset + len(target)]

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, int, bool]]:
        """Everything is data."""
        return [(offset, offset + length, False)]

    def write(self, offset: int, data: memoryview) -> None:
        """Copy in."""
        self._view[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, may_punch: bool) -> None:  # noqa: ARG002
        """Overwrite with zeroes."""
        for start in range(offset, offset + length, MIB):
            end = min(start + MIB, offset + length)
            self._view[start:end] = bytes(end - start)

    def flush(self) -> None:
        """Nothing to do."""


class FileExport:
    """A raw image in a file; holes are found with SEEK_DATA and made with fallocate."""

    def __init__(self, path: str, *, writable: bool = False) -> None:
        self._file = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self._size_bytes = os.lseek(self._file, 0, os.SEEK_END)

    @property
    def size_bytes(self) -> int:
        """The file's length when it was opened."""
        return self._size_bytes

    def read_into(self, offset: int, target: memoryview) -> None:
        """`preadv` until `target` is full."""
        count = os.preadv(self._file, [target], offset)
        while count < len(target):
            more = os.preadv(self._file, [target[count:]], offset + count)
            if more == 0:
                raise OSError(errno.EIO, "the file was cut short")
            count += more

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, int, bool]]:
        """Holes are zero; the rest may hold data."""
        found: list[tuple[int, int, bool]] = []
        at, end = offset, offset + length
        while at < end:
            try:
                data = min(os.lseek(self._file, at, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = end  # no data from here on
            if data > at:
                found.append((at, data, True))
            if data < end:
                hole = min(os.lseek(self._file, data, os.SEEK_HOLE), end)
                found.append((data, hole, False))
                data = hole
            at = data
        return found

    def write(self, offset: int, data: memoryview) -> None:
        """`pwrite` until all is written."""
        while data:
            count = os.pwrite(self._file, data, offset)
            data, offset = data[count:], offset + count

    def zero(self, offset: int, length: int, may_punch: bool) -> None:
        """Punch a hole, or write zeroes where that is not allowed or not possible."""
        if may_punch:
            flags = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
            if _libc.fallocate64(self._file, flags, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
                return
            error = ctypes.get_errno()
            if error not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise OSError(error, os.strerror(error))
        zeroes = memoryview(bytes(MIB))
        for start in range(offset, offset + length, MIB):
            self.write(start, zeroes[: min(MIB, offset + length - start)])

    def flush(self) -> None:
        """fdatasync."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file; nothing may be reading."""
        os.close(self._file)
