"""The target's half of the signals: each new point is judged, and a burst of scrambled data is told at once.

An alert is an event, an episode in the store (`journal.episodes`) and a hold on the last clean point, so that
the retention does not take it away while people are still asleep. A restart reads the newest points again: an
alert whose episode is not in the store yet (a kill between the commit and us) is raised then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.messages.gateway import DismissRequest, Doubt
from secondsite.gateway.target.holds import PREFIX
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import PointUnknown
from secondsite.journal.episodes import (
    Dismissal,
    EpisodeRecord,
    KeptEpisode,
    keep_dismissal,
    keep_episode,
    read_episodes,
    verdicts,
)
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.points import Point
from secondsite.model.signals import BURST_SECONDS, WINDOW_POINTS, Alert, Detector, Sample, last_clean

AFTER_HOLD = mark("signals.after-hold")
AFTER_EPISODE = mark("signals.after-episode")
AFTER_DISMISSAL = mark("signals.after-dismissal")
# Whose holds are ours: they go when the alert is dismissed.
CLEAN_PREFIX = f"{PREFIX}last-clean-"

# People find out on Monday, or after a holiday. Then the hold ends and the retention decides again.
HOLD_DAYS = 14


class NothingInDoubt(SecondsiteError):
    """There is no standing episode."""

    code = "signals.nothing-in-doubt"
    outcome = Outcome.NOT_FOUND
    happened = "No point of {machine} is in doubt."
    cause = "Nothing suspicious was found, or it was dismissed already."
    action = "See `secondsite points list {machine}`."


@dataclass(frozen=True)
class _Raised:
    """An alert to be kept and told. `again`: an earlier process kept it, and may not have told it."""

    alert: Alert
    again: bool = False


@dataclass
class _Watched:
    """One machine."""

    detector: Detector = field(default_factory=Detector)
    number: int = 0  # the newest point judged
    blind: bool = False
    waiting: list[_Raised] = field(default_factory=list)  # the store did not take them yet


class SignalsWatch:
    """Judges points as they are committed. Thread-safe."""

    def __init__(self, *, clock: Clock, events: EventSink) -> None:
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._machines: dict[MachineId, _Watched] = {}

    def forget(self, machine: MachineId) -> None:
        """All of it was deleted."""
        with self._lock:
            self._machines.pop(machine, None)

    def committed(self, journal: Journal, point: Point) -> None:
        """A point is there; never raises: a point that cannot be judged is a point all the same."""
        with self._lock:
            try:
                watched = self._machines.get(journal.machine)
                if watched is None:
                    watched = self._machines[journal.machine] = self._begin(journal, point)
                if point.number > watched.number:
                    self._judge(watched, point)
                while watched.waiting:
                    self._raise(journal, watched.waiting[0])
                    watched.waiting.pop(0)
            except SecondsiteError as error:
                text = f"the signals of {point.machine_name} cannot be judged or kept: {error}"
                self._events.emit("signals.failed", Severity.WARNING, text, machine=journal.machine)

    def _begin(self, journal: Journal, newest: Point) -> _Watched:
        """Read what was before, and end what a kill cut off.

        An alert without an episode is raised now; one with an episode is told again, since events are not
        kept; the hold of one that was dismissed goes.
        """
        watched = _Watched()
        kept = read_episodes(journal)
        held = {pin.holder for pin in journal.state().pins}
        for episode in kept:
            if episode.dismissed is not None and hold_of(episode.found.first) in held:
                journal.unpin(hold_of(episode.found.first))
        before = [p for p in journal.points()[-WINDOW_POINTS:] if p.number < newest.number]
        for point in before:
            alert = watched.detector.feed(sample_of(point))
            if alert is None:
                continue
            known = [e for e in kept if e.found.first <= alert.number <= e.found.number]
            if any(e.dismissed is not None for e in known):
                continue
            # of older ones the points between may be thinned out: they were judged when they were whole
            if sample_of(newest).at - sample_of(point).at <= BURST_SECONDS:
                watched.waiting.append(_Raised(alert, again=bool(known)))
        watched.number = before[-1].number if before else 0
        return watched

    def _judge(self, watched: _Watched, point: Point) -> None:
        watched.number = point.number
        alert = watched.detector.feed(sample_of(point))
        if alert is not None:
            watched.waiting.append(_Raised(alert))
        blind = watched.detector.blind
        if blind and not watched.blind:
            text = (
                f"what {point.machine_name} usually writes is as good as random (its disks may be encrypted "
                "inside the machine): encryption by somebody else cannot be told from it"
            )
            self._events.emit("signals.blind", Severity.INFORMATION, text, machine=point.machine)
        watched.blind = blind

    def _raise(self, journal: Journal, raised: _Raised) -> None:
        """Hold, keep, tell, in this order: a kill between two leaves what the next start does again."""
        alert, points = raised.alert, journal.points()
        clean = next((p for p in reversed(points) if p.number < alert.first), None)
        name = points[-1].machine_name
        record = EpisodeRecord(
            machine=journal.machine,
            first=alert.first,
            number=alert.number,
            clean=clean.number if clean else None,
            clean_at=clean.given_at if clean else None,
            found_at=self._now(),
            reason=alert.reason,
            critical=alert.critical,
            scrambled_bytes=alert.scrambled_bytes,
        )
        if not raised.again:
            if any(kept.found.first == alert.first for kept in read_episodes(journal)):
                return
            if clean is not None:
                self._hold(journal, record, clean.number)
            crash_point(AFTER_HOLD)
            if not keep_episode(journal, record):
                return
            crash_point(AFTER_EPISODE)
        offered = (
            f"the newest point before it is {clean.number} ({clean.given_at}), held for {HOLD_DAYS} days"
            if clean
            else "no point before it is kept"
        )
        self._events.emit(
            "signals.suspicious",
            Severity.CRITICAL if alert.critical else Severity.WARNING,
            f"{name} may be being encrypted: from point {alert.first} on {alert.reason}; {offered}",
            machine=journal.machine,
            first=alert.first,
            number=alert.number,
            clean=clean.number if clean else 0,
            scrambled_bytes=alert.scrambled_bytes,
            entropy=alert.entropy / 1000,
            ratio=round(alert.ratio, 3),
            share=round(alert.share, 3),
            bytes_per_second=round(alert.bytes_per_second),
            usual_bytes_per_second=round(alert.usual_bytes_per_second),
        )

    def _hold(self, journal: Journal, record: EpisodeRecord, number: int) -> None:
        until = (self._clock.utc() + timedelta(days=HOLD_DAYS)).isoformat(timespec="microseconds")
        reason = f"the last clean point: what follows from {record.first} on is in doubt"
        try:
            journal.pin(number, hold_of(record.first), reason, until, reads=False)
        except PointUnknown:
            text = f"the last clean point {number} went before it could be held"
            self._events.emit("signals.clean-point-gone", Severity.CRITICAL, text, machine=journal.machine)

    def dismiss(self, journal: Journal, request: DismissRequest) -> Doubt:
        """A person found the points sound: nothing is in doubt any more. Returns what was.

        Raises:
            NothingInDoubt.
        """
        points = journal.points()
        before = describe_doubts(doubts_of(journal, points))
        with self._lock:
            standing = [episode for episode in read_episodes(journal) if episode.dismissed is None]
            if not standing or not points or before is None:
                raise NothingInDoubt(machine=points[-1].machine_name if points else journal.machine)
            for episode in standing:
                first = episode.found.first
                until = points[-1].number
                keep_dismissal(
                    journal,
                    Dismissal(
                        machine=journal.machine,
                        first=first,
                        until=until,
                        note=request.note,
                        by=request.by,
                        at=self._now(),
                    ),
                )
                crash_point(AFTER_DISMISSAL)
                journal.unpin(hold_of(first))
        text = f"points of {points[-1].machine_name} from {before.first} on are sound: {request.note}"
        self._events.emit("signals.dismissed", Severity.INFORMATION, text, machine=journal.machine)
        return before

    def _now(self) -> str:
        return self._clock.utc().isoformat(timespec="microseconds")


def hold_of(first: int) -> str:
    """The holder of the last clean point before an episode; `points release` knows it as a hold."""
    return f"{CLEAN_PREFIX}{first}"


def sample_of(point: Point) -> Sample:
    """A point as the detector sees it."""
    return Sample(
        number=point.number,
        at=parse_time(point.given_at).timestamp(),
        size_bytes=sum(disk.size_bytes for disk in point.disks),
        whole=point.parent_checkpoint is None,
        signals=point.measured,
    )


@dataclass(frozen=True)
class Doubts:
    """What listings say of a machine's points."""

    standing: tuple[KeptEpisode, ...] = ()
    clean: int | None = None  # the last clean point; None: none is, or nothing is in doubt

    @property
    def first(self) -> int | None:
        """The first point in doubt."""
        return min((episode.found.first for episode in self.standing), default=None)

    def trust(self, number: int) -> str:
        """``LastClean``, ``InDoubt`` or nothing to say."""
        if number == self.clean:
            return "LastClean"
        return "InDoubt" if self.first is not None and number >= self.first else ""


def describe_doubts(doubts: Doubts) -> Doubt | None:
    """The oldest standing episode for listings; None when nothing is in doubt."""
    if not doubts.standing:
        return None
    found = doubts.standing[0].found
    return Doubt(
        first=found.first,
        found_at=found.found_at,
        reason=found.reason,
        critical=any(episode.found.critical for episode in doubts.standing),
        clean=doubts.clean,
    )


def doubts_of(journal: Journal, points: Sequence[Point]) -> Doubts:
    """Read a machine's episodes. Raises what a damaged one raises."""
    kept = read_episodes(journal)
    standing = tuple(episode for episode in kept if episode.dismissed is None)
    numbers = [point.number for point in points]
    return Doubts(standing, last_clean(numbers, verdicts(kept)) if standing else None)
