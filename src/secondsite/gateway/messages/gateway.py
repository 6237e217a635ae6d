"""What the control API says: the bodies of requests and answers, shared by its server and its client.

Names are the field's (PascalCase states, camelCase JSON); every struct is checked by msgspec on the way in,
so that nothing untyped goes further than the socket. Times are RFC 3339 UTC, sizes bytes, durations seconds.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from secondsite.gateway.messages.testfailover import TestFailoverStatus
from secondsite.gateway.messages.wire import Hex, Name, PathText, Seconds, Wire
from secondsite.model.events import Event
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Host, Machine, Network, Pool
from secondsite.model.points import Consistency
from secondsite.model.signals import Signals


class ProtectionState(enum.Enum):
    """Where a protection stands (names of the field)."""

    ENABLING = "EnablingProtection"
    INITIAL_REPLICATION = "InitialReplicationInProgress"
    PROTECTED = "Protected"
    RESYNCHRONIZING = "Resynchronizing"
    PAUSED = "Paused"  # spool full or source gone: tracking goes on at the host
    DISABLING = "DisablingProtection"
    FAILED = "EnablingFailed"


class Health(enum.Enum):
    """How a protection feels."""

    NORMAL = "Normal"
    WARNING = "Warning"
    CRITICAL = "Critical"


class FirstCopy(Wire, frozen=True, kw_only=True):
    """How far a first copy (or a comparison of everything) has come."""

    done_bytes: int
    total_bytes: int  # of data, not holes; 0 while unknown
    bytes_per_second: float
    seconds_left: float | None = None
    differed_bytes: int | None = None  # of those done, in a comparison


class DifferingRange(Wire, frozen=True, kw_only=True):
    """Bytes of a point that are not what the source held at its instant."""

    disk: DiskId
    offset: int
    length: int
    point: int


class DeepVerification(Wire, frozen=True, kw_only=True):
    """A comparison of everything with the source, running or the last one; `started_at` None: none yet."""

    machine: MachineId
    name: str
    started_at: str | None = None
    finished_at: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0  # 0 while unknown
    differing_bytes: int = 0
    differing: tuple[DifferingRange, ...] = ()  # the first 64
    first_point: int | None = None  # points whose instants were compared
    last_point: int | None = None
    error: str = ""  # why it ended before it was through


class ProtectionStatus(Wire, frozen=True, kw_only=True):
    """One protected machine, as its source gateway sees it now."""

    machine: MachineId
    name: str
    peer: str
    state: ProtectionState
    health: Health
    copy_frequency_seconds: float
    epoch: int = 0
    first_copy: FirstCopy | None = None
    points: int = 0  # committed since the gateway began to count
    last_point: int | None = None  # its number
    last_point_at: str | None = None  # the instant it holds
    rpo_seconds: float | None = None  # age of that instant now; None: unknown
    cycle_seconds: float | None = None  # the last cycle's duration
    changed_bytes: int = 0  # of the last cycle, as the host's tracking counted
    sent_bytes: int = 0  # of the last cycle, as stored
    total_changed_bytes: int = 0
    total_sent_bytes: int = 0
    spool_bytes: int = 0
    last_consistency: Consistency | None = None
    note: str = ""  # why it is not better, or what it waits for
    code: str = ""  # of what is wrong
    item: str = ""  # the protected item at the server; "": protected at the gateway itself
    revision: int = 0  # of the item
    left_out: tuple[DiskId, ...] = ()  # disks that are not copied
    paused_by: str = ""  # "": not by order
    bitmap_mode: bool = False  # captures wait for room, the host's own tracking goes on
    policy_name: str = ""  # at the server
    limit_bytes_per_second: float | None = None  # that its policy's items share at this time of day
    resync: int = 0  # above `resynced`: everything is to be compared
    resynced: int = 0


class PointHold(Wire, frozen=True, kw_only=True):
    """Who keeps a point from being thinned out."""

    holder: str  # "hold:NAME" for people's, "user-…" and "test-…" for exports
    reason: str
    until: str | None = None  # None: until its holder lets go


class HeldPoint(Wire, frozen=True, kw_only=True):
    """A hold and the point it is of."""

    number: int
    at: str  # the instant the point holds
    hold: PointHold


class HoldRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keep a point, whatever the retention says."""

    point: Name  # latest, latest-application-consistent, a number or a time
    reason: Name
    until: Name  # a time, or how long: 12h, 30d
    name: Name | None = None  # None: the point's number


