"""Readers of this process whose pins count while they live, whatever the time of day says.

The pin of a verification or of an answer to the source has an end by the clock, so that one whose process was
killed holds its point for hours and not for ever. A clock that jumps forward must not end it under a reader:
the same gateway promotes and merges, so what reads here is known here, without any clock. (Another process
beside it on the same store goes by its own clock, and renewing keeps ends days away.)
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from secondsite.model.ids import MachineId

_lock = threading.Lock()
_readers: Counter[tuple[MachineId, str]] = Counter()


@contextlib.contextmanager
def reader(machine: MachineId, holder: str) -> Iterator[None]:
    """Begin before the pin is made, end after it is taken away or left to end by itself."""
    with _lock:
        _readers[machine, holder] += 1
    try:
        yield
    finally:
        with _lock:
            _readers[machine, holder] -= 1
            if not _readers[machine, holder]:
                del _readers[machine, holder]


def reads(machine: MachineId, holder: str) -> bool:
    """Whether a reader of this process has the holder's pin."""
    with _lock:
        return (machine, holder) in _readers
