"""Which recovery point a person means: pure, over the list of points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.model.points import Consistency
from secondsite.model.signals import Episode, last_clean

LATEST = "latest"
LATEST_PROCESSED = "latest-processed"
LATEST_APPLICATION_CONSISTENT = "latest-application-consistent"
LAST_CLEAN = "last-clean"


class NoSuchPoint(SecondsiteError):
    """No point fits."""

    code = "point.not-found"
    outcome = Outcome.NOT_FOUND
    happened = "{machine} has no recovery point {wanted}; {known}."
    cause = "It was never made, or retention removed it."
    action = "List what there is with `secondsite points list {machine}`."


class Choosable(Protocol):
    """What is looked at; `journal` points and summaries of them both fit."""

    @property
    def number(self) -> int:
        """Its place in the order of points."""

    @property
    def given_at(self) -> str:
        """The instant it holds."""

    @property
    def consistency(self) -> Consistency:
        """What it promises."""


_P = TypeVar("_P", bound=Choosable)


def choose_point(
    points: Sequence[_P],
    wanted: str,
    *,
    machine: str,
    episodes: Callable[[], Sequence[Episode]] | None = None,
) -> _P:
    """The point `wanted` means.

    Args:
        points: in ascending order of number.
        wanted: ``latest`` or ``latest-processed`` (every committed point is processed: a point exists only
            once all of it is durable here, so both mean the newest), ``latest-application-consistent``,
            ``last-clean`` (the newest before everything in doubt; where nothing is, the newest), a number, or
            an RFC 3339 time: the newest point whose instant is not after it. A time without a zone is UTC.
        machine: its name, for errors.
        episodes: what was found suspicious; asked for ``last-clean`` only, which is refused without it.

    Raises:
        NoSuchPoint: there is none; says what there is.
        InvalidInput: `wanted` is none of these.
    """
    if wanted in (LATEST, LATEST_PROCESSED):
        fitting = list(points)
    elif wanted == LATEST_APPLICATION_CONSISTENT:
        fitting = [point for point in points if point.consistency is Consistency.APPLICATION]
    elif wanted == LAST_CLEAN and episodes is not None:
        clean = last_clean([point.number for point in points], episodes())
        fitting = [point for point in points if point.number == clean]
    elif wanted.isascii() and wanted.isdecimal() and len(wanted) <= 16:
        fitting = [point for point in points if point.number == int(wanted)]
    else:
        until = parse_time(wanted)
        fitting = [point for point in points if parse_time(point.given_at) <= until]
    if not fitting:
        raise NoSuchPoint(machine=machine, wanted=wanted, known=_known(points))
    return fitting[-1]


def parse_time(text: str) -> datetime:
    """An RFC 3339 time, timezone-aware; without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        why = "it is not latest, latest-application-consistent, last-clean, a number or a time"
        raise InvalidInput(what=f"the point {text[:80]!r}", why=why) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _known(points: Sequence[Choosable]) -> str:
    if not points:
        return "there are none yet"
    first, last = points[0], points[-1]
    return f"there are {first.number} ({first.given_at}) to {last.number} ({last.given_at})"
