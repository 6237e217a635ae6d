"""The disks that are copied and served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from secondsite.base.units import GIB, MIB

STRIPE_BYTES = 16 * MIB
# where real files come from: programs, libraries, documentation, as on any machine
FILES_ROOTS = ("/usr/lib", "/usr/share", "/usr/bin", "/usr/include", "/var/lib")


def make_mixed(path: Path, size_bytes: int = 4 * GIB) -> int:
    """A raw disk: half holes, a quarter real files, a quarter random, in stripes; returns bytes of data.

    The holes are real holes; the files are those of this machine in a fixed order, one after the other.
    """
    files = _file_bytes()
    data_bytes = 0
    with path.open("wb") as disk:
        disk.truncate(size_bytes)
        for start in range(0, size_bytes, 4 * STRIPE_BYTES):
            disk.seek(start + STRIPE_BYTES)
            disk.write(_take(files, STRIPE_BYTES))
            disk.seek(start + 3 * STRIPE_BYTES)
            disk.write(os.urandom(STRIPE_BYTES))
            data_bytes += 2 * STRIPE_BYTES
        os.fsync(disk.fileno())
    return data_bytes


def make_full(path: Path, size_bytes: int = 4 * GIB) -> None:
    """A raw disk without a hole: real files and random bytes in turn, in stripes."""
    files = _file_bytes()
    with path.open("wb") as disk:
        for _ in range(0, size_bytes, 2 * STRIPE_BYTES):
            disk.write(_take(files, STRIPE_BYTES))
            disk.write(os.urandom(STRIPE_BYTES))
        os.fsync(disk.fileno())


def make_sparse(path: Path, size_bytes: int, data_bytes: int) -> None:
    """A raw disk that is almost all one hole: its data, files and random bytes, lie in four parts of it."""
    files = _file_bytes()
    with path.open("wb") as disk:
        disk.truncate(size_bytes)
        for part in range(4):
            disk.seek(part * (size_bytes // 4))
            for _ in range(0, data_bytes // 4, 2 * STRIPE_BYTES):
                disk.write(_take(files, STRIPE_BYTES))
                disk.write(os.urandom(STRIPE_BYTES))
        os.fsync(disk.fileno())


def _file_bytes() -> Iterator[bytes]:
    while True:
        count = 0
        for root in FILES_ROOTS:
            for directory, names, files in os.walk(root):
                names.sort()
                for name in sorted(files):
                    path = Path(directory, name)
                    if path.is_file() and not path.is_symlink():
                        try:
                            data = path.read_bytes()
                        except OSError:
                            continue
                        count += len(data)
                        yield data
        if count < GIB // 8:
            raise RuntimeError("this machine has too few files to make a disk of")


def _take(pieces: Iterator[bytes], length: int) -> bytes:
    taken = bytearray()
    while len(taken) < length:
        taken += next(pieces)
    return bytes(taken[:length])
