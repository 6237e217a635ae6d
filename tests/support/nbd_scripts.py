"""One end of an NBD connection played from a script: bytes sent whatever the other end says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from secondsite.base.clock import SystemClock
from secondsite.nbd import wire
from secondsite.nbd.channel import Channel


@dataclass
class ScriptedServer:
    """Answers requests as its functions say; records what it was asked."""

    size_bytes: int = 1 << 20
    contexts: dict[bytes, int] = field(default_factory=dict)
    requests: list[tuple[int, int, int, int]] = field(default_factory=list)  # command, cookie, offset, length

    def greet(self, sock: socket.socket) -> None:
        """An honest handshake with structured replies."""
        sock.sendall(wire.GREETING.pack(wire.NBD_MAGIC, wire.OPTION_MAGIC, wire.FLAG_FIXED_NEWSTYLE))
        _exactly(sock, 4)
        while True:
            _, option, length = wire.OPTION.unpack(_exactly(sock, wire.OPTION.size))
            _exactly(sock, length)
            if option == wire.OPT_SET_META_CONTEXT:
                for name, number in self.contexts.items():
                    body = number.to_bytes(4, "big") + name
                    sock.sendall(_option_reply(option, wire.REP_META_CONTEXT, body))
            if option == wire.OPT_GO:
                info = wire.INFO_EXPORT_REPLY.pack(
                    wire.INFO_EXPORT, self.size_bytes, wire.HAS_FLAGS | wire.READ_ONLY
                )
                sock.sendall(_option_reply(option, wire.REP_INFO, info))
            sock.sendall(_option_reply(option, wire.REP_ACK, b""))
            if option == wire.OPT_GO:
                return

    def take(self, sock: socket.socket) -> tuple[int, int, int, int]:
        """The next request: command, cookie, offset, length."""
        head = wire.REQUEST.unpack(_exactly(sock, wire.REQUEST.size))
        request = (head[2], head[3], head[4], head[5])
        self.requests.append(request)
        return request


def data_chunk(cookie: int, offset: int, data: bytes, *, done: bool = True) -> bytes:
    """A structured reply's data chunk."""
    head = wire.CHUNK.pack(
        wire.CHUNK_MAGIC, int(done), wire.CHUNK_OFFSET_DATA, cookie, wire.DATA_OFFSET.size + len(data)
    )
    return head + wire.DATA_OFFSET.pack(offset) + data


def chunk(cookie: int, kind: int, body: bytes, *, done: bool = True) -> bytes:
    """Any chunk."""
    return wire.CHUNK.pack(wire.CHUNK_MAGIC, int(done), kind, cookie, len(body)) + body


def _option_reply(option: int, kind: int, body: bytes) -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(body)) + body


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


@contextlib.contextmanager
def channel_to(peer: Callable[[socket.socket], None], *, timeout_seconds: float = 5.0) -> Iterator[Channel]:
    """A channel whose other end is played by `peer` on a thread; it hangs up when `peer` returns."""
    ours, theirs = socket.socketpair()

    def play() -> None:
        with theirs, contextlib.suppress(OSError):
            peer(theirs)

    thread = threading.Thread(target=play)
    thread.start()
    channel = Channel(ours, "script", timeout_seconds, SystemClock())
    try:
        yield channel
    finally:
        channel.close()
        thread.join()
