"""A gateway's requests to its server: HTTPS, outbound only, through a proxy where one is given.

Every connection checks the server's certificate but one: the very first asks for the authority's certificate,
sends nothing, and takes it only if its fingerprint is the one in the registration key.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from pydantic import BaseModel, ValidationError

from secondsite.base.errors import InvalidInput, RemoteError, SecondsiteError
from secondsite.base.files import FileTooLarge, read_limited
from secondsite.base.units import MIB
from secondsite.gateway.common.enrolerrors import (
    OwnCertificateRefused,
    ServerAnswerUnknown,
    ServerNotTrusted,
    ServerUnreachable,
)
from secondsite.gateway.common.incarnation import Incarnations, incarnations
from secondsite.transfer import enrolment as wire
from secondsite.transfer.certificates import fingerprint
from secondsite.transfer.incarnation import INCARNATION_HEADER, parse_incarnation
from secondsite.transfer.pki import read_certificate
from secondsite.transfer.registration import RegistrationKey
from secondsite.transfer.tls import TlsFiles, handshake_reason

ANSWER_BYTES_MAX = 16 * MIB
CONNECT_SECONDS = 15.0
CREDENTIALS_BYTES_MAX = 1024

PATH_HEALTH = "/api/v1/health"

T = TypeVar("T", bound=BaseModel)

# What OpenSSL calls the alerts of a peer that does not take our certificate (RFC 8446, section 6.2).
_REFUSED_ALERTS = ("CERTIFICATE", "UNKNOWN_CA", "BAD_CERTIFICATE", "ACCESS_DENIED")


def _parse_proxy(text: str) -> tuple[str, int]:
    what = f"the proxy {text[:100]!r}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(what=what, why=str(error)) from None
    if parts.scheme != "http" or not host or port is None or parts.path.strip("/") or "@" in parts.netloc:
        raise InvalidInput(what=what, why="it is not http://HOST:PORT (credentials go into a file)")
    return host, port


class Way:
    """How to the server: its address, and the proxy in between. Raises InvalidInput."""

    def __init__(self, server: str, proxy: str | None = None, credentials: Path | None = None) -> None:
        self.server = server
        self.proxy = proxy
        parts = urlsplit(server)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._proxy = _parse_proxy(proxy) if proxy is not None else None
        self._credentials = credentials

    def connection(self, context: ssl.SSLContext, seconds: float) -> http.client.HTTPSConnection:
        """A connection that is made with its first request."""
        if self._proxy is None:
            return http.client.HTTPSConnection(self._host, self._port, context=context, timeout=seconds)
        made = http.client.HTTPSConnection(*self._proxy, context=context, timeout=seconds)
        made.set_tunnel(self._host, self._port, self._authorization())
        return made

    def _authorization(self) -> dict[str, str]:
        # read each time: a changed password counts from the next connection on
        if self._credentials is None:
            return {}
        try:
            text = read_limited(self._credentials, size_bytes_max=CREDENTIALS_BYTES_MAX).strip()
        except (OSError, FileTooLarge):
            raise InvalidInput(
                what=f"the proxy credentials {self._credentials}", why="the file cannot be read"
            ) from None
        return {"Proxy-Authorization": f"Basic {base64.b64encode(text).decode()}"}


@dataclass(frozen=True)
class OwnCertificate:
    """Of a client that shows one."""

    without: ssl.SSLContext  # the same trust, nothing shown
    until: str  # for people


class ServerClient:
    """Requests with one TLS context on one connection that is kept open. Thread-safe; one at a time.

    Raises RemoteError (what the server says), ServerUnreachable, ServerNotTrusted, OwnCertificateRefused or
    ServerAnswerUnknown.
    """

    def __init__(
        self,
        way: Way,
        context: ssl.SSLContext,
        own: OwnCertificate | None = None,
        known: Incarnations | None = None,
    ) -> None:
        """own: what `context` shows of ours, to tell a refusal of it from a server that is away.

        known: the incarnations of the server that were met; requests raise TwoServers for an earlier one.
        """
        self._way = way
        self._known = known
        self._context = context
        self._own = own
        self._ended = False  # the last failure was the other side's end of the connection
        self._lock = threading.Lock()
        self._connection: http.client.HTTPSConnection | None = None
        self._cut = False

    def cut(self) -> None:
        """End the request under way, from another thread; the client is of no more use."""
        self._cut = True
        found = self._connection
        sock = found.sock if found is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it has just ended by itself
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop the connection."""
        with self._lock:
            self._drop()

    def get(self, path: str, kind: type[T]) -> T:
        """GET."""
        return self._parse(self.request("GET", path, None), kind)

    def post(self, path: str, body: BaseModel, kind: type[T], *, seconds: float = CONNECT_SECONDS) -> T:
        """POST a body; `seconds` is how long the answer may take."""
        data = body.model_dump_json(by_alias=True).encode()
        return self._parse(self.request("POST", path, data, seconds=seconds), kind)

    def request(
        self, method: str, path: str, body: bytes | None, *, seconds: float = CONNECT_SECONDS
    ) -> bytes:
        """Any request with a JSON body or none; the answer's body, of at most 16 MiB."""
        with self._lock:
            kept = self._connection is not None
            try:
                return self._once(method, path, body, seconds)
            except ServerUnreachable as error:
                # a kept connection may have been closed by the other side meanwhile: once more on a new one.
                # All that a gateway asks may be asked twice.
                if not kept:
                    raise self._explained(error) from None
            try:
                return self._once(method, path, body, seconds)
            except ServerUnreachable as error:
                raise self._explained(error) from None

    def _explained(self, error: ServerUnreachable) -> ServerUnreachable | OwnCertificateRefused:
        """Whether it was our certificate that the server ended the connection over.

        In TLS 1.3 a client is done before the server has looked at its certificate, and the server's event
        loop closes without the alert that says why (seen with uvloop 0.23: an unexpected end, or a reset).
        """
        if self._own is None or not self._ended or self._cut:
            return error
        probe = ServerClient(self._way, self._own.without)
        try:
            probe.request("GET", PATH_HEALTH, None)
        except SecondsiteError:
            return error
        finally:
            probe.close()
        why = f"it answers without the certificate and not with it; it is valid until {self._own.until}"
        return OwnCertificateRefused(server=self._way.server, why=why)

    def _once(self, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
        if self._cut:
            raise ServerUnreachable(server=self._way.server, why="the request was ended here")
        if self._connection is None:
            self._connection = self._way.connection(self._context, seconds)
        elif self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)
        headers = {"content-type": "application/json"} if body is not None else {}
        if self._known is not None:
            headers[INCARNATION_HEADER] = self._known.shown.text
        self._ended = False
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            data = answer.read(ANSWER_BYTES_MAX + 1)
        except ssl.SSLCertVerificationError as error:
            self._drop()
            raise ServerNotTrusted(server=self._way.server, why=handshake_reason(error)) from None
        except ssl.SSLError as error:
            self._drop()
            if any(word in (error.reason or "") for word in _REFUSED_ALERTS):
                raise OwnCertificateRefused(server=self._way.server, why=handshake_reason(error)) from None
            self._ended = isinstance(error, ssl.SSLEOFError)
            raise ServerUnreachable(server=self._way.server, why=handshake_reason(error)) from None
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            # RemoteDisconnected, ConnectionResetError and BrokenPipeError are all of this kind
            self._ended = isinstance(error, ConnectionError)
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServerUnreachable(server=self._way.server, why=why) from None
        if len(data) > ANSWER_BYTES_MAX:
            self._drop()
            raise ServerAnswerUnknown(server=self._way.server, why="it is larger than 16 MiB")
        if self._known is not None:
            self._known.met(self._way.server, parse_incarnation(answer.getheader(INCARNATION_HEADER)))
        if answer.status >= 400:
            raise self._refusal(answer.status, data)
        return data

    def _refusal(self, status: int, data: bytes) -> RemoteError | ServerAnswerUnknown:
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if isinstance(body, dict) and isinstance(body.get("code"), str):
            return RemoteError(body)
        return ServerAnswerUnknown(server=self._way.server, why=f"status {status} without a reason")

    def _parse(self, data: bytes, kind: type[T]) -> T:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ServerAnswerUnknown(server=self._way.server, why=f"{where}: {first['msg']}") from None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def first_contact(way: Way, key: RegistrationKey) -> wire.AuthorityAnswer:
    """The authority's certificate, which is the one the key names, and the server's word about the time.

    Raises ServerNotTrusted when it is another one; nothing but the question was sent then.
    """
    if key.system_trust:
        context = ssl.create_default_context()
    else:
        context = _context()
        # the one question to whoever answers: what comes back counts by its fingerprint alone
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    client = ServerClient(way, context)
    try:
        answer = client.get(wire.PATH_AUTHORITY, wire.AuthorityAnswer)
    finally:
        client.close()
    try:
        found = fingerprint(x509.load_pem_x509_certificate(answer.certificate.encode()))
    except ValueError:
        raise ServerNotTrusted(server=way.server, why="what it sent is no certificate") from None
    if found != key.authority:
        names = key.authority.hex()[:16]
        why = f"its authority has the fingerprint {found.hex()[:16]}…, the key names {names}…"
        raise ServerNotTrusted(server=way.server, why=why)
    return answer


def trusting_client(way: Way, authority_pem: str, *, system_trust: bool) -> ServerClient:
    """A client without a certificate of its own, for one whose server is known."""
    return ServerClient(way, trusting_context(authority_pem, system_trust=system_trust))


def enrolled_client(way: Way, files: TlsFiles, *, system_trust: bool) -> ServerClient:
    """A client that shows the gateway's certificate. Raises OSError or ValueError for bad files."""
    pem = read_limited(files.authority, size_bytes_max=MIB).decode()
    context = trusting_context(pem, system_trust=system_trust)
    context.load_cert_chain(files.certificate, files.key)
    until = f"{read_certificate(files.certificate).valid_until:%Y-%m-%d %H:%M} UTC"
    own = OwnCertificate(trusting_context(pem, system_trust=system_trust), until)
    return ServerClient(way, context, own, incarnations(files.certificate.parent))


def trusting_context(authority_pem: str, *, system_trust: bool) -> ssl.SSLContext:
    """Trusts the server's own authority, or those that the machine trusts: never both."""
    if system_trust:
        context = ssl.create_default_context()
    else:
        context = _context()
        context.load_verify_locations(cadata=authority_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    return context
