"""A relay before an HTTP server that counts requests and spoils chosen ones, as bad networks do."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

# What becomes of a request: None: it is served. "lose": it is served, and its answer is lost. "drop": it is
# not, the connection breaks. A number: that HTTP status, without asking the server.
Fate = str | int | None


class Relay:
    """Listens on 127.0.0.1; hands everything on to the server's port, unless `fate` says otherwise."""

    def __init__(self, port: int, fate: Callable[[str, str], Fate] = lambda method, path: None) -> None:
        """fate: method and path -> what becomes of the request."""
        self.fate = fate
        self.requests: list[tuple[str, str]] = []
        self._server_port = port
        self._lock = threading.Lock()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                relay._handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def counted(self) -> Counter[str]:
        """Requests by method since the last call."""
        with self._lock:
            found, self.requests = self.requests, []
        return Counter(method for method, _ in found)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = _read_body(handler)
        with self._lock:
            self.requests.append((handler.command, handler.path))
            fate = self.fate(handler.command, handler.path)
        if fate == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        if isinstance(fate, int):
            handler.send_response(fate)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self._server_port, timeout=60)
        try:
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in {"connection", "expect", "transfer-encoding"}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            if fate == "lose":
                handler.close_connection = True
                handler.connection.close()
                return
            handler.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    handler.send_header(name, value)
            length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
            handler.send_header("Content-Length", length or "0")
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(data)
        except (OSError, http.client.HTTPException):
            handler.close_connection = True
            handler.connection.close()  # the server is gone, or its client is
        finally:
            connection.close()


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while True:
        size = int(handler.rfile.readline().split(b";")[0], 16)
        body += handler.rfile.read(size)
        handler.rfile.readline()
        if not size:
            return body
