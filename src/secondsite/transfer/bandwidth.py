"""A token bucket: how fast bytes may leave a site."""

from __future__ import annotations

import threading
from typing import Protocol

from secondsite.base.clock import Clock
from secondsite.model.ids import MachineId
from secondsite.transfer.errors import TransferCancelled

# What may leave at once after a pause: half a second's worth, so that a limit is a limit within any second.
BURST_SECONDS = 0.5


class TokenBucket:
    """Shared by all connections of a link; `bytes_per_second` None: no limit. Thread-safe."""

    def __init__(self, bytes_per_second: float | None, clock: Clock) -> None:
        assert bytes_per_second is None or bytes_per_second > 0
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._level = 0.0  # below zero: bytes let through that are still to be waited for
        self._filled_at = clock.monotonic()

    def set_rate(self, bytes_per_second: float | None) -> None:
        """Change the limit; waits under way end at the old one."""
        assert bytes_per_second is None or bytes_per_second > 0
        with self._lock:
            self._rate = bytes_per_second
            self._level = 0.0
            self._filled_at = self._clock.monotonic()

    def seconds_left(self) -> float:
        """Until what was let through is made up for: more may leave at once when it is 0."""
        with self._lock:
            if self._rate is None:
                return 0.0
            return max(0.0, -self._level / self._rate - (self._clock.monotonic() - self._filled_at))

    def take(self, count: int, cancel: threading.Event) -> None:
        """Wait until `count` bytes may leave. Raises TransferCancelled."""
        with self._lock:
            if self._rate is None:
                return
            now = self._clock.monotonic()
            self._level = min(self._level + (now - self._filled_at) * self._rate, self._rate * BURST_SECONDS)
            self._filled_at = now
            self._level -= count
            seconds = max(0.0, -self._level / self._rate)
        if seconds and self._clock.wait(cancel, seconds):
            raise TransferCancelled(what="bytes waiting for the bandwidth limit")


class MachineLimits(Protocol):
    """Limits of single machines, beside that of the whole gateway."""

    def of(self, machine: MachineId) -> TokenBucket | None:
        """What its bytes are taken from as well; None: it has no limit now."""


class NoLimits:
    """No machine has one."""

    def of(self, machine: MachineId) -> TokenBucket | None:  # noqa: ARG002
        """None."""
        return None
