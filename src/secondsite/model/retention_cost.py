"""What a policy costs: the journal's size once every window is full, from what the journal itself measured.

Two things are measured. *What arrives*: stored bytes a second, over all time the journal can still tell of.
*What stays of it* when the points of a bucket become one: blocks written again and again are kept once, so
the share falls as buckets grow. It is known for the lengths merges were made of; a longer bucket is counted
with the share of the longest one measured, and where none was, everything is counted. Both err on the side
of too much room.

A bucket is thinned once its last point left the window before, so each window holds up to one bucket of the
next one more, unthinned; that is counted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from secondsite.model.retention import RetentionPolicy

# How much longer than a bucket a merged piece may be and still tell of it: times of points are uneven.
_ABOUT = 1.5


@dataclass(frozen=True)
class Piece:
    """What one listed point holds: the changes of some time, since the point listed before it."""

    seconds: float
    stored_bytes: int  # now
    arrived_bytes: int | None  # as the source sent it; None: unknown
    merged: bool  # it stands for several points


@dataclass(frozen=True)
class Churn:
    """What a journal measured."""

    seconds: float  # over how much time
    stored_bytes_per_second: float  # of what arrives
    point_seconds: float  # between points as they arrive
    merged: tuple[Piece, ...] = ()  # that tell what merging leaves

    @property
    def stored_bytes_per_day(self) -> float:
        """What arrives in a day."""
        return self.stored_bytes_per_second * 86400


@dataclass(frozen=True)
class Share:
    """What stays of what arrives, in one window."""

    every_seconds: float
    share: float  # 0 to 1
    measured_seconds: float | None  # the length of the merged pieces it was measured on; None: assumed


@dataclass(frozen=True)
class WindowCost:
    """What one window of a policy lists at most, beside the latest point."""

    every_seconds: float  # 0: every point
    reach_seconds: float
    points: int


@dataclass(frozen=True)
class Cost:
    """What a policy costs once every window is full."""

    points: int  # listed at most
    journal_bytes: int  # stored at most
    shares: tuple[Share, ...]  # one a window that thins
    windows: tuple[WindowCost, ...] = field(default=(), compare=False)


def churn_of(pieces: Sequence[Piece]) -> Churn | None:
    """What the pieces measured; None when they tell nothing (fewer than two points)."""
    known = [piece for piece in pieces if piece.arrived_bytes is not None and piece.seconds > 0]
    singles = [piece.seconds for piece in known if not piece.merged]
    if not singles:
        return None
    seconds = sum(piece.seconds for piece in known)
    arrived = sum(piece.arrived_bytes or 0 for piece in known)
    merged = tuple(piece for piece in known if piece.merged and piece.arrived_bytes)
    return Churn(seconds, arrived / seconds, median(singles), merged)


def share_of(churn: Churn, every_seconds: float) -> Share:
    """What stays when all points of `every_seconds` become one."""
    fitting = [piece for piece in churn.merged if piece.seconds <= _ABOUT * every_seconds]
    longest = max((piece.seconds for piece in fitting), default=0.0)
    chosen = [piece for piece in fitting if piece.seconds > longest / 2]
    if not chosen:
        return Share(every_seconds, 1.0, None)
    share = sum(piece.stored_bytes for piece in chosen) / sum(piece.arrived_bytes or 0 for piece in chosen)
    measured = sum(piece.seconds for piece in chosen) / len(chosen)
    return Share(every_seconds, min(1.0, share), measured)


def cost_of(policy: RetentionPolicy, churn: Churn, *, disk_bytes: int) -> Cost:
    """The policy's cost.

    disk_bytes: the size of all disks; one point of a bucket never holds more.
    """
    points, stored, begin = 1, 0.0, 0.0
    shares: list[Share] = []
    listed: list[WindowCost] = []
    windows = policy.windows
    for index, window in enumerate(windows):
        length = window.reach_seconds - begin
        begin = window.reach_seconds
        # what waits for its bucket to leave as a whole
        coarser = windows[index + 1].every_seconds if index + 1 < len(windows) else window.every_seconds
        if not window.every_seconds:
            count = int((length + coarser) / churn.point_seconds)
            points += count
            listed.append(WindowCost(0.0, window.reach_seconds, count))
            stored += (length + coarser) * churn.stored_bytes_per_second
            continue
        share = share_of(churn, window.every_seconds)
        shares.append(share)
        buckets = int(-(-(length + coarser) // window.every_seconds))
        points += buckets
        listed.append(WindowCost(window.every_seconds, window.reach_seconds, buckets))
        bucket = share.share * window.every_seconds * churn.stored_bytes_per_second
        stored += buckets * min(bucket, disk_bytes)
    return Cost(points, int(stored), tuple(shares), tuple(listed))
