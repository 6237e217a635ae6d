"""When to try again: exponential waits with jitter, ended by an event."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.transfer.errors import TransferCancelled

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Waits grow from `first_seconds` by doubling up to `seconds_max`; each is cut at random, up to half."""

    first_seconds: float = 0.5
    # a link that comes back is used within this time; a target that is down is asked twice a minute
    seconds_max: float = 30.0

    def seconds(self, attempt: int, chance: random.Random) -> float:
        """How long to wait after failure number `attempt` (from 1)."""
        whole = min(self.seconds_max, self.first_seconds * 2.0 ** min(attempt - 1, 16))
        # jitter: many machines that lost the same link must not all come back in the same moment
        return whole * (0.5 + chance.random() / 2)


def retry(
    call: Callable[[], T],
    *,
    policy: RetryPolicy,
    clock: Clock,
    chance: random.Random,
    cancel: threading.Event,
    on_error: Callable[[SecondsiteError], None] | None = None,
    what: str = "a call",
) -> T:
    """Call until it succeeds or fails for good. Raises its last error, or TransferCancelled."""
    attempt = 0
    while True:
        if cancel.is_set():
            raise TransferCancelled(what=what)
        try:
            return call()
        except SecondsiteError as error:
            if not error.retryable:
                raise
            if on_error is not None:
                on_error(error)
        attempt += 1
        if clock.wait(cancel, policy.seconds(attempt, chance)):
            raise TransferCancelled(what=what)
