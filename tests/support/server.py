"""A server's API for tests: real HTTP on a unix socket, or TLS on loopback, with a cheap password hasher."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from argon2 import PasswordHasher

from secondsite.server.api.app import build_app
from secondsite.server.api.listener import ApiServer
from secondsite.server.api.metrics import Metrics
from secondsite.server.api.services import Services
from secondsite.server.config import Limits, ServerConfig
from secondsite.server.database.engine import Database
from secondsite.server.events.service import Events
from secondsite.server.main import Server
from secondsite.server.people.audit import Audit
from secondsite.server.people.login import Logins
from secondsite.server.people.passwords import Passwords
from secondsite.server.people.roles import THE_SERVER, Grant, Role
from secondsite.server.people.sessions import Sessions
from secondsite.server.people.tokens import Tokens
from secondsite.server.people.users import Users

AUDIT_KEY = bytes(range(32))
SECONDS_MAX = 20.0


def cheap_passwords() -> Passwords:
    """Argon2id with parameters that cost a millisecond."""
    return Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


def make_services(database: Database, state_dir: Path) -> Services:
    """The parts that belong to people, on a database of the test."""
    audit = Audit(database, AUDIT_KEY)
    passwords = cheap_passwords()
    tokens = Tokens(database, audit)
    return Services(
        clock=database.clock,
        database=database,
        metrics=Metrics(),
        audit=audit,
        users=Users(database, audit, passwords),
        tokens=tokens,
        logins=Logins(database, audit, tokens, passwords, setup_file=state_dir / "setup-token"),
        sessions=Sessions(database, audit, tokens),
        events=Events(database),
    )


def whole_server(database_url: str, state_dir: Path) -> Server:
    """Every part of a server, as its main puts them together; `open` gives the services, `stop` ends it."""
    config = ServerConfig(state_dir=state_dir, database=database_url, url="https://server.example")
    return Server(config, passwords=cheap_passwords())


def user_with(services: Services, name: str, *grants: Grant, password: str | None = None) -> str:
    """A new user with these roles; returns an API token."""
    made = services.users.create(THE_SERVER, name, display_name=name.title(), password=password)
    for grant in grants:
        services.users.grant(THE_SERVER, name, grant)
    return services.tokens.create(THE_SERVER, made.id, name, name="test", days=1).text


def owner(services: Services, name: str = "olga") -> str:
    """An owner of everything; returns an API token."""
    return user_with(services, name, Grant("*", Role.OWNER))


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    data: bytes = field(repr=False)

    def json(self) -> Any:
        return msgspec.json.decode(self.data)

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json()["code"])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("server", timeout=SECONDS_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS_MAX)
        self.sock.connect(os.fspath(self._path))


class Caller:
    """Makes requests, each on a connection of its own.

    keep: on one as long as it lasts, of one thread: for who asks often.
    """

    def __init__(
        self, connect: Callable[[], http.client.HTTPConnection], token: str = "", *, keep: bool = False
    ) -> None:
        self._connect = connect
        self.token = token
        self._keep = keep
        self._kept: http.client.HTTPConnection | None = None

    def as_(self, token: str) -> Caller:
        return Caller(self._connect, token)

    def __call__(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        sent = dict(headers or {})
        if self.token:
            sent.setdefault("authorization", f"Bearer {self.token}")
        data: bytes | None = None
        if body is not None:
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
            sent.setdefault("content-type", "application/json")
        connection, self._kept = self._kept or self._connect(), None
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            found = Answer(answer.status, headers, answer.read())
        except BaseException:
            connection.close()
            raise
        if self._keep:
            self._kept = connection
        else:
            connection.close()
        return found


@dataclass
class RunningApi:
    """An API that answers."""

    services: Services
    path: Path
    call: Caller

    def raw(self) -> socket.socket:
        """A bare connection, to misbehave on."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(SECONDS_MAX)
        sock.connect(os.fspath(self.path))
        return sock


@contextlib.contextmanager
def running_api(services: Services, limits: Limits | None = None) -> Iterator[RunningApi]:
    """The API of these services on a unix socket."""
    with tempfile.TemporaryDirectory(prefix="ss-api-", dir="/var/tmp") as directory:
        path = Path(directory) / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(path))
        listener.listen(64)
        api = ApiServer(build_app(services), listener, context=None, limits=limits or Limits(stop_seconds=2))
        api.start()
        try:
            yield RunningApi(services, path, Caller(lambda: _UnixConnection(path)))
        finally:
            api.stop()


def tls_caller(
    host: str, port: int, context: ssl.SSLContext, token: str = "", *, keep: bool = False
) -> Caller:
    """Makes requests over TLS."""

    def connect() -> http.client.HTTPConnection:
        return http.client.HTTPSConnection(host, port, context=context, timeout=SECONDS_MAX)

    return Caller(connect, token, keep=keep)


def trusting(authority: Path) -> ssl.SSLContext:
    """A client's context that trusts one authority."""
    return ssl.create_default_context(cafile=os.fspath(authority))
