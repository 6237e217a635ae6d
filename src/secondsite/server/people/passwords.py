"""Passwords: Argon2id, few at a time, and log-ins that fail counted so that guessing takes years."""

from __future__ import annotations

import threading
from collections import OrderedDict

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from secondsite.base.clock import Clock
from secondsite.server.api.errors import NotReady, TooManyRequests

# One takes 64 MiB and some tenths of a second of four lanes (RFC 9106, second recommended option): two at
# once leave cores to the rest of the server.
AT_ONCE_MAX = 2
WAIT_SECONDS_MAX = 10.0


class Passwords:
    """Makes and checks what is kept of passwords. Slow on purpose: call it in a worker thread."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        """hasher: a cheap one, for tests."""
        self._hasher = hasher or PasswordHasher()
        self._turn = threading.BoundedSemaphore(AT_ONCE_MAX)
        # checked in place of an unknown user's, so that the time taken does not tell who exists
        self._nobodys = self._hasher.hash("nobody has this password")

    def keep(self, password: str) -> str:
        """What to store."""
        with _Turn(self._turn):
            return self._hasher.hash(password)

    def matches(self, kept: str | None, password: str) -> bool:
        """Whether it is the password; None, for nobody's, takes as long and is False."""
        with _Turn(self._turn):
            try:
                self._hasher.verify(self._nobodys if kept is None else kept, password)
            except (VerificationError, InvalidHashError):
                return False
        return kept is not None

    def outdated(self, kept: str) -> bool:
        """Whether it was made with weaker parameters than today's."""
        return self._hasher.check_needs_rehash(kept)


class _Turn:
    def __init__(self, semaphore: threading.BoundedSemaphore) -> None:
        self._semaphore = semaphore

    def __enter__(self) -> None:
        if not self._semaphore.acquire(timeout=WAIT_SECONDS_MAX):
            raise NotReady(why="too many people log in at once")

    def __exit__(self, *_: object) -> None:
        self._semaphore.release()


class FailureLimit:
    """At most `failures_max` in `seconds`, by key; in memory, of the keys seen last.

    A try counts when it begins and is taken back when it succeeds, so that many at once count, too.
    """

    KEYS_MAX = 10_000  # some megabytes; who floods it with other keys makes the oldest forgotten

    def __init__(self, *, failures_max: int, seconds: float, clock: Clock) -> None:
        self._max = failures_max
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, list[float]] = OrderedDict()

    def begin(self, key: str) -> None:
        """Count a try. Raises TooManyRequests, which counts nothing."""
        now = self._clock.monotonic()
        with self._lock:
            tries = [at for at in self._tries.pop(key, []) if now - at < self._seconds]
            self._tries[key] = tries
            if len(tries) >= self._max:
                wait = int(self._seconds - (now - tries[0])) + 1
                raise TooManyRequests(what="Log-ins that failed", seconds=wait)
            tries.append(now)
            while len(self._tries) > self.KEYS_MAX:
                self._tries.popitem(last=False)

    def succeeded(self, key: str) -> None:
        """Forget the failures of a key: its password is known."""
        with self._lock:
            self._tries.pop(key, None)
