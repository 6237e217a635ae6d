"""Requests on connections that a server has closed in between."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from secondsite.base.kept import drop_if_closed

POST = ("POST", "/", b"{}")


class _Once(http.server.BaseHTTPRequestHandler):
    """Keeps a connection, as HTTP/1.1 does, and closes it when nothing comes for a moment."""

    protocol_version = "HTTP/1.1"
    timeout = 0.05

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Once) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _asked(connection: http.client.HTTPConnection) -> socket.socket:
    connection.request(*POST)
    assert connection.getresponse().read() == b""
    assert connection.sock is not None
    return connection.sock


def test_a_connection_that_was_closed_meanwhile_is_made_anew(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    drop_if_closed(connection)  # nothing to look at yet
    first = _asked(connection)
    assert first.recv(1, socket.MSG_PEEK) == b"", "waits until the server has closed it"
    drop_if_closed(connection)
    assert _asked(connection) is not first
    connection.close()


def test_without_the_look_such_a_request_is_lost(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    assert _asked(connection).recv(1, socket.MSG_PEEK) == b""
    with pytest.raises((OSError, http.client.HTTPException)):
        _asked(connection)
    connection.close()


def test_a_living_one_is_kept(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Once, "timeout", 60)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    first = _asked(connection)
    drop_if_closed(connection)
    assert _asked(connection) is first
    connection.close()
