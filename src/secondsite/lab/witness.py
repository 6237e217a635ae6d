"""The host's side of the record channel: sends tokens, notes when each acknowledgement arrived.

It knows, for every instant a point may have been fixed at, what must be in the point and what must not: every
record whose acknowledgement had arrived before the instant was asked for, and no record that carries a token
sent after it was given. Times are taken before a token is sent and after an acknowledgement is read, so that
a slow witness can only make the claim weaker, never wrong.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.lab import processes

TOKEN_SECONDS = 0.005
RECORDS_CHANNEL = "org.secondsite.lab.0"
# Where libvirt puts the sockets of its guests' channels, in a site's directory.
CHANNELS = "lib/qemu/channel/target"


@dataclass(frozen=True)
class Expectation:
    """What a point fixed between two times must show."""

    last_at_least: int  # the newest record acknowledged before the instant was asked for
    token_at_most: int  # the newest token sent before the instant was given

    def unmet(self, *, last: int, token: int) -> str:
        """Why a point whose newest record and token are these is wrong; empty when it is right."""
        if last < self.last_at_least:
            return f"record {self.last_at_least} was acknowledged before, the newest in the point is {last}"
        if token > self.token_at_most:
            return f"token {token} was sent after the instant; the newest before it was {self.token_at_most}"
        return ""


class Witness:
    """Talks to one running guest from a thread of its own until closed.

    The socket may be given anew when the guest was started again (`attach`).
    """

    def __init__(self, utc: Callable[[], float] | None = None) -> None:
        self._utc = utc or (lambda: SystemClock().utc().timestamp())
        self._lock = threading.Lock()
        # one entry per token and acknowledgement; at 200 and 50 a second an hour is 15 MB
        self._token_times: list[float] = []  # of token 1, 2, ...
        self._ack_times: list[float] = []
        self._acks: list[int] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = ""

    def attach(self, path: Path) -> None:
        """Connect to the guest's record channel and begin; an earlier connection is ended."""
        self.close()
        connection = connect_unix(path)
        connection.settimeout(TOKEN_SECONDS)
        self._stop.clear()
        self._trouble = ""
        self._thread = threading.Thread(
            target=self._talk, args=(connection,), name="lab-witness", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the conversation; what was noted stays."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    @property
    def acknowledged(self) -> int:
        """The newest record acknowledged so far, 0 before the first."""
        with self._lock:
            return self._acks[-1] if self._acks else 0

    @property
    def trouble(self) -> str:
        """Why the conversation ended by itself, empty while it goes on."""
        return self._trouble

    def expectation(self, asked_at: str, given_at: str) -> Expectation:
        """What a point fixed between these RFC 3339 times (UTC, on this machine's clock) must show."""
        asked, given = _seconds(asked_at), _seconds(given_at)
        assert asked <= given, f"an instant given at {given_at} before it was asked for at {asked_at}"
        with self._lock:
            acked = bisect.bisect_left(self._ack_times, asked)  # strictly before
            sent = bisect.bisect_right(self._token_times, given)
            return Expectation(self._acks[acked - 1] if acked else 0, sent)

    def _talk(self, connection: socket.socket) -> None:
        pending = b""
        with connection:
            try:
                while not self._stop.is_set():
                    pending = self._turn(connection, pending)
            except OSError as error:
                self._trouble = str(error)

    def _turn(self, connection: socket.socket, pending: bytes) -> bytes:
        with self._lock:
            self._token_times.append(self._utc())
            token = len(self._token_times)
        # a guest that does not read fills the socket: such a token is simply not sent (it is never seen then)
        with contextlib.suppress(TimeoutError):
            connection.sendall(b"T %d\n" % token)
        deadline = time.monotonic() + TOKEN_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            try:
                data = connection.recv(65536)
            except TimeoutError:
                break
            if not data:
                raise ConnectionResetError("the guest's channel was closed")
            *lines, pending = (pending + data).split(b"\n")
            self._note(lines, self._utc())
        return pending

    def _note(self, lines: list[bytes], now: float) -> None:
        with self._lock:
            for line in lines:
                words = line.split()
                if len(words) == 3 and words[0] == b"A":
                    self._acks.append(int(words[1]))
                    self._ack_times.append(now)


def connect_unix(path: Path) -> socket.socket:
    """Connect to a unix socket whose path may be longer than the 107 bytes an address holds."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            undo.pop_all()
            return connection
    finally:
        os.close(directory)


def _seconds(moment: str) -> float:
    parsed = datetime.fromisoformat(moment)
    assert parsed.tzinfo is not None, f"{moment} names no time zone"
    return parsed.astimezone(UTC).timestamp()


def main() -> int:
    """Keep a guest writing for ever: ``python -m secondsite.lab.witness DIRECTORY`` (a site's channels)."""
    directory = Path(sys.argv[1])
    witness = Witness()
    while True:
        # each start of the guest has a directory of its own
        sockets = sorted(directory.glob(f"*/{RECORDS_CHANNEL}"), key=lambda path: path.stat().st_mtime)
        if sockets:
            with contextlib.suppress(OSError):  # it went off a moment ago
                witness.attach(sockets[-1])
                while not witness.trouble:
                    processes.pause(1)
        processes.pause(1)


if __name__ == "__main__":
    sys.exit(main())
