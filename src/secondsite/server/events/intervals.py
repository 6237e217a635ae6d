"""Whether an item's recovery point objective was met, from single looks at it: intervals. Pure.

A look says how old the newest point is. The age grows with time, so a look at which it is above the threshold
also says since when it is; when it is below again, it came there at some moment since the look before, and
the whole of that time counts as missed. Between two looks that are far apart nothing is known, except what
the age itself proves.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from secondsite.transfer.reports import REPORT_SECONDS

# Three reports missed in a row: one may be lost to a restart, two to a short cut of the line.
LOOK_GAP = timedelta(seconds=3 * REPORT_SECONDS + 5)


class Rpo(enum.Enum):
    """Of a time."""

    MET = "Met"
    MISSED = "Missed"


@dataclass(frozen=True)
class Interval:
    """A time of which it is known."""

    state: Rpo
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Look:
    """How old the newest point is at a moment; None: there is none, or no objective: nothing can be said."""

    at: datetime
    age_seconds: float | None
    threshold_seconds: float | None

    @property
    def interval(self) -> Interval | None:
        """What it says by itself."""
        if self.age_seconds is None or self.threshold_seconds is None:
            return None
        over = self.age_seconds - self.threshold_seconds
        if over <= 0:
            return Interval(Rpo.MET, self.at, self.at)
        return Interval(Rpo.MISSED, self.at - timedelta(seconds=over), self.at)


def follow(last: Interval | None, look: Look) -> tuple[Interval | None, Interval | None]:
    """What was the interval going on now is, and the one that goes on; the first None: it is the same one."""
    here = look.interval
    if last is None or here is None:
        return last, here
    if look.at < last.until - LOOK_GAP:  # the server's clock was put back: what it said before stays
        return last, here
    if look.at <= last.until:
        return None, last
    near = look.at - last.until <= LOOK_GAP
    if here.state is last.state:
        if near or here.since <= last.until:
            return None, replace(last, until=look.at)
        return last, here
    if here.state is Rpo.MISSED:
        begins = max(here.since, last.until)
        return (replace(last, until=begins) if near else last), replace(here, since=begins)
    return (replace(last, until=look.at) if near else last), here


@dataclass(frozen=True)
class Day:
    """Of one day (UTC). Seconds; hours_missed: clock hours in which the objective was missed at any time."""

    day: datetime
    met_seconds: float
    missed_seconds: float
    unknown_seconds: float
    hours_missed: int


def joined(intervals: Iterable[Interval], state: Rpo) -> list[Interval]:
    """Those of a state in order, each moment once: several servers may have looked at the same time."""
    found: list[Interval] = []
    for one in sorted((one for one in intervals if one.state is state), key=lambda one: one.since):
        if found and one.since <= found[-1].until:
            found[-1] = replace(found[-1], until=max(found[-1].until, one.until))
        else:
            found.append(one)
    return found


def days(intervals: Sequence[Interval], *, first: datetime, end: datetime) -> list[Day]:
    """Each day from that of `first` to that of `end`, what lies outside of the two left out.

    Where one look says met and another missed, it was missed; where none says anything, it is unknown.
    """
    missed, met = joined(intervals, Rpo.MISSED), joined(intervals, Rpo.MET)
    known = joined([*(replace(one, state=Rpo.MET) for one in missed), *met], Rpo.MET)
    found: list[Day] = []
    day = first.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    while day < end:
        begin, finish = max(day, first), min(day + timedelta(days=1), end)
        bad = _within(missed, begin, finish)
        good = _seconds(_within(known, begin, finish)) - _seconds(bad)
        hours = {hour for one in bad for hour in _hours(one)}
        unknown = (finish - begin).total_seconds() - good - _seconds(bad)
        found.append(
            Day(day, round(good, 3), round(_seconds(bad), 3), round(max(0.0, unknown), 3), len(hours))
        )
        day += timedelta(days=1)
    return found


def _within(intervals: Sequence[Interval], begin: datetime, finish: datetime) -> list[Interval]:
    return [
        replace(one, since=max(one.since, begin), until=min(one.until, finish))
        for one in intervals
        if one.since < finish and one.until > begin
    ]


def _seconds(intervals: Sequence[Interval]) -> float:
    return sum((one.until - one.since).total_seconds() for one in intervals)


def _hours(one: Interval) -> list[int]:
    last = (one.until - timedelta(microseconds=1)).hour if one.until > one.since else one.since.hour
    return list(range(one.since.hour, last + 1))
