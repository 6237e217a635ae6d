"""The ingest listener: HTTP/1.1 over mutual TLS on a port of its own, one thread a connection.

A segment's bytes go from the socket into one reused buffer and from there into the receiver's staged object;
a hash runs along. Moving bytes this way costs a third less CPU than an ASGI server (docs/adr). Everything a
peer can do is bounded: connections, head and body sizes, the time of a handshake, a head and a whole request.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB, MIB
from secondsite.journal.store import StoreFull
from secondsite.model.events import EventSink, Severity
from secondsite.model.points import PointProposal
from secondsite.transfer import wire
from secondsite.transfer.errors import CertificateRefused, ProtocolViolation
from secondsite.transfer.http import REASONS, Head, Wire, format_head
from secondsite.transfer.protocols import (
    AdoptionTerms,
    ClaimRequest,
    DigestQuery,
    Peer,
    Receiver,
    SegmentName,
    StopNote,
    WrappedKey,
)
from secondsite.transfer.tls import (
    Revocation,
    TlsFiles,
    check_revoked,
    handshake_reason,
    peer_of,
    server_context,
)

# The receive buffer: large enough that hashing and writing run without the interpreter's lock.
BLOCK_BYTES = 1 * MIB
# A body of a refused upload is read and dropped up to here, so that the refusal reaches its sender: closing
# with unread bytes makes the kernel reset the connection and discard the answer.
DRAIN_BYTES_MAX = wire.SEGMENT_BYTES_MAX


@dataclass(frozen=True)
class IngestLimits:
    """What one peer, and all of them, may take."""

    connections_max: int = 64  # a thread and a 1 MiB buffer each: 64 MiB at worst
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0
    between_requests_seconds: float = 75.0  # above the sender's own idle limit, so that it closes first
    idle_seconds: float = 30.0  # silence within a body
    body_seconds: float = 60.0  # plus the body's size at the rate below; cut off uploads resume
    body_bytes_per_second_min: float = 32 * KIB


class Answer(msgspec.Struct, frozen=True):
    """What goes back."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


def _unknown_room() -> int | None:
    """Nobody said how much room there is."""
    return None


