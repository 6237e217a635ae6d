"""What the control API says of retention: what is kept of a machine, and what that costs."""

from __future__ import annotations

from secondsite.gateway.messages.wire import Wire
from secondsite.model.ids import DiskId, MachineId


class BaseCost(Wire, frozen=True, kw_only=True):
    """The base of one disk."""

    disk: DiskId
    size_bytes: int
    allocated_bytes: int | None = None  # None: it is not where the store says


class NextPass(Wire, frozen=True, kw_only=True):
    """What the retention would do now."""

    merged: int  # points that would no longer be listed, their changes kept by the point after them
    into: int  # of how many groups
    leaving: int  # points older than the policy's past, whose changes go into the bases
    held: int  # points that would go and are held
    settling: bool = False  # points came again after a long gap: nothing goes for an hour


class WindowShare(Wire, frozen=True, kw_only=True):
    """What stays of what arrives, in a window that thins."""

    every_seconds: float
    share: float
    measured_seconds: float | None = None  # length of the merged points it was measured on; None: assumed


class RetentionCost(Wire, frozen=True, kw_only=True):
    """What a policy costs at most, once every window is full."""

    points: int
    journal_bytes: int
    shares: tuple[WindowShare, ...] = ()


class RetentionReport(Wire, frozen=True, kw_only=True):
    """What is kept of one machine, and what that costs."""

    machine: MachineId
    name: str
    policy: str  # in words
    trial: bool  # it is not the policy in force
    source: str = ""  # who says so; of one that is in force
    points: int
    oldest: str | None = None  # instants
    newest: str | None = None
    journal_bytes: int = 0  # of all segments
    bases: tuple[BaseCost, ...] = ()
    next_pass: NextPass
    measured_seconds: float = 0.0  # over how much time
    stored_bytes_per_day: float | None = None  # of what arrives; None: there are too few points to tell
    point_seconds: float | None = None  # between points as they arrive
    cost: RetentionCost | None = None
