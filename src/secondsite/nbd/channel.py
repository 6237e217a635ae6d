"""A blocking stream socket with a time limit on silence, and errors of ours.

SO_RCVTIMEO instead of `socket.settimeout`: Python's own timeouts cost a poll(2) before every receive,
and rule out MSG_WAITALL, which fills a 256 KiB buffer in one system call.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence

from secondsite.base.clock import Clock
from secondsite.nbd.errors import NbdConnectionLost, NbdPeerBroken, NbdUnreachable

_TIMEVAL = struct.Struct("@ll")  # seconds, microseconds


class Channel:
    """Exact sends and receives. After any error it is closed: what is on the wire is unknown then."""

    def __init__(self, sock: socket.socket, address: str, timeout_seconds: float, clock: Clock) -> None:
        self.address = address
        self._socket = sock
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        sock.settimeout(None)
        self._limit_silence(timeout_seconds)
        self.closed = False

    @classmethod
    def unix(cls, path: str, timeout_seconds: float, clock: Clock) -> Channel:
        """Connect to a unix socket."""
        return cls._connected(socket.AF_UNIX, path, f"unix:{path}", timeout_seconds, clock)

    @classmethod
    def tcp(cls, host: str, port: int, timeout_seconds: float, clock: Clock) -> Channel:
        """Connect to a numeric IPv4 address."""
        return cls._connected(socket.AF_INET, (host, port), f"{host}:{port}", timeout_seconds, clock)

    @classmethod
    def _connected(
        cls, family: int, target: str | tuple[str, int], address: str, timeout_seconds: float, clock: Clock
    ) -> Channel:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_seconds)
            sock.connect(target)
            if family == socket.AF_INET:
                # without it a request waits for the acknowledgement of the one before (Nagle)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            why = error.strerror or str(error)
            raise NbdUnreachable(address=address, why=why) from error
        return cls(sock, address, timeout_seconds, clock)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self.lost(error) from error

    def send_pieces(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send several buffers, joined by the kernel where it takes them all at once."""
        try:
            sent = self._socket.sendmsg(pieces)
        except OSError as error:
            raise self.lost(error) from error
        for piece in pieces:
            if sent < len(piece):
                self.send(memoryview(piece)[sent:])
                sent = 0
            else:
                sent -= len(piece)

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` exactly."""
        filled = self._receive_once(view)
        if filled < len(view):
            self._receive_rest(view, filled)

    def receive(self, length: int) -> bytearray:
        """Exactly `length` bytes, in memory of their own. The caller has checked `length`."""
        data = bytearray(length)
        if length:
            self.receive_into(memoryview(data))
        return data

    def receive_some(self, view: memoryview) -> int:
        """Receive what has come, at least one byte; 0 at the end of the stream."""
        try:
            return self._socket.recv_into(view)
        except ConnectionResetError:
            return 0
        except OSError as error:
            raise self.lost(error) from error

    def wait_for_ever(self) -> None:
        """From now on the peer may be silent: a machine that reads nothing is no error."""
        self._limit_silence(0)

    def _limit_silence(self, seconds: float) -> None:
        timeval = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def _receive_once(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
        except OSError as error:
            raise self.lost(error) from error
        if count == 0 and len(view):
            self.close()
            raise NbdConnectionLost(address=self.address, why="the peer closed it")
        return count

    def _receive_rest(self, view: memoryview, filled: int) -> None:
        # A short count means a signal, the time limit or the end. The time limit holds for the whole
        # rest, so that a server that trickles bytes cannot hold us for ever.
        deadline = self._clock.monotonic() + self._timeout_seconds
        while filled < len(view):
            if self._clock.monotonic() > deadline:
                raise self.lost(BlockingIOError())
            filled += self._receive_once(view[filled:])

    def lost(self, error: OSError) -> NbdConnectionLost:
        """Close and say why; for the caller to raise."""
        why = (
            f"the peer was silent for {self._timeout_seconds:g} s"
            if isinstance(error, BlockingIOError)
            else error.strerror or str(error)
        )
        self.close()
        return NbdConnectionLost(address=self.address, why=why)

    def broken(self, why: str) -> NbdPeerBroken:
        """Close and say what the peer did; for the caller to raise."""
        self.close()
        return NbdPeerBroken(address=self.address, why=why)

    def hang_up(self) -> None:
        """End the connection from any thread: calls blocked on it return. The owner still closes it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; may be called twice. Only for the thread that uses it."""
        self.closed = True
        self.hang_up()
        self._socket.close()
