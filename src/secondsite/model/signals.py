"""Signals of a point: what kind of data an instant changed, and when that looks like mass encryption. Pure.

A source measures `Signals` while it encodes; they travel in the proposal and stay in the point's record. The
`Detector` reads a machine's points in order and answers with an `Alert` when encrypted-looking data suddenly
replaces what was there. What it looks at, for each point:

* *scrambled* bytes: non-zero data that replaced non-zero data and that compression could not shrink by an
  eighth. New files, however random, replace nothing; databases and logs shrink;
* their share of everything rewritten, and the entropy of what was rewritten, against this machine's usual.

A point with much of both, far above the machine's median, is *hot*. Hot points within a quarter of an hour
are one *burst*; a burst that reaches the floor and twice the third-largest burst seen before is the alert.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from secondsite.base.units import KIB, MIB

ENTROPY_MAX = 8000  # thousandths of a bit per byte: random data has 8
BYTES_MAX = 2**62
SECONDS_MAX = 10.0 * 366 * 86400

# A block that does not lose an eighth of its size is as good as random for us: 16 random bytes in every 32
# (how some encrypt, for speed) leave 0.9 of a text.
HARD_ABOVE = 7 / 8

# The baseline: half an hour at 5 s, days where retention thinned. It is in memory, for each machine.
WINDOW_POINTS = 360
WARM_UP_POINTS = 24
BURSTS_KEPT = 32
# Hot points this close belong together; slower than the floor in this time is not seen.
BURST_SECONDS = 900.0
# 1/64 of the disks, at least 1 MiB, at most 64 MiB: what is encrypted when the alert comes.
FLOOR_PART = 64
FLOOR_BYTES_MIN, FLOOR_BYTES_MAX = 1 * MIB, 64 * MIB
# One hot point: an eighth of the smallest floor, 256 KiB for large disks.
HOT_PART = 256
HOT_BYTES_MIN = 128 * KIB
# Points just before a hot one that hold more than usual already belong to its burst: what began in their
# last second is no clean point.
WARM_BYTES_MIN = 16 * KIB
WARM_DEVIATIONS = 3.0
RECENT_POINTS = 64
# Deviations above the median (MAD scaled to a normal distribution's); ordinary load is within four.
HOT_DEVIATIONS = 8.0
MAD_SCALE = 1.4826
# Encryption replaces by nothing but scrambled data; mixed with a database's writes its share is smaller.
SHARE_MIN, SHARE_RISE_MIN = 0.15, 0.12
ENTROPY_HIGH, ENTROPY_RISE = 7000, 250
# Bursts that a machine has now and then (a nightly dump) are its habit, once there were three.
HABIT_BURSTS = 3
HABIT_FACTOR = 2.0
# A burst that replaced a part this large of the disks, or this much, is critical at once.
CRITICAL_BYTES = 1024 * MIB
CRITICAL_PART = 10


class Signals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an instant changed, in whole sub-blocks of 4 KiB; measured at the source, from plain data."""

    written_bytes: int = 0  # data that is not zeros, and is not what was there
    zeroed_bytes: int = 0  # data that became zeros
    rewritten_bytes: int = 0  # of the written: where data was before, not zeros
    assumed_bytes: int = 0  # of the rewritten: what was there is not known (after an unclean stop)
    packed_bytes: int = 0  # what compression made of the written
    hard_bytes: int = 0  # of the written: in blocks that compression did not shrink by an eighth
    scrambled_bytes: int = 0  # rewritten and hard
    entropy: int = 0  # of a sample of the written, thousandths of a bit per byte
    rewritten_entropy: int = 0  # the same of the rewritten
    seconds: float = 0.0  # since the instant before; 0: not known

    @property
    def ratio(self) -> float:
        """Compressed : raw of what was written; 1.0 when nothing was."""
        return self.packed_bytes / self.written_bytes if self.written_bytes else 1.0

    @property
    def rewritten_share(self) -> float:
        """Of what was written, 0 to 1: overwrites instead of new space."""
        return self.rewritten_bytes / self.written_bytes if self.written_bytes else 0.0

    @property
    def scrambled_share(self) -> float:
        """Of what was rewritten, 0 to 1."""
        return self.scrambled_bytes / self.rewritten_bytes if self.rewritten_bytes else 0.0


