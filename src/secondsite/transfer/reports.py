"""What a gateway tells its server of the machines it protects and the replicas it keeps: never their content.

    POST /api/v1/gateways/self/reports  Report -> ReportAnswer, every REPORT_SECONDS and at changes of state
    POST /api/v1/gateways/self/events   EventBatch -> EventAnswer, as events come

A report is whole: it names every protection and every replica of the gateway.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from secondsite.transfer.desired import ITEMS_MAX, MachineText, Name, Revision, WantedProtection

PATH_REPORTS = "/api/v1/gateways/self/reports"
PATH_EVENTS = "/api/v1/gateways/self/events"
REPORT_SECONDS = 30.0
# Ten thousand protections and as many replicas are about 12 MB; what was asked for by `tell` comes on top.
REPORT_BYTES_MAX = 16 * 1024 * 1024
TELL_MAX = 500
# Of protections that ended: a server hears of each within a minute, and they are few.
LEFT_MAX = 1000
EVENTS_A_BATCH_MAX = 500
EVENT_BATCH_BYTES_MAX = 1024 * 1024
_Bytes = Annotated[int, Field(ge=0, le=2**62)]
_Number = Annotated[int, Field(ge=0, le=2**53)]
_Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=4000)]
_Code = Annotated[str, Field(max_length=100)]
_Time = Annotated[str, Field(min_length=20, max_length=40)]


class _Wire(BaseModel):
    """Base: what is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class _Answer(BaseModel):
    """Base of answers: a newer server may say more than an older gateway knows."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Copying(_Wire):
    """How far a first copy, or a comparison of everything, has come."""

    done_bytes: _Bytes
    total_bytes: _Bytes  # 0 while unknown
    bytes_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    seconds_left: _Seconds | None = None
    differed_bytes: _Bytes | None = None  # in a comparison


class ProtectionReport(_Wire):
    """One machine this gateway protects. States and health in the field's words."""

    machine: MachineText
    name: Name
    peer: Name
    item: Annotated[str, Field(max_length=255)] = ""  # "": protected at the gateway itself, without a server
    revision: Revision = 0  # of what it works towards
    # what it works towards, when its revision is above the server's (asked for in ReportAnswer.tell)
    wanted: WantedProtection | None = None
    state: Annotated[str, Field(max_length=60)]
    health: Literal["Normal", "Warning", "Critical"]
    code: _Code = ""  # of what is wrong
    note: _Text = ""  # why it is not better, or what it waits for
    bitmap_mode: bool = False  # captures wait and the host's own tracking goes on
    epoch: _Number = 0
    copying: Copying | None = None
    resynced: Annotated[int, Field(ge=0, le=2**31)] = 0  # the last WantedProtection.resync that was done
    points: _Number = 0
    last_point: _Number | None = None
    last_point_at: _Time | None = None
    last_consistency: _Code = ""
    rpo_seconds: _Seconds | None = None  # age of the newest point now; None: there is none
    spool_bytes: _Bytes = 0
    total_changed_bytes: _Bytes = 0
    total_sent_bytes: _Bytes = 0


class ReplicaReport(_Wire):
    """One machine whose replica this gateway keeps."""

    machine: MachineText
    name: Name
    epoch: _Number = 0
    revision: Revision = 0  # of WantedReplica
    points: _Number = 0
    oldest_at: _Time | None = None
    newest: _Number | None = None
    newest_at: _Time | None = None
    retention: Annotated[str, Field(max_length=400)] = ""
    test_state: _Code = ""  # of the test failover that stands, in the field's words; "": none does
    test_name: Annotated[str, Field(max_length=255)] = ""  # of its machine
    doubt: _Text = ""
    code: _Code = ""
    note: _Text = ""


