"""A thread of the server that does one thing again and again, until it is closed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What is done, and how its thread is called. waits: what a log says while it fails."""

    name: str
    work: Callable[[], object]
    every_seconds: float
    waits: str
    at_once: bool = False  # the first time at the start
    at_end: bool = False  # once more when it is closed
    on_trouble: Callable[[], object] = lambda: None  # after a SecondsiteError


class Rounds:
    """`start` once, `close` at the end. What fails is told once, and tried again with the next round."""

    def __init__(self, one: Round, clock: Clock) -> None:
        self._round = one
        self._clock = clock
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name=one.name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, after a round that is under way and the last one."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _root(self) -> None:
        if self._round.at_once:
            self._once()
        while not self._clock.wait(self._stop, self._round.every_seconds):
            self._once()
        if self._round.at_end:
            self._once()

    def _once(self) -> None:
        try:
            self._round.work()
            self._away = False
        except SecondsiteError as error:
            if not self._away:
                log.warning("%s: %s", self._round.waits, error)
            self._away = True
            self._round.on_trouble()
        except Exception:  # a thread's root: told, and tried again
            log.exception("%s", self._round.waits)
