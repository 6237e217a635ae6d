"""Bells: who waits in this process for a gateway's work or for an answer is woken at once.

Only a shortcut: other servers of the same database do not ring here, so whoever waits looks for itself too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class Bells:
    """Names that can be waited for, from threads and from event loops. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[str, set[threading.Event]] = {}
        self._loops: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self.closed = False

    def close(self) -> None:
        """Wake everybody: the server stops, and nobody is to wait any more."""
        with self._lock:
            self.closed = True
            names = {*self._threads, *self._loops}
        for name in names:
            self.ring(name)

    def ring(self, name: str) -> None:
        """Wake everybody who waits for `name` now."""
        with self._lock:
            for event in self._threads.get(name, ()):
                event.set()
            for loop, waiting in self._loops.get(name, ()):
                with contextlib.suppress(RuntimeError):  # the loop has just been closed
                    loop.call_soon_threadsafe(waiting.set)

    @contextlib.contextmanager
    def listening(self, name: str) -> Iterator[threading.Event]:
        """An event that is set at every ring meanwhile; its user clears it."""
        event = threading.Event()
        with self._lock:
            self._threads.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                self._threads[name].discard(event)
                if not self._threads[name]:
                    del self._threads[name]

    @contextlib.contextmanager
    def listening_async(self, name: str) -> Iterator[asyncio.Event]:
        """The same for the running event loop."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._loops.setdefault(name, set()).add(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._loops[name].discard(entry)
                if not self._loops[name]:
                    del self._loops[name]
