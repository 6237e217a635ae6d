"""The real link: requests to another gateway's ingest listener over mutual TLS.

Connections are kept open and handed to one caller at a time; there are at most `connections` of them. Every
request may be repeated, so a kept connection that turns out to be closed, or that stays silent, is replaced
once without an error.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, RemoteError, SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.model.ids import KeyId, MachineId
from secondsite.model.points import Claim, PointProposal, SegmentRef
from secondsite.transfer import wire
from secondsite.transfer.bandwidth import MachineLimits, NoLimits, TokenBucket
from secondsite.transfer.errors import (
    CertificateRefused,
    LinkDown,
    LinkTimeout,
    PayloadLost,
    ProtocolViolation,
    TransferCancelled,
)
from secondsite.transfer.http import Head, Wire, format_head
from secondsite.transfer.protocols import (
    Adoption,
    AdoptionTerms,
    ClaimRequest,
    CommittedPoint,
    DigestAnswer,
    DigestQuery,
    Payload,
    SegmentName,
    StopNote,
    TargetHead,
    WrappedKey,
)
from secondsite.transfer.tls import (
    Revocation,
    TlsFiles,
    check_revoked,
    client_context,
    handshake_reason,
    peer_of,
)

BLOCK_BYTES = 1 * MIB
# Under a machine's own limit: small enough that nobody takes the pauses in between for a dead link.
LIMITED_BYTES = 64 * KIB
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 30.0
# A commit of a first copy checks a quarter of a million objects at the target before it answers.
ANSWER_SECONDS = 300.0
# A source may be waiting with a capture open: a table of 32 GiB is summed in a second or two.
DIGESTS_SECONDS = 60.0
# Shorter than the listener's 75 s, so that a connection is not used at the moment the other side closes it.
POOLED_SECONDS_MAX = 50.0

# Names of segments whose last attempt was cut off; one more forgotten costs sending it from its start.
INTERRUPTED_MAX = 10_000

T = TypeVar("T")


class HttpsLink:
    """A `Link` to the gateway named `peer` at `url` (``https://host:port``).

    The name is what the other side's certificate must hold; the URL's host is only where to connect to.
    """

    def __init__(
        self,
        url: str,
        peer: str,
        files: TlsFiles,
        *,
        clock: Clock,
        connections: int = 4,
        bandwidth: TokenBucket | None = None,
        limits: MachineLimits | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path not in {"", "/"}:
            raise InvalidInput(what=f"the URL of {peer}", why=f"{url!r} is not https://HOST:PORT")
        self._address = (parts.hostname, parts.port or wire.PORT)
        self._peer = peer
        self._files = files
        self._clock = clock
        self._bandwidth = bandwidth or TokenBucket(None, clock)
        self._limits = limits or NoLimits()
        self._idle_seconds = idle_seconds
        self._slots = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        self._idle: list[tuple[Connection, float]] = []  # and since when
        self._busy: set[Connection] = set()
        self._interrupted: set[SegmentName] = set()
        self._closed = threading.Event()
        self._context = client_context(files)
        self._revocation = Revocation(files)

    @property
    def peer(self) -> str:
        """The other gateway's name."""
        return self._peer

    def reload(self) -> None:
        """Take the certificate files as they are now, for connections from now on (renewal)."""
        context, revocation = client_context(self._files), Revocation(self._files)
        with self._lock:
            self._context, self._revocation = context, revocation
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def health(self) -> dict[str, str]:
        """The other gateway's name and version, and who it takes us for."""
        return self._json("GET", "/v1/health", None, dict[str, str])

    def head(self, machine: MachineId) -> TargetHead:
        """See `Link`."""
        return self._json("GET", f"/v1/machines/{machine}/head", None, TargetHead)

    def send_segment(
        self, machine: MachineId, ref: SegmentRef, payload: Payload, *, cancel: threading.Event | None = None
    ) -> None:
        """See `Link`. After an attempt that was cut off, asks how much arrived and goes on from there."""
        name = SegmentName.of(machine, ref)
        target = wire.segment_target(name)

        def attempt(connection: Connection) -> None:
            offset = 0
            with self._lock:
                interrupted = name in self._interrupted
            if interrupted:
                head = connection.exchange("HEAD", target, {}, b"", seconds=self._idle_seconds)[0]
                # An answer that does not parse is no reason to give up: from the start is always right. Of a
                # complete segment the last byte is sent, so that the target compares the hash.
                text = head.headers.get("upload-offset", "")
                offset = min(int(text), ref.stored_bytes - 1) if text.isdecimal() else 0
            headers = {
                "x-hash": ref.hash,
                "content-range": f"bytes {offset}-{ref.stored_bytes - 1}/{ref.stored_bytes}",
            }
            connection.send_head("PUT", target, headers, ref.stored_bytes - offset)
            for block in _blocks(payload, offset, ref.stored_bytes):
                for piece in self._paced(machine, block, cancel or self._closed):
                    if cancel is not None and cancel.is_set():
                        raise TransferCancelled(what=f"segment {ref.id}")
                    connection.send(piece)
            connection.answer(seconds=ANSWER_SECONDS)

        try:
            self._with_connection(attempt)
        except SecondsiteError:
            with self._lock:
                if len(self._interrupted) < INTERRUPTED_MAX:
                    self._interrupted.add(name)
            raise
        with self._lock:
            self._interrupted.discard(name)

    def _paced(self, machine: MachineId, block: memoryview, cancel: threading.Event) -> Iterator[memoryview]:
        """The block in pieces, each once it may leave. Raises TransferCancelled."""
        limit = self._limits.of(machine)
        size = len(block) if limit is None else LIMITED_BYTES
        for start in range(0, len(block), size):
            piece = block[start : start + size]
            if limit is not None:
                limit.take(len(piece), cancel)
            self._bandwidth.take(len(piece), cancel)
            yield piece

    def put_key(self, machine: MachineId, key: KeyId, wrapped: bytes) -> None:
        """See `Link`."""
        self._json("PUT", f"/v1/machines/{machine}/keys/{key}", wrapped, dict[str, str])

    def get_key(self, machine: MachineId, key: KeyId) -> bytes:
        """See `Link`."""
        return self._json("GET", f"/v1/machines/{machine}/keys/{key}", None, WrappedKey).wrapped

    def claim(self, request: ClaimRequest) -> Claim:
        """See `Link`."""
        target = f"/v1/machines/{request.machine}/claims"
        return self._json("POST", target, msgspec.json.encode(request), Claim)

    def commit(self, proposal: PointProposal) -> CommittedPoint:
        """See `Link`."""
        body = msgspec.json.encode(proposal)
        return self._json("POST", f"/v1/machines/{proposal.machine}/points", body, CommittedPoint)

    def digests(self, query: DigestQuery) -> DigestAnswer:
        """See `Link`."""
        target = f"/v1/machines/{query.machine}/digests"
        body = msgspec.msgpack.encode(query)

        def attempt(connection: Connection) -> DigestAnswer:
            headers = {"content-type": "application/msgpack"}
            _, answer = connection.exchange("POST", target, headers, body, seconds=DIGESTS_SECONDS)
            return wire.decode_packed(answer, DigestAnswer, peer=self._peer)

        return self._with_connection(attempt)

    def adopt(self, terms: AdoptionTerms) -> Adoption:
        """See `Link`."""
        target = f"/v1/machines/{terms.machine}/adoption"
        return self._json("POST", target, msgspec.json.encode(terms), Adoption)

    def note_stop(self, note: StopNote) -> None:
        """See `Link`."""
        self._json("POST", f"/v1/machines/{note.machine}/stop", msgspec.json.encode(note), dict[str, str])

    def close(self) -> None:
        """See `Link`."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.interrupt()
        for connection, _ in idle:
            connection.close()

    def _json(self, method: str, target: str, body: bytes | None, kind: type[T]) -> T:
        def attempt(connection: Connection) -> T:
            headers = {} if body is None else {"content-type": "application/json"}
            _, answer = connection.exchange(method, target, headers, body or b"", seconds=ANSWER_SECONDS)
            return wire.decode(answer, kind, peer=self._peer)

        return self._with_connection(attempt)

    def _with_connection(self, attempt: Callable[[Connection], T]) -> T:
        """Run on a pooled connection; once more on a fresh one when the pooled one was closed meanwhile."""
        with self._slots:
            connection = self._pooled()
            if connection is not None:
                try:
                    return self._run(connection, attempt)
                except (LinkDown, LinkTimeout) as error:
                    # one that went stale unnoticed answers nothing; a peer that had begun to is only slow
                    stale = isinstance(error, LinkDown) or not connection.heard
                    if self._closed.is_set() or not stale:
                        raise
            return self._run(self._connect(), attempt)

    def _run(self, connection: Connection, attempt: Callable[[Connection], T]) -> T:
        with self._lock:
            self._busy.add(connection)
            if self._closed.is_set():
                connection.interrupt()  # close() ran before it could see this connection
        try:
            result = attempt(connection)
        except RemoteError:
            self._release(connection)  # a whole answer was read: the connection is fine
            raise
        except BaseException:
            with self._lock:
                self._busy.discard(connection)
            connection.close()
            raise
        self._release(connection)
        return result

    def _release(self, connection: Connection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if not connection.ended and not self._closed.is_set():
                self._idle.append((connection, self._clock.monotonic()))
                return
        connection.close()

    def _pooled(self) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection, since = self._idle.pop()
            if self._clock.monotonic() - since < POOLED_SECONDS_MAX:
                return connection
            connection.close()

    def _connect(self) -> Connection:
        with self._lock:
            context, revocation = self._context, self._revocation
        secured = _open(self._address, context, self._peer)
        try:
            check_revoked(revocation, peer_of(secured, self._address[0]))
        except SecondsiteError:
            secured.close()
            raise
        return Connection(secured, self._clock, self._peer, idle_seconds=self._idle_seconds)


class Connection:
    """One TLS connection to the peer; one caller at a time."""

    def __init__(self, sock: ssl.SSLSocket, clock: Clock, peer: str, *, idle_seconds: float) -> None:
        self._sock = sock
        self._peer = peer
        self._wire = Wire(sock, clock, peer=peer, idle_seconds=idle_seconds)
        self.ended = False  # the peer said it closes after its last answer
        self.heard = False  # an answer to the last request has begun to come

    def exchange(
        self, method: str, target: str, headers: dict[str, str], body: bytes, *, seconds: float
    ) -> tuple[Head, bytearray]:
        """One request with a body in memory, and its answer."""
        self.send_head(method, target, headers, len(body))
        for start in range(0, len(body), BLOCK_BYTES):
            self.send(memoryview(body)[start : start + BLOCK_BYTES])
        return self.answer(seconds=seconds, with_body=method != "HEAD")

    def send_head(self, method: str, target: str, headers: dict[str, str], length: int) -> None:
        """The request's head; `length` bytes of body follow by `send`."""
        self.heard = False
        # the limit of the answer before would hold for this request, however long the connection was idle
        self._wire.set_deadline(None)
        fields = {"host": self._peer, "content-length": str(length), **headers}
        self.send(format_head(f"{method} {target} HTTP/1.1", fields))

    def send(self, data: bytes | memoryview) -> None:
        """Bytes of a body. Raises LinkDown, LinkTimeout, CertificateRefused."""
        try:
            self._wire.write(data)
        except OSError as error:
            raise self._broken(error) from None

    def answer(self, *, seconds: float, with_body: bool = True) -> tuple[Head, bytearray]:
        """The answer's head and body. Raises what the peer reported, LinkDown, LinkTimeout."""
        try:
            head = self._wire.read_head(first_byte_seconds=seconds, head_seconds=IDLE_SECONDS)
            if head is None:
                raise LinkDown(peer=self._peer, why="it closed the connection, or did not answer")
            self.ended, self.heard = head.wants_close, True
            self._wire.set_deadline(None)  # of a body only the idle limit holds
            body = bytearray()
            if with_body:
                length = head.content_length(size_bytes_max=wire.ANSWER_BYTES_MAX, peer=self._peer)
                body = bytearray(length)
                self._wire.fill(memoryview(body))
        except OSError as error:
            raise self._broken(error) from None
        version, status, _ = head.start
        if version != "HTTP/1.1" or not status.isdecimal():
            raise ProtocolViolation(peer=self._peer, why="an answer that is not HTTP/1.1")
        if not 200 <= int(status) < 300:
            if not with_body:
                raise LinkDown(peer=self._peer, why=f"status {status} to a request without a body")
            raise wire.remote_error(bytes(body), int(status), peer=self._peer)
        return head, body

    def interrupt(self) -> None:
        """Wake the caller that is blocked on this connection; it gets LinkDown."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._sock.close()

    def _broken(self, error: OSError) -> SecondsiteError:
        # With TLS 1.3 the client is done before the server has judged its certificate: the refusal arrives as
        # an alert at the first read, and a write may meet the closed connection before that.
        if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError):
            with contextlib.suppress(TimeoutError, ConnectionError):
                try:
                    self._sock.settimeout(1.0)
                    self._sock.recv(1)
                except ssl.SSLError as alert:
                    error = alert
        if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
            return CertificateRefused(peer=self._peer, why=f"it says: {handshake_reason(error)}")
        return LinkDown(peer=self._peer, why=handshake_reason(error))


def _open(address: tuple[str, int], context: ssl.SSLContext, peer: str) -> ssl.SSLSocket:
    try:
        plain = socket.create_connection(address, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise LinkDown(peer=peer, why=f"connecting to {address[0]}:{address[1]}: {error}") from None
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(plain, server_hostname=peer)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise CertificateRefused(peer=peer, why=handshake_reason(error)) from None
    except OSError as error:
        plain.close()
        raise LinkDown(peer=peer, why=f"TLS handshake: {handshake_reason(error)}") from None


def _blocks(payload: Payload, offset: int, size_bytes: int) -> Iterator[memoryview]:
    """The payload's bytes from `offset` on, at most BLOCK_BYTES each; a file is read as it is sent."""
    if not isinstance(payload, Path):
        view = memoryview(payload).cast("B")
        assert len(view) == size_bytes, "a segment's reference names another size than its bytes have"
        for start in range(offset, size_bytes, BLOCK_BYTES):
            yield view[start : start + BLOCK_BYTES]
        return
    with payload.open("rb", buffering=0) as file:
        file.seek(offset)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        left = size_bytes - offset
        while left:
            count = file.readinto(buffer[: min(left, BLOCK_BYTES)])
            if not count:
                raise PayloadLost(path=payload)
            left -= count
            yield buffer[:count]
