"""Failovers and held sources as they go over the control API."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

import msgspec

from secondsite.gateway.messages.testfailover import InjectionStatus, Step
from secondsite.gateway.messages.wire import Wire
from secondsite.model.differences import differences
from secondsite.model.failover import FailoverKind, FailoverState, HeldState, KeptState
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.outlook import Outlook
from secondsite.model.points import Consistency
from secondsite.model.recovered import RecoveredSettings

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Operation = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Sentence = Annotated[str, msgspec.Meta(max_length=1024)]
_Rate = Annotated[int, msgspec.Meta(ge=65536, le=2**53)]
_By = Annotated[str, msgspec.Meta(max_length=255)]
# What goes of a machine that is given up, or of the one whose place a failover takes.
Removal = Literal["nothing", "machine", "machine-and-disks"]
OldMachine = Literal["remove", "remove-with-disks"]


class Check(Wire, frozen=True, kw_only=True):
    """One thing looked at before an operation; what fails says why and what to do."""

    name: str
    passed: bool
    required: bool = True  # False: it is only to be known
    cause: str = ""
    action: str = ""


class FailoverPreview(Wire, frozen=True, kw_only=True):
    """What a failover would do and cost, and the sentence a person says to it."""

    machine: MachineId
    machine_name: str
    point: int
    point_at: str  # the instant it holds
    consistency: Consistency
    expected_loss_seconds: float  # from that instant until now, by this site's clock
    writer: str = ""  # who writes the machine now, as the store says
    confirm: str  # what has to be said to begin it
    checks: tuple[Check, ...] = ()
    settings: RecoveredSettings | None = None
    outlook: Outlook | None = None  # what it would be here; None: that cannot be known


class StartFailover(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a machine over at this site."""

    operation: _Operation  # the caller's; asked for again, nothing is begun a second time
    point: _Name  # as for a test failover; of a planned one the number of the source's last point
    confirm: _Sentence = ""  # `FailoverPreview.confirm`; a planned one: that it was stopped
    kind: FailoverKind = FailoverKind.UNPLANNED
    network: _Name = "mapped"  # mapped, none, or the name of a network of this site
    name: _Name | None = None  # of the machine here; its own if not given
    autostart: bool = False  # once it is committed: it starts with its host
    # One of the two at most: it ends by itself so long after its machine was last started. No default.
    auto_commit_after: Annotated[float, msgspec.Meta(ge=60, le=90 * 86400)] | None = None
    auto_roll_back_after: Annotated[float, msgspec.Meta(ge=60, le=90 * 86400)] | None = None
    confirm_timer: _Sentence = ""  # what is said to a commit, or to a roll-back
    # of the copying at its commit, all disks together; None: as the commit says, and 100 MB/s by itself
    bytes_per_second: _Rate | None = None
    # of the machine's former copy here, which was reversed onto; None: there is none
    old_machine: OldMachine | None = None
    settings: RecoveredSettings | None = None  # of the machine here; None: as the point has it
    requested_by: _By = ""


