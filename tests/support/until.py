"""Waiting for a condition of things that run in other threads or processes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from secondsite.base.clock import SystemClock

PAUSE_SECONDS = (0.02, 0.1)


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until it holds; fails, naming what was waited for.

    What is dear to ask is asked less often: through a server of this process, asking every 20 ms took more of
    the processor than what was waited for, and held that up.
    """
    clock, never = SystemClock(), threading.Event()
    end = clock.monotonic() + seconds
    while True:
        asked = clock.monotonic()
        if condition():
            return
        now = clock.monotonic()
        assert now < end, f"{what} did not happen"
        clock.wait(never, min(max(PAUSE_SECONDS[0], 3 * (now - asked)), PAUSE_SECONDS[1]))
