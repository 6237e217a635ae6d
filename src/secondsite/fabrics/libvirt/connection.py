"""One connection to a libvirt daemon, opened when needed and again after the daemon was restarted."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import libvirt

from secondsite.fabrics.errors import HypervisorUnreachable
from secondsite.fabrics.libvirt.errors import words

# A daemon that answers nothing for 5 x 5 s is taken for dead; local sockets answer in milliseconds.
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 5

_loop_lock = threading.Lock()
_loop_started = False


def _run_event_loop() -> None:
    while True:
        # Errors of one turn (a connection that closed) concern their connection, which reports them itself.
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def start_event_loop() -> None:
    """Run libvirt's event loop in a daemon thread, once a process; before the first connection is opened."""
    global _loop_started  # noqa: PLW0603 - libvirt's loop is one per process by its own design
    with _loop_lock:
        if _loop_started:
            return
        # Errors are raised as exceptions; the default handler would print each to stderr as well.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _loop_started = True


class Connection:
    """A connection to `uri`; `get` hands out a live one. Thread-safe."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None

    def get(self) -> Any:
        """A live `virConnect`.

        Raises:
            HypervisorUnreachable: the daemon does not answer.
        """
        with self._lock:
            try:
                if self._connection is not None and self._connection.isAlive():
                    return self._connection
            except libvirt.libvirtError:
                pass  # asked about a connection that is closed: open another
            self._drop()
            start_event_loop()
            try:
                self._connection = libvirt.open(self.uri)
                self._connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            except libvirt.libvirtError as error:
                self._drop()
                raise HypervisorUnreachable(uri=self.uri, why=words(error)) from error
            return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close it; `get` opens another."""
        with self._lock:
            self._drop()
