"""Whether a move in order still loses nothing: the stop of its source, as the target's store has it.

It is asked for before the claim, and once more after it: `gateway.target.stops` says why that is enough.
"""

from __future__ import annotations

from secondsite.gateway.messages.failovererrors import NotStopped, PointNotLast
from secondsite.journal.chain import Head, Journal
from secondsite.journal.state import Stopped
from secondsite.model.points import Point


def require_stopped(journal: Journal, head: Head, point: Point) -> None:
    """Raise PointNotLast or NotStopped unless its source stands still since the point, the newest record."""
    if head.point != point:
        newest = head.point.number if head.point else "none"
        raise PointNotLast(machine=point.machine_name, point=point.number, newest=newest)
    if head.number != point.number or stopped_on(journal, point.number) is None:
        raise NotStopped(machine=point.machine_name, point=point.number)


def stopped_on(journal: Journal, number: int) -> Stopped | None:
    """The stop whose last point is the record `number`, whatever followed; None: none, or it is void."""
    known = journal.state().stopped
    if isinstance(known, Stopped) and not known.void and known.number == number:
        return known
    return None


def cancelled(name: str) -> str:
    """For people: what is not known of a machine whose stop was void when looked at after the claim."""
    return (
        f"The stop of {name} was cancelled while it was claimed: its source may have run until it hears of "
        f"the claim, and what it wrote since the point is not here."
    )
