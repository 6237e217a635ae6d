"""A token bucket: how fast bytes may leave a site."""

from __future__ import annotations

import threading

from secondsite.base.clock import Clock
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
