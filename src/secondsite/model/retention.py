"""Which recovery points stay: a policy as windows, decided from facts alone.

A policy is a row of windows, the shortest interval first. Counted back from the newest point, each window
reaches some way into the past and keeps one point in each of its intervals ("buckets", fixed in time, so that
the same points are kept whoever asks and whenever). What is older than the last window leaves.

A bucket is thinned once, when its last point has left the window before: a point in a half-filled bucket
would otherwise be merged again with every new one. So more points than asked for may be listed for the
length of one bucket, never fewer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

import msgspec

from secondsite.base.errors import InvalidInput
from secondsite.base.units import parse_seconds
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency

HOUR, DAY = 3600.0, 86400.0
_SECONDS_MAX = 10 * 366 * DAY
WINDOWS_MAX = 16
# After a gap this long (a link that was cut, a clock that jumped), and much longer than gaps are, nothing
# goes until points have come for as long again.
SETTLE_SECONDS = HOUR
_UNUSUAL = 4.0
_LATEST = re.compile(r"latest\+(\d{1,6})(?:/(\S{1,20}))?\Z")


class Window(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Back to `reach_seconds` before the newest point: one point each `every_seconds`, 0: every point."""

    reach_seconds: Annotated[float, msgspec.Meta(gt=0, le=_SECONDS_MAX)]
    every_seconds: Annotated[float, msgspec.Meta(ge=0, le=_SECONDS_MAX)] = 0.0


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Windows, from the newest part of the past to the oldest; none: only the latest point is kept."""

    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        """Raises InvalidInput when a window does not reach further, or is finer than the one before."""
        for newer, older in itertools.pairwise(self.windows):
            if older.reach_seconds <= newer.reach_seconds:
                why = f"a window of {older.reach_seconds:g} s follows one of {newer.reach_seconds:g} s"
                raise InvalidInput(what="the retention", why=why)
            if older.every_seconds < newer.every_seconds:
                why = f"points every {older.every_seconds:g} s follow points every {newer.every_seconds:g} s"
                raise InvalidInput(what="the retention", why=why)

    @classmethod
    def default(cls) -> RetentionPolicy:
        """Every point for two hours, one an hour for a day, one every two hours for a week."""
        return cls(
            windows=(
                Window(reach_seconds=2 * HOUR),
                Window(reach_seconds=DAY, every_seconds=HOUR),
                Window(reach_seconds=7 * DAY, every_seconds=2 * HOUR),
            )
        )

    @classmethod
    def additional_points(cls, count: int, *, every_seconds: float = HOUR) -> RetentionPolicy:
        """The latest point and `count` more, one in each interval; 0: only the latest."""
        if count < 0:
            raise InvalidInput(what="the number of additional points", why=f"{count} is less than none")
        if not count:
            return cls(windows=())
        return cls(windows=(Window(reach_seconds=count * every_seconds, every_seconds=every_seconds),))

    @classmethod
    def parse(cls, text: str) -> RetentionPolicy:
        """As people write it: ``all:2h,1h:1d,2h:7d``, ``latest``, or ``latest+4`` (four more, one an hour).

        Raises InvalidInput.
        """
        what = f"the retention {text[:80]!r}"
        if text.strip() == "latest":
            return cls.additional_points(0)
        more = _LATEST.match(text.strip())
        if more is not None:
            return cls.additional_points(int(more[1]), every_seconds=parse_seconds(more[2] or "1h"))
        windows: list[Window] = []
        for part in text.split(","):
            every, colon, reach = part.strip().partition(":")
            if not colon or len(windows) == WINDOWS_MAX:
                why = "it is not latest, latest+N, or intervals and how long they hold, as in all:2h,1h:1d"
                raise InvalidInput(what=what, why=why)
            seconds = parse_seconds(reach)
            if not 0 < seconds <= _SECONDS_MAX:
                raise InvalidInput(what=what, why="a window reaches from a moment to ten years")
            windows.append(
                Window(reach_seconds=seconds, every_seconds=0.0 if every == "all" else parse_seconds(every))
            )
        return cls(windows=tuple(windows))

    @property
    def reach_seconds(self) -> float:
        """How far back it reaches."""
        return self.windows[-1].reach_seconds if self.windows else 0.0

    def describe(self) -> str:
        """For people: ``every point for 2 h, one every 1 h for 1 d, one every 2 h for 7 d``."""
        if not self.windows:
            return "only the latest point"
        return ", ".join(
            f"{'every point' if not w.every_seconds else f'one every {in_words(w.every_seconds)}'}"
            f" for {in_words(w.reach_seconds)}"
            for w in self.windows
        )


def in_words(seconds: float) -> str:
    """``7200`` -> ``2 h``; whole units only, else seconds."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (60.0, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


@dataclass(frozen=True)
class Served:
    """What a server wants to be kept of a machine. by: which of its policies says so, for people."""

    policy: RetentionPolicy
    by: str


def none_served(_machine: MachineId) -> Served | None:
    """Without a server."""
    return None


@dataclass(frozen=True)
class Policies:
    """What is kept of which machine: as a server says, else as the gateway's configuration does."""

    default: RetentionPolicy = field(default_factory=RetentionPolicy.default)
    machines: dict[MachineId, RetentionPolicy] = field(default_factory=dict)
    served: Callable[[MachineId], Served | None] = none_served  # as of now

    def of(self, machine: MachineId) -> RetentionPolicy:
        """The machine's policy."""
        served = self.served(machine)
        return served.policy if served is not None else self.machines.get(machine, self.default)

    def source(self, machine: MachineId) -> str:
        """Who says so, for people."""
        served = self.served(machine)
        return served.by if served is not None else "this gateway's configuration"


