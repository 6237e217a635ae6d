"""HTTP over a unix socket: how a gateway's control API is reached from its own machine."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

# The slowest call waits up to 120 s for a point to be committed.
SECONDS_MAX = 150.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, *, seconds_max: float = SECONDS_MAX) -> None:
        super().__init__("gateway", timeout=seconds_max)
        self._socket_path = path

    def connect(self) -> None:
        """Connect, as `http.client` asks for it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(os.fspath(self._socket_path))
        except OSError:
            self.sock.close()
            raise
