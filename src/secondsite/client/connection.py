"""One connection to a server: requests with a token, answers as types, every error in sentences.

`http.client`, not a library on top: a command must start fast. A request is sent again once when a kept
connection turned out to be closed, and only when it changes nothing.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from secondsite.base.errors import InvalidInput, Outcome, RemoteError, SecondsiteError
from secondsite.base.kept import drop_if_closed
from secondsite.base.parse import JSON_ERRORS

T = TypeVar("T")
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # a page of the longest entries is below a megabyte
SECONDS_MAX = 60.0
CHUNK_BYTES = 64 * 1024


class ServerUnreachable(SecondsiteError):
    """Nobody answers."""

    code = "client.unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "The server {server} does not answer: {why}."
    cause = (
        "It is not running, its address is another, or something between does not let connections through."
    )
    action = "See whether it runs, and whether this machine reaches it. Replication goes on without it."


class ServerUntrusted(SecondsiteError):
    """Somebody answers, but is it the server?"""

    code = "client.untrusted"
    outcome = Outcome.REFUSED
    happened = "The server {server} is not trusted: {why}."
    cause = "Its certificate is of an authority this log-in does not know, or names another host."
    action = "Log in with --authority and the server's authority.crt, at a name that is in its certificate."


class ServerAnswerUnknown(SecondsiteError):
    """The answer does not parse."""

    code = "client.answer-unknown"
    happened = "The server {server} answered in a way this command does not understand: {why}."
    cause = "The command and the server are of different versions, or something else answers there."
    action = "Compare `secondsite --version` at both ends and update the older one."


class Connection:
    """To one server, with one token; not thread-safe."""

    def __init__(
        self, server: str, token: str = "", *, authority: str = "", seconds_max: float = SECONDS_MAX
    ) -> None:
        """server: https://host[:port]. authority: PEM of whom to trust; empty: the system's own."""
        parts = urlsplit(server)
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise InvalidInput(what=f"the server's address {server!r}", why="it is not https://HOST[:PORT]")
        try:
            context = ssl.create_default_context(cadata=authority or None)
            port = parts.port
        except (ssl.SSLError, ValueError) as error:
            what = f"the server's address {server!r} or its authority"
            raise InvalidInput(what=what, why=str(error)) from None
        self.server = server
        self._token = token
        self._connection = http.client.HTTPSConnection(
            parts.hostname, port or 443, context=context, timeout=seconds_max
        )

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def call(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        """One request; its answer as `kind` (NoneType: there is none).

        Raises RemoteError with the server's own sentences, ServerUnreachable, ServerUntrusted or
        ServerAnswerUnknown.
        """
        answer = self._send(method, path, body)
        try:
            data = answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        try:
            if answer.status >= 400:
                raise RemoteError(msgspec.json.decode(data, type=dict[str, Any]))
            if kind is type(None):
                return None
            return msgspec.json.decode(data, type=kind)
        except JSON_ERRORS as error:
            raise ServerAnswerUnknown(server=self.server, why=error) from None

    def lines(self, path: str) -> Iterator[bytes]:
        """A long answer, some at a time. Raises as `call`."""
        answer = self._send("GET", path, None)
        if answer.status >= 400:
            raise RemoteError(msgspec.json.decode(answer.read(ANSWER_BYTES_MAX), type=dict[str, Any]))
        try:
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _send(self, method: str, path: str, body: object) -> http.client.HTTPResponse:
        headers = {"accept": "application/json"}
        data = None
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        if body is not None:
            data = msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        drop_if_closed(self._connection)
        kept = self._connection.sock is not None
        try:
            self._connection.request(method, path, data, headers)
            return self._connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise ServerUntrusted(server=self.server, why=error.verify_message) from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if kept and method == "GET":
                return self._send(method, path, body)
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        self._connection.close()
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ServerUnreachable(server=self.server, why=why)