def signals_wrong(signals: Signals) -> str | None:
    """The first rule they break, in words; None when they keep them all."""
    for name in ("written_bytes", "zeroed_bytes", "packed_bytes"):
        if not 0 <= getattr(signals, name) <= BYTES_MAX:
            return f"its signals' {name} is {getattr(signals, name)}"
    parts = (
        ("rewritten_bytes", signals.written_bytes),
        ("hard_bytes", signals.written_bytes),
        ("assumed_bytes", signals.rewritten_bytes),
        ("scrambled_bytes", min(signals.rewritten_bytes, signals.hard_bytes)),
        ("entropy", ENTROPY_MAX),
        ("rewritten_entropy", ENTROPY_MAX),
    )
    for name, whole in parts:
        if not 0 <= getattr(signals, name) <= whole:
            return f"its signals' {name} is {getattr(signals, name)} of {whole}"
    if not 0.0 <= signals.seconds <= SECONDS_MAX:  # also not a number
        return f"its signals' interval is {signals.seconds} s"
    return None


@dataclass(frozen=True)
class Sample:
    """A point as the detector sees it."""

    number: int
    at: float  # seconds since any epoch, of the instant
    size_bytes: int  # of all disks
    whole: bool  # a first copy or resynchronisation: says nothing about what was written
    signals: Signals | None


@dataclass(frozen=True)
class Alert:
    """A burst of scrambled data began with the point `first`; the one before it is the last clean one."""

    first: int
    number: int  # the point at which it was certain
    points: int
    scrambled_bytes: int
    rewritten_bytes: int
    entropy: int
    ratio: float
    usual_bytes_per_second: float  # the baseline's median of scrambled bytes
    bytes_per_second: float
    usual_share: float
    share: float
    critical: bool
    assumed: bool

    @property
    def reason(self) -> str:
        """The numbers in a sentence part."""
        text = (
            f"{self.scrambled_bytes / MIB:.0f} MiB of data were replaced by data that does not compress "
            f"({self.share:.0%} of all that was rewritten, usually {self.usual_share:.0%}; entropy "
            f"{self.entropy / 1000:.2f} of 8 bits per byte, compressed to {self.ratio:.0%}), at "
            f"{self.bytes_per_second / MIB:.1f} MiB/s where {self.usual_bytes_per_second / MIB:.2f} is usual"
        )
        return text + ("; part of what it replaced is assumed, not known" if self.assumed else "")


@dataclass
class _Burst:
    """Hot points that belong together; only those within `BURST_SECONDS` of the newest count."""

    points: deque[Sample]  # bounded: an instant a second
    first: int  # its first point, also when that is longer ago
    alerted: bool = False
    largest: int = 0

    def add(self, sample: Sample) -> None:
        self.points.append(sample)
        while self.points[0].at < sample.at - BURST_SECONDS:
            self.points.popleft()
        self.largest = max(self.largest, self.scrambled)

    @property
    def scrambled(self) -> int:
        return sum(_of(sample).scrambled_bytes for sample in self.points)

    def rise(self) -> int:
        """The number of the point where it rose: hot points by chance long before are no beginning.

        As a cumulative sum finds a change: the point from which on most came beyond half of the mean rate.
        """
        end = self.points[-1].at
        usual = self.scrambled / 2 / max(end - self.points[0].at, _of(self.points[-1]).seconds, 1.0)
        since, best, index = 0.0, 0.0, len(self.points) - 1
        for place in range(len(self.points) - 1, -1, -1):
            sample = self.points[place]
            since += _of(sample).scrambled_bytes
            beyond = since - usual * (end - sample.at)
            if beyond > best:
                best, index = beyond, place
        return self.points[index].number if index else self.first


