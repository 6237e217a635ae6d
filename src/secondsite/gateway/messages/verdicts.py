"""What a verification found, as the control API and ``--json`` say it; made by `verdict_of`."""

from __future__ import annotations

import enum
from collections.abc import Collection

from secondsite.base.errors import Outcome
from secondsite.gateway.messages.wire import Wire
from secondsite.model.ids import DiskId, MachineId


class VerificationState(enum.Enum):
    """Where a verification stands."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class LostRanges(Wire, frozen=True, kw_only=True):
    """What of a disk cannot be read."""

    disk: DiskId
    bytes: int
    ranges: tuple[tuple[int, int], ...]  # start, end; the first ones of them
    more: int = 0  # ranges not shown


class DamagedObject(Wire, frozen=True, kw_only=True):
    """Something that is not as it was written."""

    object: str
    kind: str
    why: str
    points: tuple[int, ...] = ()  # that cannot be read right because of it
    lost: tuple[LostRanges, ...] = ()  # at the oldest of them


class VerificationReport(Wire, frozen=True, kw_only=True):
    """The result."""

    machine: MachineId
    name: str
    started_at: str
    seconds: float
    objects: int
    bytes: int
    bytes_per_second: float
    points: int  # listed
    newest: int | None = None
    newest_proved: int | None = None
    proved: tuple[int, ...] = ()
    unproved: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    reread: tuple[int, ...] = ()
    damaged: tuple[DamagedObject, ...] = ()
    more_damaged: int = 0  # objects not shown
    missing: tuple[LostRanges, ...] = ()  # of the newest point
    notes: tuple[str, ...] = ()
    trust: str | None = None  # NUMBER:HASH of the newest record, to be trusted next time

    @property
    def outcome(self) -> Outcome:
        """How a command that showed it ends."""
        return Outcome.DAMAGED if self.damaged else Outcome.OK


class VerificationStatus(Wire, frozen=True, kw_only=True):
    """A verification, running or the last one."""

    machine: MachineId
    name: str
    state: VerificationState
    requested_by: str
    started_at: str
    ended_at: str | None = None
    doing: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    report: VerificationReport | None = None
    error: dict[str, str] | None = None


class VerifyRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Verify a replica now."""

    point: str | None = None  # to be read whole, as `choose_point` takes it
    all: bool = False  # read every point whole
    requested_by: str = ""


def spans_text(numbers: Collection[int]) -> str:
    """``3, 5-9, 12``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in parts[:40]]
    return ", ".join(shown) + (f" and {len(parts) - 40} more runs" if len(parts) > 40 else "")
