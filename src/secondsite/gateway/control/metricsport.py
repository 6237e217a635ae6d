"""Metrics on a port of the loopback interface, for a Prometheus on the same machine, or a proxy before it."""

from __future__ import annotations

import http.server
import threading

from secondsite.base.errors import InvalidInput
from secondsite.gateway.control.metrics import CONTENT_TYPE, GatewayMetrics

REQUEST_SECONDS_MAX = 10.0
PATH = "/metrics"


class MetricsPort:
    """Answers ``GET /metrics`` and nothing else, from `start` to `close`. No token: it is loopback."""

    def __init__(self, metrics: GatewayMetrics, address: tuple[str, int]) -> None:
        """Binds. Raises InvalidInput where the address is taken."""

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS_MAX

            def do_GET(self) -> None:
                known = self.path.partition("?")[0] == PATH
                body = metrics.text() if known else b"see /metrics\n"
                self.send_response(200 if known else 404)
                self.send_header("content-type", CONTENT_TYPE if known else "text/plain")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
                """Nothing: it comes every few seconds."""

        try:
            self._server = http.server.ThreadingHTTPServer(address, Handler)
        except OSError as error:
            where = f"the address {address[0]}:{address[1]} of [metrics]"
            raise InvalidInput(what=where, why=str(error)) from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
