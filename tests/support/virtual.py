"""A clock for whole gateways and servers with all their threads: time passes when the test says so."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

from secondsite.base.clock import SystemClock

# While time flows it advances by so much, each so many seconds outside: twenty-five times as fast.
FLOW_SECONDS, EACH_SECONDS = 0.25, 0.01
# What waits is woken when its time may have come; this only bounds what a lost notice would cost.
LOOK_SECONDS = 1.0


class VirtualClock:
    """Implements `Clock`. A wait ends when its time was reached, or what it waits for happened."""

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self._waiting: Counter[threading.Condition] = Counter()

    def monotonic(self) -> float:
        """See `Clock`."""
        with self._lock:
            return self._elapsed

    def utc(self) -> datetime:
        """See `Clock`."""
        return self._start + timedelta(seconds=self.monotonic())

    def advance(self, seconds: float) -> None:
        """At once."""
        with self._lock:
            self._elapsed += seconds
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """See `Clock`."""
        condition: threading.Condition = event._cond  # type: ignore[attr-defined]  # to be woken without being set
        end = self.monotonic() + seconds
        with condition, self._woken(condition):
            while not event.is_set() and self.monotonic() < end:
                condition.wait(LOOK_SECONDS)
        return event.is_set()

    def wait_on(self, condition: threading.Condition, seconds: float) -> None:
        """See `Clock`: early, as conditions may. Waited on again here, a notice could be lost."""
        end = self.monotonic() + seconds
        with self._woken(condition):
            if self.monotonic() < end:
                condition.wait(LOOK_SECONDS)

    @contextlib.contextmanager
    def _woken(self, condition: threading.Condition) -> Iterator[None]:
        with self._lock:
            self._waiting[condition] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[condition] -= 1
                if not self._waiting[condition]:
                    del self._waiting[condition]

    @contextlib.contextmanager
    def flowing(self, *, hurry: int = 1) -> Iterator[None]:
        """Time passes by itself meanwhile: for what takes turns with others until it is through.

        hurry: so many times as fast as it usually does.
        """
        done = threading.Event()

        def flow() -> None:
            real = SystemClock()
            while not real.wait(done, EACH_SECONDS):
                self.advance(FLOW_SECONDS * hurry)

        thread = threading.Thread(target=flow, name="time")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