class LookAtFailover(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a failover would do; as its preview, with settings of any length."""

    point: _Name = "latest"
    network: _Name = "mapped"
    name: _Name | None = None
    settings: RecoveredSettings | None = None


class CallOffFailover(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Have a failover never begin whose request may still be on its way."""

    operation: _Operation


class TimerAction(enum.Enum):
    """What a failover does by itself when its time is over."""

    COMMIT = "Commit"
    ROLL_BACK = "RollBack"


class FailoverTimer(Wire, frozen=True, kw_only=True):
    """How a failover ends by itself."""

    action: TimerAction
    seconds: float  # from the machine's last start
    bytes_per_second: int | None = None  # of an automatic commit's copying; None: it rolls back
    due_at: str | None = None  # None: its machine was not started yet
    told_at: str | None = None  # when it was announced that this is soon
    waits: str = ""  # its time is over, and why it could not act yet
    acted_at: str | None = None
    cancelled_at: str | None = None
    cancelled_by: str = ""


class FormerWrites(Wire, frozen=True, kw_only=True):
    """What the machine wrote on a point before it was moved to another one; gone at a commit or roll-back."""

    point: int
    booted_at: str  # when it was started on that point
    kept_at: str
    label: str = ""  # part of the files' names
    files: tuple[str, ...]
    bytes: int  # that they take up


class FailoverStatus(Wire, frozen=True, kw_only=True):
    """A failover at the site that takes over."""

    id: str
    machine: MachineId
    machine_name: str
    name: str
    kind: FailoverKind
    state: FailoverState
    point: int
    point_at: str
    consistency: Consistency
    network: str
    requested_at: str
    requested_by: str = ""
    writer: str = ""  # who wrote it before
    expected_loss_seconds: float
    epoch: int | None = None  # of the claim
    claimed_at: str | None = None
    superseded_by: str | None = None  # who took the machine over from this site since; it is isolated here
    loss_seconds: float | None = None  # from the point's instant to the claim, which ended the source's time
    stop: str | None = None  # of a planned one: the stop in order by which nothing is lost; None: it was void
    booted_at: str | None = None
    console_at: str | None = None  # it wrote to its console: firmware or kernel run
    userspace_at: str | None = None  # its guest agent opened its port
    verified: tuple[Check, ...] = ()  # whether it is what was asked for, as its hypervisor says
    verified_at: str | None = None  # when that was so first
    console_log: str | None = None
    off_at: str | None = None  # it was shut down by its guest or a person, and is left so
    restarted_at: str | None = None  # it had ended without being shut down, last then
    restarts: int = 0
    points_tried: tuple[int, ...] = ()  # those it ran on before this one
    former_writes: tuple[FormerWrites, ...] = ()  # what it wrote there
    goes_on: str | None = None  # the label of those it has, where it went on from them
    steps: tuple[Step, ...] = ()
    flattened_bytes: int = 0
    total_bytes: int = 0
    timer: FailoverTimer | None = None
    delete_points: bool = False  # a commit asked for it
    serial: int = 0  # grows with each change of this status: of two that are told, the higher is the newer
    points_deleted_at: str | None = None  # nothing is left of them at this site
    points_wait: str = ""  # why they are still there although they are to go
    ended_at: str | None = None
    ended_by: str = ""
    note: str = ""  # what it waits for
    settings: RecoveredSettings | None = None
    injection: InjectionStatus | None = None  # what becomes of the settings in its guest
    error: dict[str, str] | None = None
    kept: KeptState | None = None  # of a committed one: what became of the replica it came from
    kept_at: str | None = None  # since when

    @property
    def differs(self) -> str:
        """How it is not what was asked for; empty where it is."""
        return differences(self.verified)


class ChangePoint(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Run on another point; what it wrote here since it was booted stays behind."""

    point: _Name
    with_writes: bool = False  # of a point it ran on before: go on with what it wrote there
    confirm: _Sentence = ""
    requested_by: _By = ""


class CommitFailover(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep it: plain local disks, no way back to another point."""

    confirm: _Sentence = ""
    bytes_per_second: _Rate | None = None  # None: as its failover says, else as fast as it goes
    delete_points: bool = True  # of this machine at this site, once nobody reads or holds them
    requested_by: _By = ""


class CancelTimer(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """It is decided by people only."""

    requested_by: _By = ""


class RemoveFormer(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give up what the machine wrote on points it does not run on any more, before a commit does."""

    confirm: _Sentence = ""
    point: int | None = None  # None: on all of them
    requested_by: _By = ""


class RollBackFailover(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Undo it: the machine here is removed, its source is the authority again."""

    confirm: _Sentence = ""
    requested_by: _By = ""


class HeldMachine(Wire, frozen=True, kw_only=True):
    """A source that is not its machine's authority, or was."""

    machine: MachineId
    name: str
    state: HeldState
    why: str
    claimant: str = ""
    epoch: int = 0
    claimed_at: str = ""
    held_at: str
    # None: its hypervisor did not answer yet; of a decided one: what was decided is done
    isolated_at: str | None = None
    last_point: int | None = None
    last_point_at: str | None = None  # what it wrote later is on its disks alone
    decided_at: str | None = None
    decided_by: str = ""
    note: str = ""
    final: bool = False  # it moved for good: nothing is reversed onto it
    remove: Removal = "nothing"  # with a discard
    removed_at: str | None = None
    # up to which epoch it is known whose the machine is, below `epoch` where reversals were taken back; None:
    # an earlier version wrote it
    known_epoch: int | None = None

    def known(self) -> int:
        """`known_epoch`, where an earlier version held it the epoch."""
        return self.epoch if self.known_epoch is None else self.known_epoch


class Decide(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's word about a held source as it is held now: of a later hold it decides nothing."""

    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # `HeldMachine.epoch`, as it was shown
    confirm: _Sentence = ""
    by: _By = ""
    remove: Removal = "nothing"  # of what is discarded


class PlannedStop(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop a source in order and carry its last changes over."""

    operation: _Operation
    seconds_max: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0  # for the guest to shut down
    power_off: bool = False  # it did not shut down, and a person said to switch it off all the same
    prove: bool = True  # read all of it and compare by hash
    requested_by: _By = ""


class PlannedStopStatus(Wire, frozen=True, kw_only=True):
    """How far that has come."""

    operation: str
    machine: MachineId
    name: str
    state: str  # ShuttingDown, Waiting, LastChanges, Proving, Completed, Cancelled, Failed
    requested_at: str
    # as it was asked for last; a gateway that goes on keeps to it
    seconds_max: float = 300.0
    power_off: bool = False
    prove: bool = True
    shut_down_by: str = ""  # agent, power button, power off, or "it was off"
    point: int | None = None  # holds everything
    point_at: str | None = None
    fingerprints: dict[DiskId, str] | None = None  # of the source's disks, read whole after it stopped
    proved: bool = False  # they are the point's
    steps: tuple[Step, ...] = ()
    note: str = ""
    error: dict[str, str] | None = None
