"""Objects on their way into a store that takes whole objects only: files of a local directory until then.

Segments are at most some 17 MiB, so one conditional PUT at the end is both simpler and cheaper than a
multipart upload, and what arrived before a restart is still there afterwards. Not synced: whoever resumes
checks the whole object's hash before publishing it (see `StagedObject`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3

from secondsite.base.errors import SecondsiteError
from secondsite.journal.store import ObjectExists, StagedElsewhere, StoreFull, StoreUnavailable
from secondsite.journal.store_local import write_all

# Creates an object from bytes; raises ObjectExists and what `ObjectStore.put` raises.
Publish = Callable[[str, memoryview], None]


class StagingDirectory:
    """The staged objects of one store in one directory; several processes may use it at the same time."""

    def __init__(self, directory: Path, store: str, publish: Publish) -> None:
        """store: its URL, which the files' names are made of, so that stores may share the directory."""
        self._directory = directory
        self._store = store
        self._publish = publish
        self._lock = threading.Lock()
        self._staged: dict[str, FileStagedObject] = {}
        with self.errors(str(directory)):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def stage(self, key: str, exists: Callable[[], bool]) -> FileStagedObject:
        """Begin or resume; `exists` is asked once the file is ours. See `ObjectStore.stage`."""
        with self._lock:
            earlier = self._staged.pop(key, None)
        if earlier is not None:
            earlier.close()
        digest = blake3.blake3(f"{self._store}\n{key}".encode()).hexdigest()[:40]
        path = self._directory / f"{digest}.part"
        with self.errors(key):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # whoever held the lock before may have published this very file: it must not grow any more
                if path.stat().st_ino != os.fstat(fd).st_ino:
                    raise BlockingIOError
                if exists():
                    path.unlink(missing_ok=True)  # a kill between publishing and unlinking leaves the file
                    raise ObjectExists(key=key, store=self._store)
            except (BlockingIOError, FileNotFoundError):
                os.close(fd)
                raise StagedElsewhere(key=key, store=self._store) from None
            except BaseException:
                os.close(fd)
                raise
        staged = FileStagedObject(self, key, path, fd)
        with self._lock:
            self._staged[key] = staged
        return staged

    def close(self) -> None:
        """Let go of everything staged, keeping its bytes."""
        with self._lock:
            staged = list(self._staged.values())
        for one in staged:
            one.close()

    def publish(self, key: str, data: memoryview) -> None:
        """Put it into the store."""
        self._publish(key, data)

    def forget(self, staged: FileStagedObject, key: str) -> None:
        """It has ended."""
        with self._lock:
            if self._staged.get(key) is staged:
                del self._staged[key]

    def gone(self, key: str) -> StagedElsewhere:
        """The error of a stager that lost its object."""
        return StagedElsewhere(key=key, store=self._store)

    @contextlib.contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Errors of the operating system in the words of the store."""
        try:
            yield
        except SecondsiteError:
            raise
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StoreFull(store=f"{self._directory} (staging)", key=key) from error
            where = f"{self._directory} (staging)"
            raise StoreUnavailable(store=where, key=key, why=error.strerror) from error


class FileStagedObject:
    """A file that grows until it is published; made by `StagingDirectory.stage`."""

    def __init__(self, staging: StagingDirectory, key: str, path: Path, fd: int) -> None:
        self._staging, self._key, self._path = staging, key, path
        self._lock = threading.Lock()
        self._fd: int | None = fd
        self._offset = os.fstat(fd).st_size

    @property
    def offset(self) -> int:
        """Bytes staged so far."""
        return self._offset

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end; a failed append adds none."""
        with self._lock, self._staging.errors(self._key):
            fd = self._held()
            try:
                os.lseek(fd, self._offset, os.SEEK_SET)
                self._offset += write_all(fd, data)
            except OSError:
                os.ftruncate(fd, self._offset)
                raise

    def read_back(self, start: int, length: int) -> bytes:
        """Bytes staged so far; short at the end."""
        with self._lock, self._staging.errors(self._key):
            return os.pread(self._held(), length, start)

    def publish(self) -> None:
        """One conditional PUT of the whole file; when it fails the bytes stay and it can be repeated."""
        with self._lock, self._staging.errors(self._key):
            fd = self._held()
            try:
                # mapped, not read: the pages are the page cache's, not ours; the last reference unmaps them
                mapped = mmap.mmap(fd, self._offset, prot=mmap.PROT_READ) if self._offset else b""
                self._staging.publish(self._key, memoryview(mapped))
            except ObjectExists:
                self._end(remove=True)
                raise
            self._end(remove=True)

    def discard(self) -> None:
        """Drop the staged bytes."""
        with self._lock:
            self._end(remove=True)

    def close(self) -> None:
        """Let go of it, keeping its bytes."""
        with self._lock:
            self._end(remove=False)

    def _held(self) -> int:
        if self._fd is None:
            raise self._staging.gone(self._key)
        return self._fd

    def _end(self, *, remove: bool) -> None:
        if self._fd is None:
            return
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None
        self._staging.forget(self, self._key)
