"""A lock that is given in the order in which it was asked for.

A `threading.Lock` goes to whoever is quickest, and that is often the thread that has just let go of it: one
that writes batch after batch keeps out one that waits to write a row.
"""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """Thread-safe; not to be taken twice by one thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._line: deque[threading.Lock] = deque()  # bounded by the threads; each is let in by a release

    def acquire(self, timeout: float) -> bool:
        """Wait for one's turn, at most so many seconds; whether it came."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return True
            mine = threading.Lock()
            mine.acquire()
            self._line.append(mine)
        if mine.acquire(timeout=timeout):
            return True
        with self._guard:
            if mine not in self._line:
                return True  # it came at the last moment
            self._line.remove(mine)
            return False

    def release(self) -> None:
        """Give it to the one that waits longest."""
        with self._guard:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False
