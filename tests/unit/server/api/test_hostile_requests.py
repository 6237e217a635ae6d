"""Every route, those that come later too: bodies too large, bodies that do not end, requests sent again."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.enrolfiles import EnrolmentFiles
from secondsite.server.api.access import CERTIFICATE, PUBLIC
from secondsite.server.api.app import Route, build_app, routes_of
from secondsite.server.config import Limits
from secondsite.server.people.roles import Grant, Role
from secondsite.transfer.pki import Authority
from support.databases import Databases
from support.enrolled import Place, enrolled_place
from support.server import (
    Caller,
    RunningApi,
    running_api,
    tls_caller,
    trusting,
    user_with,
    whole_server,
)

BODIES = ("POST", "PUT", "PATCH")
MIB = 1024 * 1024
# What gateways send is larger, with a certificate; without one it is as anybody's.
QUICK = Limits(connections_max=512, head_seconds=5.0, body_seconds=1.0, stop_seconds=2)


@pytest.fixture
def api(databases: Databases, tmp_path: Path) -> Iterator[RunningApi]:
    with databases.ready("sqlite") as url:
        server = whole_server(url, tmp_path)
        with running_api(server.open(), QUICK) as running:
            yield running
        server.stop()


def _routes(api: RunningApi) -> list[tuple[Route, str]]:
    found = [route for route in routes_of(build_app(api.services)) if route.method in BODIES]
    assert len(found) > 40
    return [(route, re.sub(r"{\w+}", "x", route.path)) for route in found]


def test_no_route_reads_more_than_it_must(api: RunningApi) -> None:
    token = user_with(api.services, "olga", Grant("*", Role.OWNER))
    for route, path in _routes(api):
        anonymous = api.call(route.method, path, b" " * 70_000)
        if route.marks & {PUBLIC, CERTIFICATE}:
            assert (anonymous.status, anonymous.code) == (413, "request.body-too-large"), path
        else:
            # told before a byte of the body counts
            assert anonymous.status in (401, 413), path
        known = api.call.as_(token)(route.method, path, b" " * (MIB + 1))
        assert (known.status, known.code) == (413, "request.body-too-large"), path


def test_a_body_that_does_not_end_holds_nobody_up(api: RunningApi) -> None:
    """All routes at once, each with a client that stops in the middle."""
    token = user_with(api.services, "olga", Grant("*", Role.OWNER))
    with ExitStack() as stack:
        waiting: list[tuple[str, socket.socket]] = []
        for route, path in _routes(api):
            sock = stack.enter_context(api.raw())
            head = f"{route.method} {path} HTTP/1.1\r\nhost: s\r\nauthorization: Bearer {token}\r\n"
            sock.sendall(f"{head}content-type: application/json\r\ncontent-length: 9\r\n\r\n{{".encode())
            waiting.append((path, sock))
        assert api.call("GET", "/api/v1/health").status == 200
        for path, sock in waiting:
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            body = json.loads(answer.read())
            assert (answer.status, body["code"]) == (408, "request.too-slow"), path
            assert sock.recv(1) == b""
    assert api.call.as_(token)("GET", "/api/v1/me").status == 200


def test_what_was_answered_once_is_not_done_again(api: RunningApi) -> None:
    """A request that ended something, taken down and sent again with all its headers."""
    token = user_with(api.services, "olga", Grant("*", Role.OWNER))
    user_with(api.services, "maria", password="correct horse battery")
    call = api.call.as_(token)
    session = {"userName": "maria", "password": "correct horse battery"}
    one = call("POST", "/api/v1/sessions", session).json()["text"]
    ended = api.call.as_(one)
    assert ended("DELETE", "/api/v1/sessions/current").status == 204
    assert ended("DELETE", "/api/v1/sessions/current").status == 401
    made = call("POST", "/api/v1/me/tokens", {"name": "ci"}).json()
    for status in (204, 404):
        assert call("DELETE", f"/api/v1/me/tokens/{made['id']}").status == status
    assert call("POST", "/api/v1/users", {"name": "otto"}).status == 201
    assert call("POST", "/api/v1/users", {"name": "otto"}).code == "user.exists"
    rows = call("GET", "/api/v1/audit?operation=user.create&limit=1000").json()["value"]
    assert [row["target"] for row in rows].count("otto") == 1


@pytest.fixture
def place(databases: Databases, tmp_path: Path) -> Iterator[Place]:
    with databases.ready("sqlite") as url, enrolled_place(url, tmp_path) as made:
        yield made


def _shown(place: Place, certificate: Path, key: Path) -> Caller:
    """A caller that shows this certificate."""
    context = trusting(place.root / "server" / "authority.crt")
    context.load_cert_chain(certificate, key)
    assert place.server.address is not None
    return tls_caller("127.0.0.1", place.server.address[1], context)


def test_every_route_of_gateways_takes_a_registered_gateways_certificate_only(place: Place) -> None:
    """None, one of another CA, the server's own, an unregistered, a revoked and a removed gateway's."""
    app = build_app(place.services)
    paths = [
        (route.method, re.sub(r"{\w+}", "1", route.path))
        for route in routes_of(app)
        if CERTIFICATE in route.marks
    ]
    assert len(paths) >= 9
    files = EnrolmentFiles(place.files, "gateway-a").tls
    own = _shown(place, files.certificate, files.key)

    def codes(call: Caller) -> set[str]:
        # a body that no route takes: who is let in gets no further than that
        found = set()
        for method, path in paths:
            answer = call(method, path, {"no": "such field"} if method in BODIES else None)
            found.add(answer.code if answer.status >= 400 else f"{answer.status} {path}")
        return found

    refusals = {"gateway.unregistered", "gateway.revoked", "gateway.removed", "access.certificate-required"}
    assert not codes(own) & refusals
    assert codes(place.call("")) == {"access.certificate-required"}
    foreign = Authority.create(place.root / "foreign", clock=SystemClock())
    certificate, key = foreign.issue("gateway-a").save(place.root / "foreign", "gateway-a")
    tls = place.root / "server" / "tls"
    # the server's own is for servers: as a client's it does not get past TLS either
    for shown in ((certificate, key), (tls / "server.crt", tls / "server.key")):
        for method, path in paths:
            with pytest.raises((ssl.SSLError, OSError)):
                _shown(place, *shown)(method, path)
    gateways = place.identity.gateways
    gateways.unregister("gateway-a", why="a test")
    assert codes(own) == {"gateway.unregistered"}
    gateways.remove("gateway-a")
    assert codes(own) == {"gateway.removed"}


def test_a_revoked_certificate_is_refused_on_every_route(place: Place) -> None:
    files = EnrolmentFiles(place.files, "gateway-a").tls
    own = _shown(place, files.certificate, files.key)
    place.identity.gateways.revoke("gateway-a", why="its disk was stolen")
    for route in routes_of(build_app(place.services)):
        if CERTIFICATE in route.marks:
            path = re.sub(r"{\w+}", "1", route.path)
            answer = own(route.method, path, {} if route.method in BODIES else None)
            assert answer.code == "gateway.revoked", path
