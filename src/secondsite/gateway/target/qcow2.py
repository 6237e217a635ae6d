"""A qcow2 image as a base. QEMU's own code reads and writes it, see `basehost`; only our identity is ours.

The identity lives inside the image, in a header extension of ours: it survives any copy of the file, also to
where there are no extended attributes. QEMU keeps extensions it does not know when it writes the header
(docs/interop/qcow2.txt, "Header extensions"). Big-endian, as everything in qcow2:

 0   4  type 0x32736974 ("2sit")
 4   4  length 24
 8  16  identity, random
24   8  size of the disk in bytes; the image's own is that, rounded up to 512

What is past the disk's end in its last 512 bytes always is zeros.
"""

from __future__ import annotations

import os
import secrets
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.files import fsync_directory, temporary_beside
from secondsite.gateway.target.basehost import CONTEXT, BaseHost
from secondsite.journal.bases import AFTER_BASE_WRITE, BaseFailed
from secondsite.model.extents import Extents
from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdConnectionLost, NbdError, NbdPeerBroken

AFTER_RESIZE = mark("basehost.after-resize")

SECTOR_BYTES = 512
EXTENSION = struct.Struct(">II16sQ")
EXTENSION_TYPE = 0x32736974
_MAGIC = b"QFI\xfb"
_HEAD = struct.Struct(">4sI")  # magic, version
_LENGTH_AT, _VIRTUAL_AT = 100, 24
_TAG = struct.Struct(">II")
HEADER_BYTES_MAX = 65536  # the first cluster, at the size we make them
# Views are read by several threads of an export; more at once only wait in the host.
CONNECTIONS_MAX = 8
ATTEMPTS_MAX = 4

T = TypeVar("T")


