"""Failovers that were called off before they began: their requests may still be on their way.

Kept in memory: a request under way ends with the process that carries it out.
"""

from __future__ import annotations

import collections
import threading

from secondsite.base.errors import Outcome, SecondsiteError

# As many requests as one job after the other can have on its way; each has been asked for by a server.
KEPT_MAX = 1000


class FailoverCalledOff(SecondsiteError):
    """The request came after its end."""

    code = "failover.called-off"
    outcome = Outcome.REFUSED
    happened = "The failover {id} was called off before it began; nothing was changed."
    cause = "Who asked for it has taken that back; this request was on its way."
    action = "Nothing; where it is still wanted, begin another one."


class CalledOff:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations: collections.OrderedDict[str, None] = collections.OrderedDict()

    def add(self, operation: str) -> None:
        """It is never to begin."""
        with self._lock:
            self._operations[operation] = None
            while len(self._operations) > KEPT_MAX:
                self._operations.popitem(last=False)

    def refuse(self, operation: str) -> None:
        """Raise FailoverCalledOff for one that was added."""
        with self._lock:
            if operation in self._operations:
                raise FailoverCalledOff(id=operation)
