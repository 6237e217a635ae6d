"""Every answer has one shape, every body a bound, every slow client an end."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.logs import JsonLines
from secondsite.server.api.errors import NotReady
from secondsite.server.config import Limits
from secondsite.server.database.engine import Database, open_database
from support.databases import Databases
from support.server import RunningApi, make_services, owner, running_api
from support.until import until

QUICK = Limits(
    connections_max=8, head_seconds=0.3, body_seconds=0.3, write_seconds=0.3, idle_seconds=1, stop_seconds=2
)
MIB = 1024 * 1024


@pytest.fixture
def database(databases: Databases) -> Iterator[Database]:
    """On one kind: what is tested here comes before any state."""
    with databases.ready("sqlite") as url:
        opened = open_database(url, SystemClock())
        yield opened
        opened.close()


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    with running_api(make_services(database, tmp_path)) as running:
        yield running


@pytest.fixture
def quick(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    with running_api(make_services(database, tmp_path), QUICK) as running:
        yield running


def _send_for_ever(sock: socket.socket, data: bytes) -> None:
    for _ in range(100_000):
        sock.sendall(data)


def _answer_on(sock: socket.socket) -> tuple[int, dict[str, object]]:
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer.status, json.loads(answer.read())


def test_health_and_readiness(api: RunningApi) -> None:
    assert api.call("GET", "/api/v1/health").json()["status"] == "alive"
    assert api.call("GET", "/api/v1/ready").json()["status"] == "ready"

    def stopping() -> None:
        raise NotReady(why="a test says so")

    api.services.checks.append(stopping)
    answer = api.call("GET", "/api/v1/ready")
    assert answer.status == 503
    assert answer.code == "server.not-ready"
    assert api.call("GET", "/api/v1/health").status == 200


def test_every_error_has_one_shape_and_the_requests_id(api: RunningApi) -> None:
    token = owner(api.services)
    cases = [
        api.call("GET", "/nowhere"),
        api.call("PUT", "/api/v1/health"),
        api.call("GET", "/api/v1/me"),
        api.call("GET", "/api/v1/me", headers={"authorization": "Bearer nonsense"}),
        api.call("GET", "/api/v1/me", headers={"authorization": "Basic bm8="}),
        api.call("POST", "/api/v1/sessions", b"{not json"),
        api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": "x", "more": 1}),
        api.call("POST", "/api/v1/sessions", {"userName": 7, "password": "x"}),
        api.call.as_(token)("GET", "/api/v1/users/nobody"),
        api.call.as_(token)("GET", "/api/v1/users?limit=0"),
        api.call.as_(token)("GET", "/api/v1/users?after=AAAA"),
    ]
    found = [(answer.status, answer.code) for answer in cases]
    assert found == [
        (404, "request.route-unknown"),
        (405, "request.method-unknown"),
        (401, "access.unauthenticated"),
        (401, "access.unauthenticated"),
        (401, "access.unauthenticated"),
        (400, "request.invalid"),
        (400, "request.invalid"),
        (400, "request.invalid"),
        (404, "user.unknown"),
        (400, "request.invalid"),
        (400, "request.invalid"),
    ]
    for answer in cases:
        assert {"code", "outcome", "happened", "cause", "action", "requestId"} <= set(answer.json())
        assert answer.json()["requestId"] == answer.headers["x-request-id"]


def test_a_clients_request_id_is_kept_and_a_hostile_one_replaced(api: RunningApi) -> None:
    kept = api.call("GET", "/api/v1/health", headers={"x-request-id": "deploy-17"})
    assert kept.headers["x-request-id"] == "deploy-17"
    replaced = api.call("GET", "/api/v1/health", headers={"x-request-id": 'a"} evil'})
    assert replaced.headers["x-request-id"].isalnum()


def test_a_defect_is_told_without_its_detail(api: RunningApi, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret detail")

    api.services.checks.append(broken)
    answer = api.call("GET", "/api/v1/ready")
    assert answer.status == 500
    assert answer.code == "server.internal"
    assert b"secret detail" not in answer.data
    assert "secret detail" in caplog.text


def test_bodies_are_bounded_and_the_anonymous_get_less(api: RunningApi) -> None:
    token = owner(api.services)
    within = b'{"name": "a", "displayName": "' + b"x" * (MIB - 100) + b'"}'
    assert api.call.as_(token)("POST", "/api/v1/users", within).code == "request.invalid"
    for answer in (
        api.call.as_(token)("POST", "/api/v1/users", b" " * (MIB + 1)),
        api.call("POST", "/api/v1/sessions", b" " * 70_000),
    ):
        assert answer.status == 413
        assert answer.code == "request.body-too-large"


def test_a_body_without_a_length_is_bounded_too(api: RunningApi) -> None:
    with api.raw() as sock:
        sock.sendall(b"POST /api/v1/sessions HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n")
        sock.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n" + b"100\r\n" + b" " * 0x100 + b"\r\n")
        assert _answer_on(sock)[1]["code"] == "request.body-too-large"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "request.too-slow"),
        (b"GET /api/v1/health HTTP/1.1\r\nhost:", "request.too-slow"),
        (b"POST /api/v1/sessions HTTP/1.1\r\nhost: s\r\ncontent-length: 9\r\n\r\n{", "request.too-slow"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "request.unreadable"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000, "request.head-too-large"),
    ],
    ids=["silent", "half a head", "half a body", "not HTTP", "endless header"],
)
def test_slow_and_strange_clients_are_answered_and_cut(quick: RunningApi, sent: bytes, code: str) -> None:
    with quick.raw() as sock:
        sock.sendall(sent)
        assert _answer_on(sock)[1]["code"] == code
        assert sock.recv(1) == b""
    assert quick.call("GET", "/api/v1/health").status == 200


def test_many_headers_are_too_large_however_they_come(quick: RunningApi) -> None:
    with quick.raw() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(8000)))
        assert _answer_on(sock)[1]["code"] == "request.head-too-large"


def test_a_connection_too_many_is_told(quick: RunningApi) -> None:
    held = [quick.raw() for _ in range(QUICK.connections_max)]
    try:
        with quick.raw() as sock:
            status, body = _answer_on(sock)
            assert (status, body["code"]) == (503, "server.not-ready")
    finally:
        for sock in held:
            sock.close()


def test_a_reader_that_takes_nothing_is_cut(quick: RunningApi) -> None:
    token = owner(quick.services)
    head = f"GET /api/v1/openapi.json HTTP/1.1\r\nhost: s\r\nauthorization: Bearer {token}\r\n\r\n".encode()
    # answers pile up until the socket's buffers are full; then nothing is taken for too long
    with quick.raw() as sock, pytest.raises((BrokenPipeError, ConnectionResetError)):
        _send_for_ever(sock, head)
    assert quick.call("GET", "/api/v1/health").status == 200


def test_metrics_count_by_route_not_by_path(api: RunningApi) -> None:
    token = owner(api.services)
    call = api.call.as_(token)
    for name in ("olga", "nobody"):
        call("GET", f"/api/v1/users/{name}")
    call("GET", "/some/path")
    assert api.call("GET", "/metrics").status == 401
    text = call("GET", "/metrics").data.decode()
    for status in ("200", "404"):
        route = f'method="GET",route="/api/v1/users/{{user}}",status="{status}"'
        assert f"secondsite_http_requests_total{{{route}}} 1.0" in text
    assert 'route="unmatched"' in text
    assert "/some/path" not in text
    assert "process_resident_memory_bytes" in text


def test_log_lines_are_json_with_the_requests_id_and_without_secrets(
    api: RunningApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    token = owner(api.services)
    password = "a password nobody knows"
    call = api.call.as_(token)
    call("POST", "/api/v1/users", {"name": "maria", "password": password})
    call("POST", "/api/v1/users", {"name": "maria", "passwort": password})
    made = api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": password}).json()
    call("GET", f"/api/v1/users?token={token}")
    assert api.call("POST", "/api/v1/sessions", {"userName": "maria", "password": "wrong"}).status == 401

    def told() -> int:
        return sum(record.getMessage() == "request" for record in caplog.records)

    # a request's line is written once its answer is on its way
    until(lambda: told() >= 5, "the line of the last request")
    formatter = JsonLines()
    lines = [json.loads(formatter.format(record)) for record in caplog.records]
    requests = [line for line in lines if line["text"] == "request"]
    assert {(line["method"], line["status"], line["user"]) for line in requests} >= {
        ("POST", 201, "olga"),
        ("POST", 400, "olga"),
        ("POST", 401, ""),
    }
    for secret in (token, token[20:], password, made["text"], made["text"][20:]):
        assert secret not in json.dumps(lines)


def test_a_line_of_log_stays_one_line() -> None:
    record = logging.LogRecord("a", logging.ERROR, "", 0, "two\nlines\x1b[31m", None, None)
    text = JsonLines().format(record)
    assert "\n" not in text
    assert "\x1b" not in text
    assert json.loads(text)["text"] == "two\nlines\x1b[31m"
