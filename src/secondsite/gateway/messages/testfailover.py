"""What the control API says of test failovers."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from secondsite.gateway.messages.wire import Name, Wire
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency
from secondsite.model.recovered import Injection, RecoveredSettings


class TestFailoverState(enum.Enum):
    """Where a test failover stands (names of the field)."""

    __test__ = False  # not a test class, whatever its name

    INITIATED = "Initiated"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CLEANUP_INITIATED = "CleanupInitiated"
    CLEANUP_COMPLETED = "CleanupCompleted"
    CLEANUP_FAILED = "CompletionFailed"


class Step(Wire, frozen=True, kw_only=True):
    """One step of a long operation."""

    name: str
    started_at: str
    ended_at: str | None = None
    detail: str = ""


class InjectionState(enum.Enum):
    """How far the settings are in a recovered machine's guest."""

    WAITING = "Waiting"  # for its agent, or for the guest to read its drive
    RUNNING = "Running"
    APPLIED = "Applied"
    OFFERED = "Offered"  # its drive is there; nobody can look whether it was read
    FAILED = "Failed"


class InjectionStatus(Wire, frozen=True, kw_only=True):
    """What becomes of addresses, dns and hosts that a recovered machine's guest is to take."""

    method: Injection
    state: InjectionState
    since: str
    detail: str = ""
    tries: int = 0  # runs by its agent
    by_agent: bool = False  # asked for again: whatever the method, its agent runs the drive's script
    run: int | None = None
    ended_at: str | None = None


class TestFailoverStatus(Wire, frozen=True, kw_only=True):
    """A test failover, running or past; past ones keep the notes of their clean-up."""

    __test__ = False

    id: str  # 32 hexadecimal digits; also the id of the operation
    machine: MachineId
    machine_name: str
    name: str  # of the test machine at this site
    state: TestFailoverState
    point: int
    point_at: str  # the instant the point holds
    consistency: Consistency
    network: str  # "isolated", "none", "mapped" or a network's name
    requested_at: str
    requested_by: str = ""
    booted_at: str | None = None
    steps: tuple[Step, ...] = ()
    console_log: str | None = None
    error: dict[str, str] | None = None
    notes: str = ""
    cleaned_up_at: str | None = None
    cleaned_up_by: str = ""
    told_old_at: str | None = None  # that it stands for very long
    settings: RecoveredSettings | None = None
    injection: InjectionStatus | None = None


class StartTestFailover(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Boot a machine from a point, as a test."""

    __test__ = False

    point: Name  # latest, latest-processed, latest-application-consistent, a number or a time
    network: Name  # isolated, none, mapped or a network's name
    name: Name | None = None
    requested_by: Annotated[str, msgspec.Meta(max_length=255)] = ""
    # asked again with it, it is the same test failover, whatever became of it; None: the gateway chooses
    operation: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")] | None = None
    settings: RecoveredSettings | None = None  # of the machine there; None: as the point has it


class CleanUp(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove a test failover and keep what was learnt."""

    notes: Annotated[str, msgspec.Meta(max_length=8192)]
    cleaned_up_by: Annotated[str, msgspec.Meta(max_length=255)] = ""
    force: bool = False  # also one whose record cannot be read
    # only this one, which never begins after that if it was not begun yet; None: whichever stands
    operation: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")] | None = None
