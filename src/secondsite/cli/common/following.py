"""What commands share that wait for work which goes on without them: how they end before it does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from secondsite.base.errors import Outcome, SecondsiteError


class WentElsewhere(SecondsiteError):
    """What a command waited for will not come any more."""

    code = "follow.went-elsewhere"
    outcome = Outcome.REFUSED
    happened = "{what} is {state}: this command waited for something else."
    cause = "Somebody else decided about it meanwhile."
    action = "Look at it with `{look}`."


@contextmanager
def goes_on(what: str, look: str) -> Iterator[None]:
    """Inside, Ctrl-C ends the command and not the work, which is said with how to look at that."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nonly this command ended: {what} goes on; look at it with `{look}`", file=sys.stderr)
        raise