class PointSummary(Wire, frozen=True, kw_only=True):
    """A recovery point as a listing shows it."""

    number: int
    epoch: int
    at: str  # the instant it holds (given_at)
    asked_at: str
    committed_at: str
    consistency: Consistency
    size_bytes: int
    changed_bytes: int
    sent_bytes: int
    disks: tuple[DiskId, ...]
    fingerprints: dict[str, str | None] = msgspec.field(default_factory=dict)
    frozen_seconds: float | None = None
    held_by: tuple[PointHold, ...] = ()
    trust: str = ""  # LastClean, InDoubt (see `secondsite points list`), or nothing to say
    signals: Signals | None = None  # None: its source measured none


class Doubt(Wire, frozen=True, kw_only=True):
    """Points that may hold what somebody encrypted, until a person dismisses it."""

    first: int  # the first point in doubt
    found_at: str
    reason: str
    critical: bool
    clean: int | None = None  # the newest point before everything in doubt; None: none is kept


class DismissRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person looked: the points in doubt are sound."""

    note: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    by: Annotated[str, msgspec.Meta(max_length=255)] = ""


class VerificationSummary(Wire, frozen=True, kw_only=True):
    """What the last verification of a replica said."""

    at: str  # when it ended
    state: str  # Completed, Failed or Cancelled; Running: one is under way
    last_verified: int | None = None  # the newest point that was proved
    lost: int = 0  # points
    damaged: int = 0  # objects


class ReplicaStatus(Wire, frozen=True, kw_only=True):
    """One machine whose replica this site holds."""

    machine: MachineId
    name: str
    epoch: int
    points: int
    oldest: PointSummary | None = None
    newest: PointSummary | None = None
    rpo_seconds: float | None = None  # age of the newest instant now, by this site's clock
    test_failover: TestFailoverStatus | None = None
    retention: str | None = None  # which points stay, in words; None: this gateway thins none
    verification: VerificationSummary | None = None  # None: never verified here
    doubt: Doubt | None = None  # the oldest that stands
    error: dict[str, str] | None = None  # why its points cannot be listed


class GatewayStatus(Wire, frozen=True, kw_only=True):
    """Everything one gateway knows about itself."""

    name: str
    site: str
    version: str
    at: str
    protections: tuple[ProtectionStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    test_failovers: tuple[TestFailoverStatus, ...] = ()


class Inventory(Wire, frozen=True, kw_only=True):
    """What the site's fabric has."""

    hosts: tuple[Host, ...]
    machines: tuple[Machine, ...]
    networks: tuple[Network, ...]
    pools: tuple[Pool, ...]


class EventEntry(Wire, frozen=True, kw_only=True):
    """An event with its place in the gateway's sequence."""

    number: int
    event: Event


class ChallengeReply(Wire, frozen=True, kw_only=True):
    """A question only a holder of the recovery key can answer."""

    key_id: str
    nonce: str


class FileIdentity(Wire, frozen=True, kw_only=True):
    """Which file it is on this host, whatever its name: so that a key is not the gateway's own copy."""

    path: PathText
    device: int
    inode: int
    host: Annotated[str, msgspec.Meta(max_length=64)] = ""  # an id of the machine it is on; "": this one


class ProtectRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a machine under protection, or change how it is protected."""

    peer: Name
    nonce: Hex
    proof: Hex  # HMAC of the nonce under the recovery key
    key_file: FileIdentity
    disks: tuple[DiskId, ...] | None = None
    left_out: tuple[DiskId, ...] = ()
    copy_frequency_seconds: Seconds = 5.0
    application_consistent_frequency_seconds: Seconds | None = None
    compression_level: Annotated[int, msgspec.Meta(ge=-5, le=19)] = 1
    networks: dict[Name, Name] = msgspec.field(default_factory=dict)
    pools: dict[Name, Name] = msgspec.field(default_factory=dict)
    default_pool: Name | None = None


class PointTaken(Wire, frozen=True, kw_only=True):
    """A point that was asked for, once it is committed."""

    number: int
    at: str
    consistency: Consistency
    frozen_seconds: float | None = None
    note: str = ""


class ExportRequest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Serve a point's disks over NBD."""

    point: Name
    socket_dir: PathText


class ExportDisk(Wire, frozen=True, kw_only=True):
    """Where one disk of an export is served."""

    id: DiskId
    size_bytes: int
    socket_path: str
    export_name: str

    @property
    def uri(self) -> str:
        """As libnbd, QEMU and nbdkit write it."""
        return f"nbd+unix:///{self.export_name}?socket={self.socket_path}"


class ExportStatus(Wire, frozen=True, kw_only=True):
    """An export: a process of its own that serves one point."""

    id: str
    machine: MachineId
    point: int
    holder: str
    disks: tuple[ExportDisk, ...]
    process: int | None = None
    restarts: int = 0