@dataclass(frozen=True)
class PointFacts:
    """What the decision looks at."""

    number: int
    at: float  # seconds since the epoch, by the clock of the site that keeps it
    consistency: Consistency = Consistency.CRASH


@dataclass(frozen=True)
class Group:
    """The points after the kept point `after` up to the kept point `last` become one."""

    after: int
    last: int
    dropped: tuple[int, ...]
    reason: str  # for people: which rule of the policy

    @property
    def points(self) -> int:
        """How many it is made of."""
        return len(self.dropped) + 1


@dataclass(frozen=True)
class Decision:
    """What a policy asks for, given the points there are."""

    groups: tuple[Group, ...]  # to merge, the oldest first
    floor: int | None  # the oldest point to keep: what is before goes into the bases. None: nothing does
    kept: tuple[int, ...]  # points that stay listed
    waiting: tuple[int, ...]  # pinned points the policy would drop
    settling: bool = False  # nothing goes for now: points came again only a short while ago


def decide(
    points: Sequence[PointFacts],
    policy: RetentionPolicy,
    *,
    pinned: Collection[int] = (),
    preferred: Collection[int] = (),
    now: float | None = None,
) -> Decision:
    """What to merge and what leaves.

    points: those listed, in order of number. Their times need not be in order (clocks jump): a point is
        never taken for younger than one before it.
    pinned: numbers that stay whatever the policy says. preferred: verified points, kept before others.
    now: ages are counted from the newest point, so that a machine whose replication stands still keeps
        what it has; never from later than `now` (points of a clock that was ahead).
    """
    if not points:
        return Decision((), None, (), ())
    times = list(itertools.accumulate((point.at for point in points), max))
    if _is_settling(times):
        return Decision((), None, tuple(point.number for point in points), (), settling=True)
    newest = times[-1] if now is None else min(now, times[-1])
    edges = _edges(policy, newest)
    keep = {points[-1].number}
    reasons: dict[int, str] = {}  # why a point that is not kept goes
    buckets: dict[tuple[int, int], list[PointFacts]] = {}
    for point, time in zip(points[:-1], times[:-1], strict=True):
        window = next((i for i, (edge, _) in enumerate(edges) if time >= edge), None)
        if window is None:
            reasons[point.number] = (
                f"older than {in_words(policy.reach_seconds)}" if edges else "only the latest"
            )
        elif not edges[window][1]:
            keep.add(point.number)
        else:
            buckets.setdefault((window, int(time // edges[window][1])), []).append(point)
    for (window, _), members in buckets.items():
        keep.add(_choose(members, preferred))
        text = f"one every {in_words(edges[window][1])}"
        reasons.update({point.number: text for point in members})
    waiting = tuple(sorted(set(pinned) & set(reasons) - keep))
    keep.update(waiting)
    floor = next(point.number for point in points if point.number in keep)
    return Decision(
        groups=tuple(_groups(points, keep, reasons, floor)),
        floor=floor if floor != points[0].number else None,
        kept=tuple(sorted(keep)),
        waiting=waiting,
    )


def _is_settling(times: Sequence[float]) -> bool:
    """Whether the newest points followed an unusual gap only a short while ago."""
    gaps = [after - before for before, after in itertools.pairwise(times[-100:])]
    unusual = max(SETTLE_SECONDS, _UNUSUAL * median(gaps)) if gaps else SETTLE_SECONDS
    for before, after in zip(reversed(times[:-1]), reversed(times), strict=False):
        if times[-1] - after >= SETTLE_SECONDS:
            return False
        if after - before > unusual:
            return True
    return False


def _edges(policy: RetentionPolicy, newest: float) -> list[tuple[float, float]]:
    """(the oldest time of each window, its interval), whole buckets only.

    A window begins at the bucket border of the window after it, so that a bucket is never cut in two: what
    leaves a window fills whole buckets of the next.
    """
    found = []
    for index, window in enumerate(policy.windows):
        edge = newest - window.reach_seconds
        coarser = (
            policy.windows[index + 1].every_seconds
            if index + 1 < len(policy.windows)
            else window.every_seconds
        )
        if coarser:
            edge = edge // coarser * coarser
        found.append((edge, window.every_seconds))
    return found


def _choose(members: Sequence[PointFacts], preferred: Collection[int]) -> int:
    """The one of a bucket that stays: application-consistent, then verified, then the youngest."""
    best = max(
        members,
        key=lambda p: (p.consistency is Consistency.APPLICATION, p.number in preferred, p.number),
    )
    return best.number


def _groups(
    points: Sequence[PointFacts], keep: Collection[int], reasons: dict[int, str], floor: int
) -> Iterable[Group]:
    """What was dropped between two kept points, from the floor on."""
    after, dropped = floor, list[int]()
    for point in points:
        if point.number <= floor:
            continue
        if point.number not in keep:
            dropped.append(point.number)
            continue
        if dropped:
            yield Group(after, point.number, tuple(dropped), reasons[dropped[-1]])
        after, dropped = point.number, []
