"""Work on several threads whose results come in order, a few ahead and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

# Each holds at most a segment, 17 MiB, and what it unpacks one block at a time.
AHEAD = 4


def in_order(
    pool: Executor, work: Callable[[_In], _Out], items: Iterable[_In]
) -> Generator[_Out, None, None]:
    """``map`` over `pool` with at most AHEAD items begun; an error ends it, what was begun is waited for."""
    begun: deque[Future[_Out]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= AHEAD:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
        for future in begun:
            if not future.cancelled():
                future.exception()
