"""The one process that has a qcow2 base open: qemu-nbd, asked by everybody over a private socket.

Two processes must never have the same qcow2 open while one writes, and promotion and views run at the same
time in several processes of ours. So whoever wants the image first starts its host; all others find it in
a directory that follows from the image itself (device, inode and identity):

* ``starting``: locked by whoever starts, ends or replaces the host, for as long as that takes;
* ``alive``: locked by the host for as long as it lives (it inherits the lock), and holds its process number;
* ``socket``: where it serves; ``log``: what it said.

A host ends by itself when its last client leaves (qemu-nbd without --persistent). It is no child of ours: a
gateway that ends leaves guests reading through it alone. Readers start it read-only; a writer replaces such a
one, and its readers connect again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.crash import crash_point, mark
from secondsite.base.files import read_limited
from secondsite.journal.bases import BaseFailed
from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdError

AFTER_HOST = mark("basehost.after-start")

# Opening a damaged volume's image may hang for a while; a guest that waits is paused, not harmed.
SECONDS_MAX = 30.0
POLL_SECONDS = 0.01
CONTEXT = "base:allocation"
LOG_BYTES_MAX = 64 * 1024
# The socket comes as descriptor 3 with its variables naming this very process (sd_listen_fds(3)), the lock as
# 4; the number is written before the image is opened. exec keeps the process, so number and lock fit.
_SCRIPT = 'exec 3<&0 4>&1 0</dev/null 1>&2; echo $$ >&4; LISTEN_PID=$$ LISTEN_FDS=1; \
export LISTEN_PID LISTEN_FDS; exec "$@"'


def run_directory() -> Path:
    """Where hosts are found: of this user alone, gone with a restart of the machine."""
    user = os.getuid()
    if user == 0:
        return Path("/run/secondsite-bases")
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "secondsite-bases" if own else Path(f"/tmp/secondsite-bases-{user}")  # noqa: S108


class BaseHost:
    """The host of one image, wherever it runs. Any number of these may exist. Thread-safe."""

    def __init__(
        self, path: Path, identity: str, *, clock: Clock | None = None, directory: Path | None = None
    ) -> None:
        """identity: of the image, so that another file at the same inode is another host's."""
        self.path = path
        self._clock = clock or SystemClock()
        self._never = threading.Event()
        self._root = directory or run_directory()
        try:
            found = path.stat()
        except OSError as error:
            raise BaseFailed(locator=path, why=error.strerror) from error
        key = f"{found.st_dev}:{found.st_ino}:{identity}"
        self.directory = self._root / hashlib.sha256(key.encode()).hexdigest()[:32]

    def connect(self, *, writable: bool) -> NbdClient:
        """A connection of its own to the image; starts the host when there is none.

        Raises:
            BaseFailed: it cannot be started, does not answer, or cannot write although `writable`.
        """
        deadline = self._clock.monotonic() + SECONDS_MAX
        with self._starting(deadline):
            if self._lives():
                with contextlib.suppress(NbdError):  # its last client left this moment, so it ends
                    client = self._call()
                    if not (writable and client.flags & wire.READ_ONLY):
                        return client
                    client.close()
                    self._end(deadline)
                self._wait(lambda: not self._lives(), deadline, "its host does not answer")
            return self._start(writable=writable, deadline=deadline)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """No host has the image open inside; clients find that out and connect again afterwards."""
        deadline = self._clock.monotonic() + SECONDS_MAX
        with self._starting(deadline):
            self._end(deadline)
            yield

    def process(self) -> int | None:
        """The living host's process number."""
        return int(self._read("alive") or 0) or None if self._lives() else None

    # --- under the lock `starting` ---

    def _call(self) -> NbdClient:
        return NbdClient.connect_unix(
            str(self.directory / "socket"), "", (CONTEXT,), timeout_seconds=SECONDS_MAX, clock=self._clock
        )

    def _start(self, *, writable: bool, deadline: float) -> NbdClient:
        place = self.directory / "socket"
        alive = os.open(self.directory / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # somebody may look at this moment whether a host lives
            self._wait(lambda: _lock(alive), deadline, "its host does not end")
            os.ftruncate(alive, 0)
            place.unlink(missing_ok=True)
            log = os.open(self.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
                    listening.bind(str(place))
                    place.chmod(0o600)
                    listening.listen(64)
                    self._spawn(listening, alive, log, writable=writable)
            finally:
                os.close(log)
        except OSError as error:
            why = f"its host cannot be started: {error.strerror}: {error.filename or place}"
            raise BaseFailed(locator=self.path, why=why) from error
        finally:
            os.close(alive)
        crash_point(AFTER_HOST)
        try:
            return self._call()
        except NbdError as error:
            self._wait(lambda: not self._lives(), deadline, "its host does not answer")
            said = self._read("log").strip().splitlines()
            raise BaseFailed(locator=self.path, why=said[-1] if said else str(error)) from error

    def _spawn(self, listening: socket.socket, alive: int, log: int, *, writable: bool) -> None:
        options = ["--discard=unmap", "--detect-zeroes=unmap"] if writable else ["--read-only"]
        subprocess.run(
            [
                # a session of its own and no child of ours: no signal and no end of ours reaches it
                *("setsid", "--fork", "sh", "-c", _SCRIPT, "sh", "qemu-nbd", "--shared=0", *options),
                *("--format=qcow2", "--cache=writeback", "--", str(self.path)),
            ],
            stdin=listening.fileno(),
            stdout=alive,
            stderr=log,
            cwd="/",
            check=True,
        )

    def _end(self, deadline: float) -> None:
        """End the host in order: what it was told is in the file then."""
        number = self.process()
        if number is not None:
            # the lock says that the process which wrote its number still lives, so the number is its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)
        self._wait(lambda: not self._lives(), deadline, "its host does not end")

    def _wait(self, condition: Callable[[], bool], deadline: float, why: str) -> None:
        while not condition():
            if self._clock.monotonic() >= deadline:
                raise BaseFailed(locator=self.path, why=why)
            self._clock.wait(self._never, POLL_SECONDS)

    def _lives(self) -> bool:
        try:
            fd = os.open(self.directory / "alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _read(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            data = read_limited(self.directory / name, size_bytes_max=LOG_BYTES_MAX)
            return data.decode("utf-8", "replace")
        return ""

    @contextlib.contextmanager
    def _starting(self, deadline: float) -> Iterator[None]:
        try:
            self._make_directories()
            fd = os.open(self.directory / "starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            why = f"its host's directory cannot be used: {error.strerror}: {error.filename or self._root}"
            raise BaseFailed(locator=self.path, why=why) from error
        try:
            self._wait(lambda: _lock(fd), deadline, "another process is busy starting or ending its host")
            yield
        finally:
            os.close(fd)

    def _make_directories(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._root.lstat()
        # below /tmp anybody may have made it first
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(1, "it is not this user's alone", str(self._root))
        self.directory.mkdir(mode=0o700, exist_ok=True)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def end_idle(directory: Path | None = None) -> None:
    """End hosts that nobody uses: whoever started one may have been killed before connecting to it."""
    root = directory or run_directory()
    with contextlib.suppress(OSError):
        for place in root.iterdir():
            fd = os.open(place / "starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if _lock(fd):  # else somebody is about to use it
                    with contextlib.suppress(NbdError):
                        # calling and leaving again: the host ends unless others use it
                        NbdClient.connect_unix(str(place / "socket"), timeout_seconds=2.0).close()
            finally:
                os.close(fd)
