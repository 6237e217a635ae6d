"""A durable object store in a directory: what obstore's local one is not, because that one never syncs.

An object is written to a file of ``.staging``, synced, and linked to its name; link refuses a name that
exists, so exactly one creator wins. The name's directory is synced before the call returns. A name may be
seen by a reader before that sync; so that nobody acts on a name that a power cut could still take away,
readers sync directories that have unsynced names, and every directory once per process (a killed process
may have left names unsynced).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import blake3

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import FileTooLarge, fsync_directory
from secondsite.base.units import MIB
from secondsite.journal.names import reserve_share
from secondsite.journal.store import (
    ObjectExists,
    ObjectMissing,
    StagedElsewhere,
    StoreFull,
    StoreUnavailable,
    check_key,
    check_prefix,
)

STAGING = ".staging"
# A view of a hundred cycles reads a few hundred segments; the usual limit of open files is 1,024.
OPEN_FILES_MAX = 256
# Kept free for what frees room: records, states, merging (architecture's rule 17); less on a small volume.
RESERVE_BYTES_MAX = 256 * MIB
RESERVE_PART = 20
# Of an upload nobody goes on with. A link that is cut for longer costs the one segment that was under way.
PART_SECONDS_MAX = 7 * 86400.0

AFTER_WRITE = mark("store.after-write")
AFTER_SYNC = mark("store.after-sync")
AFTER_LINK = mark("store.after-link")
AFTER_DELETE = mark("store.after-delete")


class LocalStore:
    """Objects as files below `root`. Several processes may use one directory at the same time."""

    def __init__(self, root: Path | str, *, create: bool = True) -> None:
        """Open the store; `create` makes the directory when it is not there (never for a rescue)."""
        self._root = Path(root).absolute()
        self._staging = self._root / STAGING
        self._lock = threading.Lock()
        self._durable: set[Path] = set()  # directories whose own names are known to be durable
        self._unsynced: dict[Path, int] = {}  # directories with names linked but not synced yet
        self._staged: dict[str, LocalStagedObject] = {}
        self._open_files = _OpenFiles(OPEN_FILES_MAX)
        weakref.finalize(self, self._open_files.close)  # who forgets to close leaks nothing for ever
        with self._errors(STAGING):
            if create:
                self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)
                fsync_directory(self._root.parent)
                fsync_directory(self._root)
                self._remove_leftovers()
            elif not self._root.is_dir():
                raise FileNotFoundError(errno.ENOENT, "no such directory")

    @property
    def url(self) -> str:
        """``file:///…``."""
        return self._root.as_uri()

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Create an object; see the protocol."""
        path = self._path(key)
        with self._errors(key):
            if path.exists():
                self._settle(path.parent)
                raise ObjectExists(key=key, store=self.url)
            self.check_room(key, len(data))
            temporary = self._staging / f"tmp-{secrets.token_hex(16)}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)  # tells a live temporary from a leftover
                write_all(fd, data)
                self._publish(fd, temporary, path, key)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
                os.close(fd)

    def check_room(self, key: str, length: int) -> None:
        """Raise StoreFull when `length` more bytes of `key` would take of the room that is kept free."""
        share = reserve_share(key)
        if not share:
            return
        volume = os.statvfs(self._root)
        reserve = min(RESERVE_BYTES_MAX, volume.f_blocks * volume.f_frsize // RESERVE_PART)
        if volume.f_bavail * volume.f_frsize - length < share * reserve:
            raise StoreFull(store=self.url, key=key)

    def stage(self, key: str) -> LocalStagedObject:
        """Begin or resume an object; see the protocol."""
        path = self._path(key)
        with self._lock:
            earlier = self._staged.pop(key, None)
        if earlier is not None:
            earlier.close()
        temporary = self._staging / (blake3.blake3(key.encode()).hexdigest()[:40] + ".part")
        with self._errors(key):
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():
                    temporary.unlink(missing_ok=True)  # a kill between link and unlink leaves both names
                    self._settle(path.parent)
                    raise ObjectExists(key=key, store=self.url)
                # whoever held the lock before may have published this very file: it must not grow any more
                if temporary.stat().st_ino != os.fstat(fd).st_ino:
                    raise BlockingIOError
            except (BlockingIOError, FileNotFoundError):
                os.close(fd)
                raise StagedElsewhere(key=key, store=self.url) from None
            except BaseException:
                os.close(fd)
                raise
        staged = LocalStagedObject(self, key, path, temporary, fd)
        with self._lock:
            self._staged[key] = staged
        return staged

    def get(self, key: str, *, size_bytes_max: int) -> bytes:
        """A whole object; see the protocol."""
        path = self._path(key)
        with self._errors(key):
            with path.open("rb") as file:
                data = file.read(size_bytes_max + 1)
            self._settle(path.parent)
        if len(data) > size_bytes_max:
            raise FileTooLarge(path=key, size_bytes=self.size(key), size_bytes_max=size_bytes_max)
        return data

    def read(self, key: str, start: int, length: int) -> bytes:
        """Part of an object; see the protocol. Keeps recently read files open: objects never change."""
        with self._errors(key), self._open_files.borrow(key, self._root / key) as fd:
            data = read_up_to(fd, start, length)
        if len(data) < length:
            raise EOFError(f"{key} ends before {start + length}")
        return data

    def size(self, key: str) -> int:
        """An object's size in bytes; see the protocol."""
        path = self._path(key)
        with self._errors(key):
            size_bytes = path.stat().st_size
            self._settle(path.parent)
            return size_bytes

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Names in byte order; see the protocol."""
        yield from self._walk(check_prefix(prefix), after)

    def _walk(self, prefix: str, after: str) -> Iterator[str]:
        directory = self._root / prefix
        with self._errors(prefix):
            try:
                with os.scandir(directory) as entries:
                    names = [e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in entries]
            except FileNotFoundError:
                return
            self._settle(directory)
        # a slash sorts where it stands in the whole key: "a-b" < "a/…" < "a0"
        for name in sorted(n for n in names if not n.startswith(".")):
            key = prefix + name
            if not name.endswith("/"):
                if key > after:
                    yield key
            elif key > after or after.startswith(key):
                yield from self._walk(key, after)

    def delete(self, key: str) -> None:
        """Remove an object; see the protocol."""
        path = self._path(key)
        self._open_files.forget(key)
        with self._errors(key):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            crash_point(AFTER_DELETE)
            fsync_directory(path.parent)

    def remove_directories(self, prefix: str) -> None:
        """Remove what is left of emptied names below a prefix that nobody else uses; objects keep theirs."""
        top = self._root / check_prefix(prefix)
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                Path(directory).rmdir()
                self._durable.discard(Path(directory))

    def free_bytes(self) -> int:
        """Room left for an unprivileged writer."""
        with self._errors(STAGING):
            figures = os.statvfs(self._root)
            return figures.f_bavail * figures.f_frsize

    def close(self) -> None:
        """Let go of files held open; staged objects keep their bytes."""
        self._open_files.close()
        with self._lock:
            staged = list(self._staged.values())
        for one in staged:
            one.close()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _publish(self, fd: int, temporary: Path, path: Path, key: str) -> None:
        """Sync the bytes, give them their name, sync the name."""
        crash_point(AFTER_WRITE)
        os.fdatasync(fd)
        crash_point(AFTER_SYNC)
        directory = path.parent
        self._make_directory(directory)
        with self._lock:
            self._unsynced[directory] = self._unsynced.get(directory, 0) + 1
        synced = False
        try:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # the winner may not have synced the name yet, and our caller goes on from what it finds
                fsync_directory(directory)
                synced = True
                raise ObjectExists(key=key, store=self.url) from None
            crash_point(AFTER_LINK)
            fsync_directory(directory)
            synced = True
        finally:
            with self._lock:
                self._unsynced[directory] -= 1
                if not self._unsynced[directory]:
                    del self._unsynced[directory]
                if not synced:
                    self._durable.discard(directory)  # the next reader tries again

    def _settle(self, directory: Path) -> None:
        """Make the names a reader has just seen in `directory` durable."""
        with self._lock:
            if directory in self._durable and directory not in self._unsynced:
                return
        try:
            self._make_directory(directory)
            fsync_directory(directory)
        except OSError as error:
            # a store mounted read-only has nothing unsynced
            if error.errno not in {errno.EROFS, errno.EINVAL, errno.EACCES, errno.ENOENT}:
                raise
            with self._lock:
                self._durable.add(directory)

    def _make_directory(self, directory: Path) -> None:
        """Make a directory and its parents, each durable; known ones cost nothing."""
        if directory in self._durable:
            return
        if directory != self._root:
            self._make_directory(directory.parent)
            directory.mkdir(exist_ok=True, mode=0o700)
        fsync_directory(directory.parent)
        fsync_directory(directory)
        with self._lock:
            self._durable.add(directory)

    def _remove_leftovers(self) -> None:
        """Remove temporaries of killed processes, and uploads nobody went on with; living ones are locked."""
        for leftover in [*self._staging.glob("tmp-*"), *self._old_parts()]:
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                fd = os.open(leftover, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink()
                finally:
                    os.close(fd)

    def _old_parts(self) -> Iterator[Path]:
        """Begun uploads that were not touched for a week, by the volume's own clock."""
        probe = self._staging / f"tmp-{secrets.token_hex(16)}"
        probe.touch(mode=0o600)
        now = probe.stat().st_mtime
        probe.unlink()
        for part in self._staging.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if now - part.stat().st_mtime > PART_SECONDS_MAX:
                    yield part

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Errors of the operating system in the words of the store."""
        try:
            yield
        except SecondsiteError:
            raise
        except FileNotFoundError as error:
            if key.startswith(STAGING) or not self._root.is_dir():
                raise StoreUnavailable(store=self.url, key=key, why=error.strerror) from error
            raise ObjectMissing(store=self.url, key=key) from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StoreFull(store=self.url, key=key) from error
            raise StoreUnavailable(store=self.url, key=key, why=error.strerror) from error


class LocalStagedObject:
    """A file of ``.staging`` that grows until it is published; made by `LocalStore.stage`."""

    def __init__(self, store: LocalStore, key: str, path: Path, temporary: Path, fd: int) -> None:
        self._store, self._key, self._path, self._temporary = store, key, path, temporary
        self._lock = threading.Lock()
        self._fd: int | None = fd
        self._offset = os.fstat(fd).st_size

    @property
    def offset(self) -> int:
        """Bytes staged so far."""
        return self._offset

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end; a failed append adds none."""
        with self._lock, self._store._errors(self._key):  # noqa: SLF001 (one module, two classes)
            fd = self._held()
            self._store.check_room(self._key, len(data))
            try:
                os.lseek(fd, self._offset, os.SEEK_SET)
                self._offset += write_all(fd, data)
            except OSError:
                os.ftruncate(fd, self._offset)
                raise

    def read_back(self, start: int, length: int) -> bytes:
        """Bytes staged so far; short at the end."""
        with self._lock, self._store._errors(self._key):  # noqa: SLF001
            return read_up_to(self._held(), start, length)

    def publish(self) -> None:
        """Make it durable and visible; see the protocol."""
        with self._lock, self._store._errors(self._key):  # noqa: SLF001
            fd = self._held()
            try:
                self._store._publish(fd, self._temporary, self._path, self._key)  # noqa: SLF001
                _drop_cache(fd)
            except OSError as error:
                if error.errno == errno.EIO and os.fstat(fd).st_nlink == 1:
                    # after a failed sync the kernel may have dropped the bytes: none of them is trusted; once
                    # the object has its name they are synced, and it is the name's sync that failed
                    os.ftruncate(fd, 0)
                    self._offset = 0
                raise
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
            raise StagedElsewhere(key=self._key, store=self._store.url)
        return self._fd

    def _end(self, *, remove: bool) -> None:
        if self._fd is None:
            return
        if remove:
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()
        os.close(self._fd)
        self._fd = None
        with self._store._lock:  # noqa: SLF001
            if self._store._staged.get(self._key) is self:  # noqa: SLF001
                del self._store._staged[self._key]  # noqa: SLF001


