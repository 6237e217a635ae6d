"""The threads in which failovers and the like go their way: one each at most, and what ends one is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from secondsite.base.errors import SecondsiteError

log = logging.getLogger(__name__)


class WorkThreads:
    """Of one kind of work at one gateway. Thread-safe."""

    def __init__(self, what: str, failed: Callable[[str, Exception], None]) -> None:
        """what: names the threads. failed: told in the thread what ended it, with whose it was."""
        self._what = what
        self._failed = failed
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}

    def busy(self, identity: str) -> bool:
        """Whether a step of it is being done."""
        with self._lock:
            thread = self._threads.get(identity)
        return thread is not None and thread.is_alive()

    def begin(self, identity: str, work: Callable[[], object]) -> None:
        """Do its next steps in a thread of its own."""

        def root() -> None:
            try:
                work()
            except Exception as error:  # a thread's root: told, never silent
                level = logging.INFO if isinstance(error, SecondsiteError) else logging.ERROR
                log.log(level, "%s %s stopped", self._what, identity, exc_info=True)
                self._failed(identity, error)

        thread = threading.Thread(target=root, name=f"{self._what} {identity[:8]}", daemon=True)
        with self._lock:
            self._threads = {known: each for known, each in self._threads.items() if each.is_alive()}
            self._threads[identity] = thread
            thread.start()

    def wait(self, identity: str | None = None, *, seconds_max: float | None = None) -> None:
        """Until what is being done of it is over, or of all of them."""
        with self._lock:
            found = [each for known, each in self._threads.items() if identity in (None, known)]
        for thread in found:
            thread.join(seconds_max)


def named(error: Exception, machine: str, defect: type[SecondsiteError]) -> SecondsiteError:
    """What ended some work, as people are told: what was no error of ours is a defect, with its text."""
    if isinstance(error, SecondsiteError):
        return error
    return defect(machine=machine, kind=type(error).__name__, text=str(error)[:500])
