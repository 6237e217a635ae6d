"""Durable file helpers: the only place that opens files for writing and calls sync.

Order, everywhere: write data, sync it, then the name that makes it visible, then sync the directory; delete
in reverse. A reader therefore finds a whole file or none.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from secondsite.base.errors import Outcome, SecondsiteError

TEMPORARY_PREFIX = ".tmp-"


class FileTooLarge(SecondsiteError):
    """A file is larger than its reader's limit."""

    code = "file.too-large"
    outcome = Outcome.REFUSED
    happened = "{path} has {size_bytes} bytes; at most {size_bytes_max} are read."
    cause = "The file is not what its name says, or was damaged."
    action = "Check the file; restore it from a copy if it was damaged."


def fsync_directory(path: Path) -> None:
    """Make the names inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the directory of `path`; leftovers are removed by `remove_leftovers`."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}"[:255])


@contextlib.contextmanager
def _written_temporary(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    temporary = temporary_beside(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        yield temporary
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put `data` at `path`, durable, replacing what was there; a crash leaves the old or the new file."""
    with _written_temporary(path, data, mode) as temporary:
        temporary.replace(path)
        fsync_directory(path.parent)


def create_file(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Put `data` at `path`, durable, unless the name exists; True when this call created it."""
    with _written_temporary(path, data, mode) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        fsync_directory(path.parent)
        return True


@contextlib.contextmanager
def created_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Write a file of any size: durable and visible at `path` when the block ends, nothing when it raises.

    Raises FileExistsError at the end when the name exists.
    """
    temporary = temporary_beside(path)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: bytes, *, size_bytes_max: int, mode: int = 0o600) -> None:
    """Append one line to a log; at `size_bytes_max` the log so far is kept once, as ``NAME.1``.

    Not synced: a log tells what happened to whoever is alive to read it, nothing is decided by it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
    try:
        if os.fstat(fd).st_size + len(line) > size_bytes_max:
            path.replace(path.with_name(f"{path.name}.1"))
            os.close(fd)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
        os.write(fd, line.rstrip(b"\n") + b"\n")
    finally:
        os.close(fd)


def reserve_file(path: Path, size_bytes: int) -> None:
    """Make `path` a file whose `size_bytes` are taken from the file system, not merely promised.

    Raises:
        OSError: there is no room; nothing is left.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def remove_file(path: Path) -> None:
    """Remove the name, durable; absent is fine."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        fsync_directory(path.parent)


def remove_leftovers(directory: Path) -> int:
    """Remove temporaries a crash left in `directory`; returns how many."""
    leftovers = list(directory.glob(f"{TEMPORARY_PREFIX}*"))
    for leftover in leftovers:
        with contextlib.suppress(FileNotFoundError):
            leftover.unlink()
    return len(leftovers)


def read_limited(path: Path, *, size_bytes_max: int) -> bytes:
    """Read a whole file of at most `size_bytes_max` bytes.

    Raises:
        FileTooLarge: the file is larger.
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        data = file.read(size_bytes_max + 1)
    if len(data) > size_bytes_max:
        raise FileTooLarge(path=path, size_bytes=path.stat().st_size, size_bytes_max=size_bytes_max)
    return data
