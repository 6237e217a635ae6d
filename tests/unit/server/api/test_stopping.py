"""A server that is stopped, and who is connected to it meanwhile."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

from secondsite.server.config import Limits, Listen, ServerConfig
from secondsite.server.main import AUTHORITY_NAME, Server
from support.server import cheap_passwords, tls_caller, trusting
from support.until import until


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except OSError:
        return True
    return False


def test_a_connection_whose_handshake_ends_while_it_stops_does_not_hold_it_up(tmp_path: Path) -> None:
    """Gateways make one just then: their requests were refused."""
    config = ServerConfig(state_dir=tmp_path / "s", listen=Listen(host="127.0.0.1", port=0))
    server = Server(config, passwords=cheap_passwords())
    server.start()
    assert server.address is not None
    context = trusting(tmp_path / "s" / AUTHORITY_NAME)
    stopping = threading.Thread(target=server.stop)
    with socket.create_connection(server.address) as begun:
        # answered after that one was accepted
        assert tls_caller(*server.address, context)("GET", "/api/v1/health").status == 200
        stopping.start()
        address = server.address
        until(lambda: refused(address), "the end of its listening")
        begun.settimeout(Limits().stop_seconds - 5)  # it raises
        cut = contextlib.suppress(ConnectionError, ssl.SSLError)
        with cut, context.wrap_socket(begun, server_hostname="127.0.0.1") as late:
            late.sendall(b"GET /api/v1/health HTTP/1.1\r\nhost: here\r\n\r\n")
            while late.recv(4096):
                pass
    stopping.join(60)
    assert not stopping.is_alive()
