"""The TLS listener: uvicorn with httptools and uvloop, the peer's certificate in each request.

uvicorn bounds how long a connection may be idle, and nothing else. Here also: the handshake, a request's head
(time and bytes), its body, a reader that takes nothing, and the number of connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import KIB
from secondsite.server.api.errors import HttpError, NotReady
from secondsite.server.config import Limits

log = logging.getLogger(__name__)

# A token, a long path and what proxies add stay below 8 KiB; servers commonly take 8 to 64.
HEAD_BYTES_MAX = 32 * KIB
HANDSHAKE_SECONDS = 10.0
# What a peer gets to take our last words before the connection is dropped.
LINGER_SECONDS = 2.0
# While the server stops: how often connections that were made meanwhile are told.
LATE_SECONDS = 0.1
CERTIFICATE_KEY = "peer_certificate"


class AddressInUse(SecondsiteError):
    """Nothing was bound."""

    code = "server.address"
    outcome = Outcome.UNAVAILABLE
    happened = "The server cannot listen at {host} port {port}: {why}."
    cause = "Another process listens there, the address is not this machine's, or the port needs root."
    action = "Stop the other process, or give another [listen] host or port in the configuration."


class RequestUnreadable(HttpError):
    """Not HTTP."""

    code = "request.unreadable"
    outcome = Outcome.USAGE
    status = 400
    happened = "The request is not HTTP/1.1."
    cause = "Something else connected, or a proxy in between damaged it."
    action = "Use the API's client, or any HTTP client with TLS."


class HeadTooLarge(HttpError):
    """More header than anyone needs."""

    code = "request.head-too-large"
    outcome = Outcome.USAGE
    status = 431
    happened = "The request's line and headers are larger than 32768 bytes."
    cause = "A client in a loop, or one that sends other servers' cookies."
    action = "Send fewer headers."


class TooSlow(HttpError):
    """Others want to be served, too."""

    code = "request.too-slow"
    outcome = Outcome.UNAVAILABLE
    status = 408
    happened = "The request was not complete in time."
    cause = "The line is very slow, or the client stopped sending."
    action = "Send it again."


@dataclass(frozen=True)
class _Words:
    """Answers given without the application."""

    slow: SecondsiteError
    large: SecondsiteError
    unreadable: SecondsiteError
    full: SecondsiteError


_WORDS = _Words(TooSlow(), HeadTooLarge(), RequestUnreadable(), NotReady(why="too many connections are open"))


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], *, limits: Limits
    ) -> None:
        super().__init__(config, server_state, app_state)
        # uvicorn tells every request with its query where anything handles logs, whatever its settings say
        self.access_log = False
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        self._certificate: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection, its handshake done."""
        super().connection_made(transport)
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            self._certificate = secured.getpeercert(binary_form=True)
        if len(self.connections) > self._limits.connections_max:
            self._refuse(_WORDS.full)
        else:
            self._arm(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone."""
        self._disarm()
        self._disarm_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, at most 256 KiB at once (the event loop's buffer)."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._refuse(_WORDS.large)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        # the dictionary is this request's own copy
        self.scope["state"][CERTIFICATE_KEY] = self._certificate
        self._in_head, self._head_bytes = True, 0
        self._arm(self._limits.head_seconds)

    def on_headers_complete(self) -> None:
        """The head is whole: its application starts."""
        self._in_head = False
        self._arm(self._limits.body_seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole: from here on it is our time that passes."""
        self._disarm()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The peer does not take what we send."""
        super().pause_writing()
        self._disarm_write()
        self._write_deadline = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._disarm_write()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text; ours has the shape of errors
        """What does not parse."""
        self._refuse(_WORDS.unreadable)

    def _too_slow(self) -> None:
        self._refuse(_WORDS.slow)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _disarm_write(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _refuse(self, error: SecondsiteError) -> None:
        """Answer without the application, and end the connection."""
        self._disarm()
        transport = self.transport
        cycle = self.cycle
        # in a head the cycle is the request before; in a body it is this one, perhaps answered already
        answered = cycle is not None and cycle.response_started
        if not answered or (self._in_head and cycle.response_complete):
            status = error.status if isinstance(error, HttpError) else 503
            body = msgspec.json.encode(error.as_dict() | {"requestId": ""})
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            transport.write(STATUS_LINE[status] + head.encode() + body)
        transport.close()
        self.loop.call_later(LINGER_SECONDS, transport.abort)


class _Server(uvicorn.Server):
    """uvicorn's server with a bounded handshake and our protocol."""

    def __init__(self, config: Config, *, context: ssl.SSLContext | None, limits: Limits) -> None:
        super().__init__(config)
        self._context = context
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept. As uvicorn's own, without its lifespan and its choices of where to listen."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        self.servers = []
        for listener in sockets or []:
            self.servers.append(
                await loop.create_server(
                    self._protocol,
                    sock=listener,
                    ssl=self._context,
                    backlog=self.config.backlog,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS if self._context else None,
                    ssl_shutdown_timeout=LINGER_SECONDS if self._context else None,
                )
            )
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, which tells each connection once, and waited for one in its handshake."""
        late = asyncio.create_task(self._close_late())
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    async def _close_late(self) -> None:
        while True:
            await asyncio.sleep(LATE_SECONDS)
            for connection in list(self.server_state.connections):
                connection.shutdown()

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(self.config, self.server_state, self.lifespan.state, limits=self._limits)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises AddressInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        why = error.strerror or str(error)
        raise AddressInUse(host=host, port=port, why=why) from None


class ApiServer:
    """A running API in a thread of its own: `start`, then `stop`."""

    def __init__(
        self,
        app: Callable[..., Any],
        listener: socket.socket,
        *,
        context: ssl.SSLContext | None,
        limits: Limits | None = None,
        trusted_proxies: tuple[str, ...] = (),
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """context: None serves without TLS (tests, on a unix socket). ended: called when serving ends."""
        limits = limits or Limits()
        self._stop_seconds = limits.stop_seconds
        self._listener = listener
        self._ended = ended
        config = Config(
            app,
            http=BoundedProtocol,
            ws="none",
            loop="uvloop",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=limits.stop_seconds,
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=list(trusted_proxies),
        )
        self._server = _Server(config, context=context, limits=limits)
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    def start(self) -> None:
        """Begin to answer (connections made before queue up in the socket)."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except Exception:  # root of the thread: the process is told, and ends
            log.exception("the API ended")
        finally:
            self._ended()

    def stop(self) -> None:
        """Take no more connections, let requests in progress end, then close."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(self._stop_seconds + 5.0)
        self._listener.close()