class Detector:
    """The newest points of one machine, judged one after the other. Not thread-safe; memory is bounded."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=WINDOW_POINTS)
        self._shares: deque[float] = deque(maxlen=WINDOW_POINTS)
        self._entropies: deque[int] = deque(maxlen=WINDOW_POINTS)
        self._seconds: deque[float] = deque(maxlen=WINDOW_POINTS)
        self._bursts: deque[int] = deque(maxlen=BURSTS_KEPT)
        self._burst: _Burst | None = None
        self._recent: deque[tuple[int, bool]] = deque(maxlen=RECENT_POINTS)  # number, more than usual

    @property
    def warm(self) -> bool:
        """Whether it has seen enough to say what is usual."""
        return len(self._rates) >= WARM_UP_POINTS

    @property
    def blind(self) -> bool:
        """Whether the machine's usual data is as good as random already (its guest encrypts its disks)."""
        return self.warm and self._usual_share() + SHARE_RISE_MIN >= 1.0

    def feed(self, sample: Sample) -> Alert | None:
        """Take the next point in; the alert it completes, if it does. Once a burst."""
        signals = sample.signals
        if signals is None or sample.whole:
            return None
        self._end_burst(sample)
        if not self.warm or not self._is_hot(sample, signals):
            more = signals.scrambled_bytes >= WARM_BYTES_MIN and self.warm
            self._recent.append((sample.number, more and self._is_above(signals, WARM_DEVIATIONS)))
            self._learn(signals)
            return None
        if self._burst is None:
            self._burst = _Burst(deque(maxlen=int(BURST_SECONDS)), sample.number)
        burst = self._burst
        burst.add(sample)
        self._recent.append((sample.number, True))
        if burst.alerted:
            self._learn(signals)  # what lasts becomes usual, so that a later burst is one again
            return None
        if burst.scrambled < max(floor_bytes(sample.size_bytes), HABIT_FACTOR * self._habit()):
            return None
        burst.alerted = True
        return self._alert(burst)

    def _is_hot(self, sample: Sample, signals: Signals) -> bool:
        least = max(HOT_BYTES_MIN, floor_bytes(sample.size_bytes) // HOT_PART)
        if signals.scrambled_bytes < least:
            return False
        if not self._is_above(signals, HOT_DEVIATIONS):
            return False
        if signals.scrambled_share < max(SHARE_MIN, self._usual_share() + SHARE_RISE_MIN):
            return False
        usual = statistics.median(self._entropies) if self._entropies else 0
        return signals.rewritten_entropy >= min(ENTROPY_HIGH, usual + ENTROPY_RISE)

    def _is_above(self, signals: Signals, deviations: float) -> bool:
        median = statistics.median(self._rates)
        spread = statistics.median(abs(rate - median) for rate in self._rates) * MAD_SCALE
        return self._rate(signals) > median + deviations * spread

    def _begin(self, number: int) -> int:
        """Where what rose at a point began: a little more than usual belongs to it."""
        for earlier, more in reversed(self._recent):
            if earlier < number:
                if not more:
                    break
                number = earlier
        return number

    def _rate(self, signals: Signals) -> float:
        seconds = signals.seconds or (statistics.median(self._seconds) if self._seconds else 1.0)
        return signals.scrambled_bytes / max(seconds, 0.001)

    def _usual_share(self) -> float:
        return statistics.median(self._shares) if len(self._shares) >= WARM_UP_POINTS // 2 else 0.0

    def _habit(self) -> int:
        """The third-largest burst of before: one or two are no habit."""
        largest = sorted(self._bursts, reverse=True)
        return largest[HABIT_BURSTS - 1] if len(largest) >= HABIT_BURSTS else 0

    def _learn(self, signals: Signals) -> None:
        self._rates.append(self._rate(signals))
        if signals.seconds:
            self._seconds.append(signals.seconds)
        if signals.rewritten_bytes >= 64 * KIB:  # less has no meaningful share
            self._shares.append(signals.scrambled_share)
            self._entropies.append(signals.rewritten_entropy)

    def _end_burst(self, sample: Sample) -> None:
        burst = self._burst
        if burst is not None and sample.at - burst.points[-1].at > BURST_SECONDS:
            self._bursts.append(burst.largest)
            self._burst = None

    def _alert(self, burst: _Burst) -> Alert:
        found = [_of(sample) for sample in burst.points]
        last = burst.points[-1]
        scrambled = sum(s.scrambled_bytes for s in found)
        rewritten = sum(s.rewritten_bytes for s in found)
        written = sum(s.written_bytes for s in found)
        seconds = sum(s.scrambled_bytes / self._rate(s) for s in found)
        return Alert(
            first=self._begin(burst.rise()),
            number=last.number,
            points=len(found),
            scrambled_bytes=scrambled,
            rewritten_bytes=rewritten,
            entropy=sum(s.rewritten_entropy * s.rewritten_bytes for s in found) // rewritten,
            ratio=sum(s.packed_bytes for s in found) / written,
            usual_bytes_per_second=statistics.median(self._rates),
            bytes_per_second=scrambled / seconds,
            usual_share=self._usual_share(),
            share=scrambled / rewritten,
            critical=scrambled >= min(CRITICAL_BYTES, last.size_bytes // CRITICAL_PART),
            assumed=any(s.assumed_bytes for s in found),
        )


def floor_bytes(size_bytes: int) -> int:
    """How much a burst must have scrambled on disks of this size."""
    return min(FLOOR_BYTES_MAX, max(FLOOR_BYTES_MIN, size_bytes // FLOOR_PART))


def _of(sample: Sample) -> Signals:
    assert sample.signals is not None, "only measured points are hot"
    return sample.signals


@dataclass(frozen=True)
class Episode:
    """An alert as it is kept: points from `first` to `until` are in doubt."""

    first: int
    until: int | None = None  # the newest point when it was dismissed; None: it stands


def last_clean(numbers: Sequence[int], episodes: Sequence[Episode]) -> int | None:
    """The newest of the ascending `numbers` before every standing episode; None when there is none.

    A dismissed episode was no attack: it puts nothing in doubt.
    """
    firsts = [episode.first for episode in episodes if episode.until is None]
    if not firsts:
        return numbers[-1] if numbers else None
    clean = [number for number in numbers if number < min(firsts)]
    return clean[-1] if clean else None
