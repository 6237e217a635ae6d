"""Marks at which a test kills the process: ``SECONDSITE_CRASH_AT=name`` or ``name:N`` for the N-th pass.

``name@within`` is a pass of the mark within one of the many things that come by it: a step of a job. A mark
costs one dictionary look-up when the variable is unset. A test enumerates the marks with `MARKS`; one never
hit fails the suite (shared rule: every crash point is tested by kill -9 at it).
"""

from __future__ import annotations

import os
import signal
import threading

# Every mark of the code base. Adding one here without a test that reaches it fails tests/fault.
MARKS: set[str] = set()

_lock = threading.Lock()
_passes: dict[str, int] = {}
_spec = os.environ.get("SECONDSITE_CRASH_AT", "")
_target, _, _count = _spec.partition(":")


def mark(name: str) -> str:
    """Register `name` at import time and return it, so that a mark is a constant of its module."""
    MARKS.add(name)
    return name


def crash_point(name: str, within: str = "") -> None:
    """Die by SIGKILL here when the environment asks for it; otherwise do nothing. within: see the module."""
    if name != _target and (not within or f"{name}@{within}" != _target):
        return
    with _lock:
        _passes[name] = _passes.get(name, 0) + 1
        if _passes[name] < int(_count or 1):
            return
    os.kill(os.getpid(), signal.SIGKILL)