class FailoverReport(_Wire):
    """The newest failover of a machine at the gateway that takes it over, in the field's words."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    serial: _Number = 0  # of two that are told of it, the higher is the newer
    machine: MachineText
    machine_name: Name
    name: Name  # of the machine here
    kind: Literal["Planned", "Unplanned"]
    state: _Code
    point: _Number
    point_at: _Time
    requested_at: _Time
    requested_by: Annotated[str, Field(max_length=255)] = ""
    writer: Annotated[str, Field(max_length=255)] = ""  # who wrote the machine before
    expected_loss_seconds: _Seconds = 0.0
    loss_seconds: _Seconds | None = None  # measured, once it is claimed
    epoch: _Number | None = None  # of its claim
    claimed_at: _Time | None = None
    booted_at: _Time | None = None
    console_at: _Time | None = None  # first written to
    userspace_at: _Time | None = None  # its agent first answered
    ended_at: _Time | None = None
    flattened_bytes: _Bytes = 0
    total_bytes: _Bytes = 0  # 0 while unknown
    kept: _Code = ""  # of a committed one: what became of the replica it came from (`KeptState`)
    code: _Code = ""  # of what it stopped with; "": it goes on
    note: _Text = ""  # why it stopped, or what it waits for


class HeldReport(_Wire):
    """A machine that was taken over elsewhere, at the gateway that isolates it; what was decided of it."""

    machine: MachineText
    name: Name
    state: _Code
    claimant: Annotated[str, Field(max_length=255)] = ""
    epoch: _Number = 0
    claimed_at: Annotated[str, Field(max_length=40)] = ""
    held_at: _Time
    isolated_at: _Time | None = None
    last_point: _Number | None = None
    last_point_at: _Time | None = None  # what it wrote later is on its disks alone
    decided_at: _Time | None = None
    decided_by: Annotated[str, Field(max_length=255)] = ""
    final: bool = False  # it moved for good: nothing is reversed onto it
    note: _Text = ""


class Report(_Wire):
    """Everything a gateway protects and keeps, and what it has taken over or isolates."""

    sent_at: _Time
    generation: Revision = 0  # of Desired, the last that was taken
    # what of the last Desired could not be taken: item id -> sentences
    refused: Annotated[dict[Name, _Text], Field(max_length=ITEMS_MAX)] = {}
    # what could not be removed of protections that ended lately: item id -> a sentence
    left_behind: Annotated[dict[Name, _Text], Field(max_length=LEFT_MAX)] = {}
    protections: Annotated[tuple[ProtectionReport, ...], Field(max_length=ITEMS_MAX)] = ()
    replicas: Annotated[tuple[ReplicaReport, ...], Field(max_length=ITEMS_MAX)] = ()
    failovers: Annotated[tuple[FailoverReport, ...], Field(max_length=ITEMS_MAX)] = ()
    held: Annotated[tuple[HeldReport, ...], Field(max_length=ITEMS_MAX)] = ()


class ReportAnswer(_Answer):
    """generation: of what the server wants now. tell: machines whose `wanted` the next report is to carry."""

    generation: int = 0
    tell: tuple[str, ...] = ()


class ToldEvent(_Wire):
    """One event of a gateway, with its place in the gateway's own sequence."""

    number: _Number
    at: _Time
    code: _Code
    severity: Literal["Information", "Warning", "Critical"]
    text: _Text
    machine: MachineText | None = None
    lasts: bool = False  # it is wrong until another event says that it is over
    ends: _Code = ""  # the code of such an event, which this one says is over


class EventBatch(_Wire):
    """The next events, oldest first; without any it asks how far the server is.

    log: which sequence they are of; a gateway begun anew has another. after: how far the server is, by its
    last word; the gateway has nothing between that and the first event. A server that is elsewhere takes
    nothing that would leave a gap, and says where it is.
    """

    after: _Number = 0
    log: Annotated[str, Field(min_length=1, max_length=64)]
    events: Annotated[tuple[ToldEvent, ...], Field(max_length=EVENTS_A_BATCH_MAX)] = ()


class EventAnswer(_Answer):
    """The number of the last event the server has of that log; the next batch begins after it."""

    last: int