class Qcow2Base:
    """A qcow2 image behind its host."""

    format = "qcow2"

    def __init__(
        self,
        path: Path | str,
        *,
        read_only: bool = False,
        clock: Clock | None = None,
        run_directory: Path | None = None,
    ) -> None:
        """Open an existing image. Raises BaseFailed (also when there is none, or it is none of ours)."""
        self._path = Path(path).absolute()
        self._identity, self._size_bytes, _ = _read_header(self._path)
        self._read_only = read_only
        self._host = BaseHost(self._path, self._identity, clock=clock, directory=run_directory)
        self._lock = threading.Lock()
        self._idle: list[NbdClient] = []
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        # whether the host holds writes that no sync followed, and whether such ones were lost with it
        self._unsynced = self._lost = self._closed = False

    @classmethod
    def create(
        cls,
        path: Path | str,
        size_bytes: int,
        *,
        clock: Clock | None = None,
        run_directory: Path | None = None,
    ) -> Qcow2Base:
        """Make an empty image of `size_bytes`, or open the one that is there."""
        path = Path(path).absolute()
        if not path.exists():
            temporary = temporary_beside(path)
            try:
                whole = _whole(size_bytes)
                _qemu_img(path, "create", "-q", "-f", "qcow2", str(temporary), str(whole))
                temporary.chmod(0o600)
                _add_extension(temporary, secrets.token_bytes(16), size_bytes)
                temporary.replace(path)
                fsync_directory(path.parent)
            except OSError as error:
                raise BaseFailed(locator=path, why=error.strerror) from error
            finally:
                temporary.unlink(missing_ok=True)
        return cls(path, clock=clock, run_directory=run_directory)

    @property
    def locator(self) -> str:
        """Its path."""
        return str(self._path)

    @property
    def identity(self) -> str:
        """As kept in the image's header."""
        return self._identity

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        return self._size_bytes

    @property
    def host(self) -> BaseHost:
        """The host of the image."""
        return self._host

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; see the protocol. A host that died is started again."""

        def read(client: NbdClient) -> None:
            # an image cut meanwhile ends earlier than this disk
            inside = max(0, min(len(buffer), self._size_bytes - offset, client.size_bytes - offset))
            client.read_into(offset, buffer[:inside])
            if inside < len(buffer):
                buffer[inside:] = bytes(len(buffer) - inside)

        self._try(read)

    def data_extents(self, offset: int, length: int) -> Extents:
        """What the image's map does not call zero."""

        def find(client: NbdClient) -> Extents:
            end = min(offset + length, self._size_bytes, client.size_bytes)
            if end <= offset:
                return Extents.empty()
            return client.map(CONTEXT, offset, end - offset).lacking(wire.STATE_ZERO)

        return self._try(find)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write inside the size; see the protocol."""
        view = memoryview(data).cast("B")
        assert offset + len(view) <= self._size_bytes, "writes stay inside the image"
        self._change(lambda client: client.write(offset, view))
        crash_point(AFTER_BASE_WRITE)

    def zero(self, offset: int, length: int) -> None:
        """Zero clusters; their room in the file is given back."""
        length = min(length, self._size_bytes - offset)
        if length > 0:
            self._change(lambda client: client.zero(offset, length))

    def sync(self) -> None:
        """Flush in the host. What a host that died held unsynced is lost, and this fails."""
        self._change(lambda client: client.flush())
        self._unsynced = False

    def resize(self, size_bytes: int) -> None:
        """Grow with zeros, or cut, while no host has it open. The size in our extension is changed last."""
        whole = _whole(size_bytes)
        if size_bytes < self._size_bytes:
            # what is left in the last cluster would be read again once the image grows
            self.zero(size_bytes, self._size_bytes - size_bytes)
        self.sync()
        self._hang_up()
        try:
            with self._host.stopped():
                _, _, virtual = _read_header(self._path)
                if virtual != whole:
                    cut = ("--shrink",) if whole < virtual else ()
                    _qemu_img(self._path, "resize", "-q", "-f", "qcow2", *cut, str(self._path), str(whole))
                crash_point(AFTER_RESIZE)
                _set_size(self._path, size_bytes)
        except OSError as error:
            raise BaseFailed(locator=self._path, why=error.strerror) from error
        self._size_bytes = size_bytes

    def close(self) -> None:
        """Leave the host; the last one to leave ends it. Twice is fine."""
        self._closed = True
        self._hang_up()

    def _change(self, action: Callable[[NbdClient], T]) -> T:
        assert not self._read_only, "opened for reading"
        if self._lost:
            raise self._failed("its host died with writes that were not synced")
        try:
            # with nothing unsynced in it a host that died is no loss, and the change may be repeated
            done = self._try(action, attempts=1 if self._unsynced else ATTEMPTS_MAX)
        except BaseFailed:
            self._lost = self._unsynced
            raise
        self._unsynced = True
        return done

    def _try(self, action: Callable[[NbdClient], T], *, attempts: int = ATTEMPTS_MAX) -> T:
        """Do it over a connection; over a new one, to a new host if need be, when that was lost."""
        assert not self._closed, "used after it was closed"
        for attempt in range(1, attempts + 1):
            with self._free, self._borrowed() as client:
                try:
                    return action(client)
                except (NbdConnectionLost, NbdPeerBroken) as error:
                    if attempt == attempts:
                        raise self._failed(f"its host ended: {error}") from error
                except NbdError as error:
                    raise self._failed(str(error)) from error
            self._hang_up()  # the others are as dead
        raise AssertionError("attempts is at least 1")

    @contextmanager
    def _borrowed(self) -> Iterator[NbdClient]:
        with self._lock:
            client = self._idle.pop() if self._idle else None
        client = client or self._host.connect(writable=not self._read_only)
        try:
            yield client
        finally:
            with self._lock:
                if not client.closed and not self._closed:
                    self._idle.append(client)
                    client = None
            if client is not None:
                client.close()

    def _hang_up(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def _failed(self, why: str) -> BaseFailed:
        return BaseFailed(locator=self._path, why=why)


def is_empty(path: Path) -> bool:
    """Whether an image that nobody writes holds no data at all. Raises BaseFailed."""
    found = _qemu_img(path, "map", "-U", "-f", "qcow2", "--output=json", str(path))
    return '"data": true' not in found


def _whole(size_bytes: int) -> int:
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _qemu_img(path: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False, cwd="/")
    except OSError as error:
        raise BaseFailed(locator=path, why=f"qemu-img cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"qemu-img ended with {done.returncode}"]
        raise BaseFailed(locator=path, why=said[-1])
    return done.stdout


def _read_header(path: Path) -> tuple[str, int, int]:
    """(identity, the disk's size, the image's). Raises BaseFailed."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES_MAX)
    except OSError as error:
        raise BaseFailed(locator=path, why=error.strerror) from error
    at = _find(path, head, EXTENSION_TYPE)
    if at is None:
        raise BaseFailed(locator=path, why="it is a qcow2 image, but none of ours: it has no identity")
    _, length, identity, size_bytes = EXTENSION.unpack_from(head, at)
    virtual: int = struct.unpack_from(">Q", head, _VIRTUAL_AT)[0]
    if length != EXTENSION.size - _TAG.size:
        raise BaseFailed(locator=path, why="its header is damaged")
    # a resize that was cut off: the image is smaller already, and what it lost was zeroed before
    return identity.hex(), min(size_bytes, virtual), virtual


def _find(path: Path, head: bytes, wanted: int) -> int | None:
    """Where the header extension of a type begins; for type 0 the end of all."""
    if len(head) < _LENGTH_AT + 4 or _HEAD.unpack_from(head) != (_MAGIC, 3):
        raise BaseFailed(locator=path, why="it is no qcow2 image of version 3")
    at: int = struct.unpack_from(">I", head, _LENGTH_AT)[0]
    while at + EXTENSION.size <= len(head):
        kind, length = _TAG.unpack_from(head, at)
        if kind == wanted:
            return at
        if not kind:
            return None
        at += _TAG.size + -(-length // 8) * 8
    raise BaseFailed(locator=path, why="its header is damaged")


def _add_extension(path: Path, identity: bytes, size_bytes: int) -> None:
    """Put ours before the end of the list, into an image nobody else knows yet."""
    head = path.read_bytes()[:HEADER_BYTES_MAX]
    at = _find(path, head, 0)
    assert at is not None, "type 0 ends the list"
    ours = EXTENSION.pack(EXTENSION_TYPE, EXTENSION.size - _TAG.size, identity, size_bytes)
    _overwrite(path, at, ours + _TAG.pack(0, 0))


def _set_size(path: Path, size_bytes: int) -> None:
    """Eight aligned bytes of the first sector: old or new, never half."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES_MAX)
    at = _find(path, head, EXTENSION_TYPE)
    assert at is not None, "it was opened with one"
    _overwrite(path, at + EXTENSION.size - 8, struct.pack(">Q", size_bytes))


def _overwrite(path: Path, at: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, data, at)
        os.fsync(fd)
    finally:
        os.close(fd)
