"""The part of HTTP/1.1 that both ends of a link speak, with a limit on everything a peer may send.

A message is a start line, headers and a body of a known length. Refused: chunked bodies, repeated or folded
headers, anything that is not ASCII in the head. Names of headers are compared in lower case.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from secondsite.base.clock import Clock
from secondsite.base.units import KIB
from secondsite.transfer.errors import LinkTimeout, ProtocolViolation

# Our own heads have at most 8 headers and 400 bytes; ten times that leaves room for proxies' additions.
HEAD_BYTES_MAX = 8 * KIB
HEADERS_MAX = 48
TARGET_BYTES_MAX = 512
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,64}\Z")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})\Z")
_NUMBER = re.compile(r"\d{1,18}\Z")

REASONS = {
    200: "OK",
    201: "Created",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Head:
    """The head of a request (method, target, version) or of a response (version, status, reason)."""

    start: tuple[str, str, str]
    headers: dict[str, str]

    def content_length(self, *, size_bytes_max: int, peer: str) -> int:
        """The body's length; 0 without the header. Raises ProtocolViolation."""
        if "transfer-encoding" in self.headers:
            raise ProtocolViolation(peer=peer, why="chunked bodies are not taken")
        text = self.headers.get("content-length", "0")
        if not _NUMBER.match(text):
            raise ProtocolViolation(peer=peer, why="its content-length is not a number")
        if int(text) > size_bytes_max:
            why = f"a body of {int(text)} bytes, where at most {size_bytes_max} are taken"
            raise ProtocolViolation(peer=peer, why=why)
        return int(text)

    def content_range(self, length: int, *, peer: str) -> tuple[int, int]:
        """(first byte, total size) of a body of `length` bytes; without the header the body is the whole."""
        text = self.headers.get("content-range")
        if text is None:
            return 0, length
        match = _RANGE.match(text)
        if match is None:
            raise ProtocolViolation(peer=peer, why="its content-range does not parse")
        first, last, total = (int(group) for group in match.groups())
        if last - first + 1 != length or last >= total:
            raise ProtocolViolation(peer=peer, why="its content-range does not fit the body")
        return first, total

    @property
    def wants_close(self) -> bool:
        """Whether the sender ends the connection after this message."""
        return self.headers.get("connection", "").lower() == "close"


def parse_head(data: bytes, *, peer: str) -> Head:
    """Parse a head without its empty line. Raises ProtocolViolation."""
    try:
        lines = data.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        raise ProtocolViolation(peer=peer, why="a head that is not ASCII") from None
    if len(lines) > HEADERS_MAX + 1:
        raise ProtocolViolation(peer=peer, why=f"more than {HEADERS_MAX} headers")
    start = lines[0].split(" ", 2)
    if len(start) != 3 or len(start[1]) > TARGET_BYTES_MAX:
        raise ProtocolViolation(peer=peer, why="a start line that does not parse")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not _TOKEN.match(name) or "\n" in value or "\r" in value or "\0" in value:
            raise ProtocolViolation(peer=peer, why="a header that does not parse")
        if name in headers:
            raise ProtocolViolation(peer=peer, why=f"the header {name} twice")
        headers[name] = value.strip()
    return Head((start[0], start[1], start[2]), headers)


def format_head(start: str, headers: dict[str, str]) -> bytes:
    """The head's bytes with its empty line."""
    lines = [start, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    text = "\r\n".join(lines)
    assert "\n" not in text.replace("\r\n", ""), "a header value with a line end in it"
    return text.encode("ascii")


class Wire:
    """Reads and writes messages on a connected socket, each step within a time limit.

    `idle_seconds`: longest wait for the peer within one message; `set_deadline` bounds a whole message.
    """

    def __init__(self, sock: socket.socket, clock: Clock, *, peer: str, idle_seconds: float) -> None:
        self._sock = sock
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._deadline: float | None = None
        self._buffer = bytearray()  # bytes read beyond the last head; at most HEAD_BYTES_MAX
        self.peer = peer

    def set_deadline(self, seconds: float | None) -> None:
        """From now, reads and writes must be over within `seconds`; None: only the idle limit holds."""
        self._deadline = None if seconds is None else self._clock.monotonic() + seconds

    def read_head(self, *, first_byte_seconds: float, head_seconds: float) -> Head | None:
        """The next message's head; None when the peer closed (or stayed silent) between messages."""
        end = self._buffer.find(b"\r\n\r\n")
        if not self._buffer:
            self._sock.settimeout(first_byte_seconds)
            try:
                self._buffer += self._sock.recv(HEAD_BYTES_MAX)
            except TimeoutError:
                return None
            if not self._buffer:
                return None
            end = self._buffer.find(b"\r\n\r\n")
        self.set_deadline(head_seconds)
        while end < 0:
            if len(self._buffer) >= HEAD_BYTES_MAX:
                raise ProtocolViolation(peer=self.peer, why=f"a head of more than {HEAD_BYTES_MAX} bytes")
            data = self._recv(HEAD_BYTES_MAX - len(self._buffer))
            if not data:
                raise ConnectionResetError("closed within a head")
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
        head = parse_head(bytes(self._buffer[:end]), peer=self.peer)
        del self._buffer[: end + 4]
        return head

    def read_into(self, view: memoryview) -> int:
        """Up to ``len(view)`` body bytes; raises ConnectionResetError at the end of the stream."""
        if self._buffer:
            count = min(len(self._buffer), len(view))
            view[:count] = self._buffer[:count]
            del self._buffer[:count]
            return count
        self._limit()
        try:
            count = self._sock.recv_into(view)
        except TimeoutError:
            raise self._timeout("reading") from None
        if not count:
            raise ConnectionResetError("closed within a body")
        return count

    def fill(self, view: memoryview) -> None:
        """Exactly ``len(view)`` body bytes."""
        filled = 0
        while filled < len(view):
            filled += self.read_into(view[filled:])

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        self._limit()
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise self._timeout("writing") from None

    def _recv(self, count: int) -> bytes:
        self._limit()
        try:
            return self._sock.recv(count)
        except TimeoutError:
            raise self._timeout("reading") from None

    def _limit(self) -> None:
        seconds = self._idle_seconds
        if self._deadline is not None:
            seconds = min(seconds, self._deadline - self._clock.monotonic())
            if seconds <= 0:
                raise self._timeout("the whole message")
        self._sock.settimeout(seconds)

    def _timeout(self, what: str) -> LinkTimeout:
        return LinkTimeout(peer=self.peer, seconds=f"{self._idle_seconds:g}", what=what)
