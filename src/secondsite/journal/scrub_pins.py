"""The pins a scrub holds while it reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.journal import alive
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import PointUnknown
from secondsite.journal.scrub_types import PIN, Meter
from secondsite.journal.store import StoreUnavailable

HOLDER, HOLDER_OF_BASES, HOLDER_OF_READING = "scrub", "scrub-bases", "scrub-reading"

OnUnpinned = Callable[[StoreUnavailable], None]


@dataclass
class Pinned:
    """What is held. bases: to be closed once the bases were read."""

    bases: contextlib.ExitStack
    # The last record that stays readable: what is committed after the pin may be merged away, and its objects
    # deleted, while it is read. None: nothing could be pinned.
    last: int | None = None


@contextlib.contextmanager
def pinned(journal: Journal, clock: Clock, meter: Meter, on_unpinned: OnUnpinned | None) -> Iterator[Pinned]:
    """The newest point is pinned; the oldest until the bases were read."""
    held: dict[str, int] = {}

    living = contextlib.ExitStack()

    def pin(holder: str, number: int) -> None:
        if holder not in held:
            living.enter_context(alive.reader(journal.machine, holder))
        until = (clock.utc() + PIN).isoformat(timespec="microseconds")
        journal.pin(number, holder, "it is being verified", until)
        held[holder] = number

    def unpin(holder: str) -> None:
        held.pop(holder, None)
        journal.unpin(holder)

    def renew() -> None:
        for holder, number in held.items():
            # what cannot be renewed now is tried again, long before it ends
            with contextlib.suppress(StoreUnavailable):
                pin(holder, number)

    with living, contextlib.ExitStack() as stack, contextlib.ExitStack() as early:
        made = Pinned(early)
        try:
            head = journal.head().number  # a claim may follow the newest point: it is read, too
            listed = journal.points()
            if listed:
                # the newest first: until it is pinned, both may still leave
                pin(HOLDER, listed[-1].number)
                stack.callback(unpin, HOLDER)
                made.last = max(head, listed[-1].number)
                pin(HOLDER_OF_BASES, journal.points()[0].number)
                early.callback(unpin, HOLDER_OF_BASES)
        except StoreUnavailable as error:
            if on_unpinned is None:
                raise
            on_unpinned(error)
        except SecondsiteError:
            pass  # the log is damaged: nothing can be pinned, nor promoted; reading it says what is wrong
        meter.renew(renew)
        yield made


@contextlib.contextmanager
def pinned_for_reading(journal: Journal, number: int) -> Iterator[bool]:
    """Whether the point is still there; it then stays meanwhile, unless the store cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            journal.pin(number, HOLDER_OF_READING, "it is being verified")
            stack.callback(journal.unpin, HOLDER_OF_READING)
        except PointUnknown:
            yield False
            return
        except StoreUnavailable:
            pass  # `on_unpinned` was told
        yield True
