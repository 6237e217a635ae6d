"""Runs the control API on its unix socket, in a thread of its own, for as long as the gateway lives."""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path

import uvicorn

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.sockets import check_socket_path
from secondsite.gateway.control.api import build_app
from secondsite.gateway.control.services import ControlServices

log = logging.getLogger(__name__)

STOP_SECONDS_MAX = 10.0


class SocketInUse(SecondsiteError):
    """Somebody answers there."""

    code = "socket.in-use"
    outcome = Outcome.REFUSED
    happened = "The socket {path} is served by another process already."
    cause = "Another gateway with the same configuration is running."
    action = "Stop the other one first, or give this one another control_socket."


def bind_private(path: Path) -> socket.socket:
    """A listening unix socket that only its owner can open; replaces a socket nobody answers on.

    Raises:
        SocketPathTooLong: the path does not fit a socket address.
        SocketInUse: a process answers there.
    """
    check_socket_path(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _answers(path):
        raise SocketInUse(path=path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        # before listen: until then every connect is refused, so there is no moment when others get in
        path.chmod(0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


class ControlServer:
    """A running control API; `stop` ends it and removes the socket."""

    def __init__(self, services: ControlServices, socket_path: Path) -> None:
        self._path = socket_path
        self._listener = bind_private(socket_path)
        app = build_app(services, lambda error: log.error("control API failed", exc_info=error))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2, ws="none"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Begin to answer (connections made before queue up in the socket)."""
        self._thread.start()

    def _run(self) -> None:
        self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Let requests in progress end, then close."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS_MAX)
        self._listener.close()
        self._path.unlink(missing_ok=True)


def serve_control(services: ControlServices, socket_path: Path) -> ControlServer:
    """Bind the socket and answer on it from now on."""
    server = ControlServer(services, socket_path)
    server.start()
    return server