class IngestServer:
    """Listens on `address` (host, port; port 0 takes a free one) and calls `receiver`."""

    def __init__(
        self,
        receiver: Receiver,
        files: TlsFiles,
        address: tuple[str, int],
        *,
        name: str,
        clock: Clock,
        events: EventSink,
        limits: IngestLimits | None = None,
        room: Callable[[], int | None] = _unknown_room,
    ) -> None:
        """room: free bytes for replicas, where that is known."""
        self._room = room
        self._receiver = receiver
        self._files = files
        self._address = address
        self._name = name
        self._clock = clock
        self._events = events
        self._limits = limits or IngestLimits()
        self._context = server_context(files)
        self._revocation = Revocation(files)
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def start(self) -> tuple[str, int]:
        """Listen; returns the address bound. Raises OSError when it is taken."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = socket.create_server(self._address, family=family, backlog=64)
        self._listener = listener
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name="ingest-accept")
        self._acceptor.start()
        host, port = listener.getsockname()[:2]
        return host, port

    def reload(self) -> None:
        """Take the certificate files as they are now, for connections from now on (renewal)."""
        context, revocation = server_context(self._files), Revocation(self._files)
        self._context, self._revocation = context, revocation

    def close(self) -> None:
        """Stop listening, cut all connections, wait for their threads. Bytes received so far stay staged."""
        self._stopping.set()
        if self._listener is not None:
            # shutdown wakes the accept call, which close alone does not
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            threads = list(self._connections.values())
            for sock in self._connections:
                _shutdown(sock)
        for thread in (*threads, self._acceptor):
            if thread is not None:
                thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                sock, address = listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                # e.g. no file descriptors left: a peer's connection is lost, the listener lives on
                self._events.emit("ingest.accept-failed", Severity.WARNING, f"accept failed: {error}")
                self._clock.wait(self._stopping, 0.1)
                continue
            with self._lock:
                full = len(self._connections) >= self._limits.connections_max or self._stopping.is_set()
                if not full:
                    # daemon: a handler stuck in a store's call must not keep the process from ending
                    thread = threading.Thread(
                        target=self._serve, args=(sock, address[0]), name="ingest-peer", daemon=True
                    )
                    self._connections[sock] = thread
                    thread.start()
            if full:
                sock.close()
                text = f"a connection from {address[0]} was closed: {self._limits.connections_max} are open"
                self._events.emit("ingest.too-many-connections", Severity.WARNING, text)

    def _serve(self, sock: socket.socket, address: str) -> None:
        """A connection's thread."""
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(sock.close)
                secured = self._handshake(sock, address)
                if secured is not None:
                    stack.callback(secured.close)
                    with self._lock:
                        # wrapping detaches the plain socket; close() must find the one that is open now
                        self._connections[secured] = threading.current_thread()
                        if self._stopping.is_set():
                            return
                    self._converse(secured, address)
        except (OSError, SecondsiteError) as error:
            if not self._stopping.is_set() and not isinstance(error, ConnectionError):
                text = f"the connection from {address} ended: {error}"
                self._events.emit("ingest.connection-ended", Severity.INFORMATION, text)
        except Exception as error:  # noqa: BLE001 - the thread's root: one peer's fault must not end the listener
            text = f"serving {address} failed: {type(error).__name__}: {error}"
            self._events.emit("ingest.internal-error", Severity.CRITICAL, text)
        finally:
            with self._lock:
                me = threading.current_thread()
                self._connections = {s: t for s, t in self._connections.items() if t is not me}

    def _handshake(self, sock: socket.socket, address: str) -> ssl.SSLSocket | None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(self._limits.handshake_seconds)
        secured = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        # the socket's limit is per read; the timer bounds a peer that sends a byte now and then
        timer = threading.Timer(self._limits.handshake_seconds, _shutdown, (secured,))
        timer.daemon = True
        timer.start()
        try:
            secured.do_handshake()
        except OSError as error:  # ssl.SSLError is one
            text = f"the TLS handshake with {address} failed: {handshake_reason(error)}"
            self._events.emit("ingest.handshake-refused", Severity.WARNING, text, address=address)
            # closing with the peer's request unread would reset the connection, and the alert with it
            with contextlib.suppress(OSError):
                _shutdown_write(secured)
            secured.close()
            return None
        finally:
            timer.cancel()
        return secured

    def _converse(self, sock: ssl.SSLSocket, address: str) -> None:
        limits = self._limits
        connection = Wire(sock, self._clock, peer=address, idle_seconds=limits.idle_seconds)
        peer: Peer | None = None
        refusal: CertificateRefused | None = None
        try:
            peer = peer_of(sock, address)
            connection.peer = peer.name
            check_revoked(self._revocation, peer)
        except CertificateRefused as error:
            refusal = error
            self._events.emit("ingest.certificate-refused", Severity.WARNING, str(error), address=address)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        while not self._stopping.is_set():
            try:
                head = connection.read_head(
                    first_byte_seconds=limits.between_requests_seconds, head_seconds=limits.head_seconds
                )
            except ProtocolViolation as error:
                self._reply(connection, "GET", _failure(error), close=True)
                return
            if head is None:
                return
            if refusal is not None:
                self._reply(connection, head.start[0], _failure(refusal), close=True)
                return
            assert peer is not None
            exchange = _Exchange(
                self._receiver,
                connection,
                head,
                buffer,
                health=self._health,
                limits=limits,
                events=self._events,
            )
            answer = exchange.run(peer)
            close = head.wants_close or not exchange.drain()
            self._reply(connection, head.start[0], answer, close=close)
            if close:
                return

    def _health(self, peer: Peer) -> dict[str, str]:
        """What a peer may know of us. Texts only: an older peer reads them all."""
        free = self._room()
        known = {} if free is None else {"freeBytes": str(free)}
        at = self._clock.utc().isoformat()
        return {"name": self._name, "version": __version__, "you": peer.name, "at": at, **known}

    def _reply(self, connection: Wire, method: str, answer: Answer, *, close: bool) -> None:
        headers = {"content-length": str(len(answer.body))}
        if answer.body:
            headers["content-type"] = "application/json"
        headers |= answer.headers
        if close:
            headers["connection"] = "close"
        start = f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Status')}"
        body = b"" if method == "HEAD" else answer.body
        connection.set_deadline(self._limits.idle_seconds)
        connection.write(format_head(start, headers) + body)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        receiver: Receiver,
        connection: Wire,
        head: Head,
        buffer: memoryview,
        *,
        health: Callable[[Peer], dict[str, str]],
        limits: IngestLimits,
        events: EventSink,
    ) -> None:
        self._receiver = receiver
        self._health = health
        self._limits = limits
        self._events = events
        self._connection = connection
        self._head = head
        self._buffer = buffer
        self._unread = 0  # bytes of the body that are still to come

    def run(self, peer: Peer) -> Answer:
        """The answer; errors of ours become answers too, broken connections are raised."""
        method, target, version = self._head.start
        try:
            self._unread = self._head.content_length(size_bytes_max=wire.POINT_BYTES_MAX, peer=peer.name)
            if version != "HTTP/1.1":
                raise ProtocolViolation(peer=peer.name, why="it does not speak HTTP/1.1")
            route = wire.parse_target(target)
            if route is None:
                return Answer(404, _error_body(ProtocolViolation(peer=peer.name, why="an unknown target")))
            if method not in wire.METHODS[route.kind]:
                error = ProtocolViolation(peer=peer.name, why=f"{method} is not for {route.kind}")
                return Answer(405, _error_body(error), {"allow": ", ".join(wire.METHODS[route.kind])})
            return self._dispatch(peer, method, route)
        except SecondsiteError as error:
            # no room passes only when a person makes some; the source asks ever more rarely
            quiet = error.retryable and not isinstance(error, StoreFull)
            severity = Severity.INFORMATION if quiet else Severity.WARNING
            text = f"{peer.name}, {method} {target[:200]}: {error}"
            self._events.emit("ingest.request-refused", severity, text)
            return _failure(error)

    def drain(self) -> bool:
        """Read and drop what is left of the body; False when that is more than is worth it."""
        if self._unread > DRAIN_BYTES_MAX:
            return False
        while self._unread:
            self._unread -= self._connection.read_into(self._buffer[: min(self._unread, BLOCK_BYTES)])
        return True

    def _dispatch(self, peer: Peer, method: str, route: wire.Route) -> Answer:
        if route.kind == "health":
            return _json(200, self._health(peer))
        self._receiver.authorise(peer, route.machine)
        match route.kind:
            case "head":
                return _json(200, self._receiver.head(peer, route.machine))
            case "key" if method == "GET":
                return _json(200, WrappedKey(wrapped=self._receiver.get_key(peer, route.machine, route.key)))
            case "key":
                self._receiver.put_key(peer, route.machine, route.key, bytes(self._body(wire.KEY_BYTES_MAX)))
                return _json(200, {})
            case "claims":
                request = wire.decode(self._body(wire.CLAIM_BYTES_MAX), ClaimRequest, peer=peer.name)
                wire.check_claim(request, route.machine, peer=peer.name)
                return _json(201, self._receiver.claim(peer, request))
            case "points":
                proposal = wire.decode(self._body(wire.POINT_BYTES_MAX), PointProposal, peer=peer.name)
                wire.check_proposal(proposal, route.machine, peer=peer.name)
                return _json(201, self._receiver.commit(peer, proposal))
            case "digests":
                body = self._body(wire.DIGEST_QUERY_BYTES_MAX)
                query = wire.decode_packed(body, DigestQuery, peer=peer.name)
                wire.check_digests(query, route.machine, peer=peer.name)
                answer = msgspec.msgpack.encode(self._receiver.digests(peer, query))
                return Answer(200, answer, {"content-type": "application/msgpack"})
            case "adoption":
                terms = wire.decode(self._body(wire.ADOPTION_BYTES_MAX), AdoptionTerms, peer=peer.name)
                wire.check_terms(terms, route.machine, peer=peer.name)
                return _json(200, self._receiver.adopt(peer, terms))
            case "stop":
                note = wire.decode(self._body(wire.STOP_BYTES_MAX), StopNote, peer=peer.name)
                wire.check_stop(note, route.machine, peer=peer.name)
                self._receiver.note_stop(peer, note)
                return _json(200, {})
        assert route.segment is not None
        if method == "HEAD":
            offset, complete = self._receiver.segment_offset(peer, route.segment)
            return Answer(200, b"", {"upload-offset": str(offset), "upload-complete": f"?{int(complete)}"})
        return self._segment(peer, route.segment)

    def _body(self, size_bytes_max: int) -> bytearray:
        length = self._head.content_length(size_bytes_max=size_bytes_max, peer=self._connection.peer)
        self._set_deadline(length)
        data = bytearray(length)
        self._connection.fill(memoryview(data))
        self._unread = 0
        return data

    def _segment(self, peer: Peer, name: SegmentName) -> Answer:
        length = self._head.content_length(size_bytes_max=wire.SEGMENT_BYTES_MAX, peer=peer.name)
        first, total = self._head.content_range(length, peer=peer.name)
        if not 0 < total <= wire.SEGMENT_BYTES_MAX or first + length != total:
            # a body ends where the segment ends: the one shape a resuming sender needs
            raise ProtocolViolation(peer=peer.name, why="its content-range does not reach the segment's end")
        digest = wire.parse_hash(self._head.headers.get("x-hash"), peer=peer.name)
        self._set_deadline(length)
        upload = self._receiver.open_segment(peer, name, size_bytes=total, digest=digest)
        if upload is None:
            return _json(200, {})
        try:
            if first > upload.offset:
                why = f"a segment continued at {first} where {upload.offset} bytes are held"
                raise ProtocolViolation(peer=peer.name, why=why)
            skip = upload.offset - first
            while self._unread:
                count = min(self._unread, BLOCK_BYTES)
                block = self._buffer[:count]
                filled = 0
                while filled < count:
                    try:
                        got = self._connection.read_into(block[filled:])
                    except (OSError, SecondsiteError):
                        # the link was cut: what arrived is kept, the sender goes on from there
                        if filled > skip:
                            upload.append(block[skip:filled])
                        raise
                    filled += got
                    self._unread -= got
                if skip < count:
                    upload.append(block[skip:])
                skip = max(0, skip - count)
            upload.finish()
        finally:
            upload.suspend()
        return _json(201, {})

    def _set_deadline(self, length: int) -> None:
        limits = self._limits
        self._connection.set_deadline(limits.body_seconds + length / limits.body_bytes_per_second_min)


def _json(status: int, body: object) -> Answer:
    return Answer(status, msgspec.json.encode(body))


def _error_body(error: SecondsiteError) -> bytes:
    return msgspec.json.encode(error.as_dict())


def _failure(error: SecondsiteError) -> Answer:
    return Answer(wire.status_of(error), _error_body(error))


def _shutdown_write(sock: socket.socket) -> None:
    socket.socket.shutdown(sock, socket.SHUT_WR)
    sock.settimeout(1.0)
    for _ in range(16):
        if not socket.socket.recv(sock, 65536):
            return


def _shutdown(sock: socket.socket) -> None:
    # the plain method: an SSLSocket's own forgets its TLS state under the thread that is reading
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