class _OpenFiles:
    """The most recently read files, kept open; one closes when nobody reads it and it is the oldest."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    @contextlib.contextmanager
    def borrow(self, key: str, path: Path) -> Iterator[int]:
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._files.move_to_end(key)
                file.readers += 1
        if file is None:
            check_key(key)
            file = self._add(key, _OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
        try:
            yield file.fd
        finally:
            with self._lock:
                file.readers -= 1
                if not file.readers and file.forgotten:
                    os.close(file.fd)

    def _add(self, key: str, file: _OpenFile) -> _OpenFile:
        with self._lock:
            file.readers = 1
            self._drop(self._files.pop(key, None))
            self._files[key] = file
            while len(self._files) > self._count_max:
                self._drop(self._files.popitem(last=False)[1])
        return file

    @staticmethod
    def _drop(file: _OpenFile | None) -> None:
        if file is not None:
            file.forgotten = True
            if not file.readers:
                os.close(file.fd)

    def forget(self, key: str) -> None:
        with self._lock:
            self._drop(self._files.pop(key, None))

    def close(self) -> None:
        with self._lock:
            while self._files:
                self._drop(self._files.popitem()[1])


class _OpenFile:
    __slots__ = ("fd", "forgotten", "readers")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.readers = 0
        self.forgotten = False


def _drop_cache(fd: int) -> None:
    """Give the pages of a synced object back: segments are read late, if ever, and a first copy would fill
    the machine's memory with them. Where memory is handed out on first touch (a virtual machine) reusing
    those pages also saves time: 340 MiB/s written to fresh ones, 2,000 to reused ones.
    """
    with contextlib.suppress(OSError):  # advice; not every file system takes it
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_up_to(fd: int, start: int, length: int) -> bytes:
    """`length` bytes from `start`; fewer only at the file's end."""
    data = os.pread(fd, length, start)
    while len(data) < length:
        more = os.pread(fd, length - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def write_all(fd: int, data: bytes | bytearray | memoryview) -> int:
    """Write everything at the file's position; returns how many bytes."""
    left = memoryview(data).cast("B")
    total = len(left)
    while left:
        left = left[os.write(fd, left) :]
    return total
