"""Protecting a machine the other way round, and failing back, as it goes over the control API.

    at A, whose machine another site took over and committed (states of `ReverseStatus.state`):

    GET    /v1/held/{machine}/reverse/preview   ReversePreview: what it would do, its checks, the sentence
    POST   /v1/held/{machine}/reverse           ReverseRequest -> ReverseStatus, 202; poll
    GET    /v1/held/{machine}/reverse           ReverseStatus
    DELETE /v1/held/{machine}/reverse           ReverseStatus, 202: taken back, the machine is Held again

    at B, by the failover that took it over, once it is committed:

    POST   /v1/failovers/{id}/retire              RetireReplica -> FailoverStatus, 202; poll `kept`
    POST   /v1/failovers/{id}/complete-migration  CompleteMigration -> FailoverStatus

`Initiated` -> `Adopting` -> `Ready`: from `Ready` on the other site may begin; nothing waits for it before.
Its first copy then agrees on keys, and the old disks are sealed into the store: `doneBytes` of `totalBytes`,
still `Ready`. `point` is its first point, which ends the reversal. `Failed` can be asked for again with the
same operation, or taken back. Where the old machine or its disks are gone, the POST is refused with the code
`reverse.machine-gone` or `reverse.disks-gone`: nothing needs to be done here, and the other site's protection
is a plain first copy.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from secondsite.gateway.messages.failover import Check
from secondsite.gateway.messages.testfailover import Step
from secondsite.gateway.messages.wire import Wire
from secondsite.model.ids import MachineId

_Operation = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Sentence = Annotated[str, msgspec.Meta(max_length=1024)]
_By = Annotated[str, msgspec.Meta(max_length=255)]


class ReverseState(enum.Enum):
    """Where a reversal stands."""

    INITIATED = "Initiated"  # the machine is shut off, its protection ended, an old replica of it removed
    ADOPTING = "Adopting"  # its disks are looked at and offered, the other site becomes the writer
    READY = "Ready"  # the other site may begin
    FAILED = "Failed"
    TAKING_BACK = "TakingBack"
    TAKEN_BACK = "TakenBack"


class ReverseRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give a held machine's disks to the other direction."""

    operation: _Operation  # the caller's; asked for again, nothing is begun a second time
    confirm: _Sentence = ""  # `ReversePreview.confirm`
    requested_by: _By = ""


class ReversePreview(Wire, frozen=True, kw_only=True):
    """What it would do and cost, and the sentence a person says to it."""

    machine: MachineId
    name: str
    writer: str  # who took the machine over, and would write here
    epoch_floor: int
    total_bytes: int = 0  # of the disks that would be begun with
    confirm: str
    checks: tuple[Check, ...] = ()


class ReverseStatus(Wire, frozen=True, kw_only=True):
    """A reversal at the site that lost the machine."""

    operation: str
    machine: MachineId
    name: str
    state: ReverseState
    writer: str
    requested_at: str
    requested_by: str = ""
    done_bytes: int = 0  # of the disks, sealed into the store; from `Ready` on
    total_bytes: int = 0
    epoch_floor: int = 0  # the writer's epoch here is above it, and above every other known
    epoch: int | None = None  # the writer's, once it was claimed for it
    point: int | None = None  # the first of the other direction: the reversal is complete
    sent_bytes: int | None = None  # what travelled for it
    steps: tuple[Step, ...] = ()
    ended_at: str | None = None
    note: str = ""  # what it waits for
    error: dict[str, str] | None = None


class RetireReplica(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delete what is left of the replica a machine was taken over from."""

    operation: _Operation
    confirm: _Sentence = ""  # `model.reversals.retired`
    requested_by: _By = ""


class CompleteMigration(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine stays for good: nothing is reversed or fails back."""

    operation: _Operation
    confirm: _Sentence = ""  # `model.reversals.migrated`
    requested_by: _By = ""
