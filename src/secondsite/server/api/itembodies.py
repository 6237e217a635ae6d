"""What the routes of protected items take and give."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from secondsite.model.items import allowed_operations
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.vaults import GatewayName
from secondsite.server.items.health import problems_of
from secondsite.server.items.records import Item
from secondsite.server.items.service import Counts
from secondsite.transfer.reports import HeldReport

StateName = Literal[
    "Unprotected",
    "EnablingProtection",
    "EnablingFailed",
    "InitialReplicationInProgress",
    "InitialReplicationFailed",
    "InitialReplicationCompletedOnRecovery",
    "FinalizeProtectionInProgress",
    "FinalizeProtectionFailed",
    "Protected",
    "Paused",
    "Resynchronizing",
    "DisablingProtection",
    "DisablingFailed",
    "PlannedFailoverInitiated",
    "PlannedFailoverCompleting",
    "PlannedFailoverCompleted",
    "PlannedFailoverCompletionFailed",
    "UnplannedFailoverInitiated",
    "UnplannedFailoverCompleting",
    "UnplannedFailoverCompleted",
    "UnplannedFailoverCompletionFailed",
    "ChangeRecoveryPointInitiated",
    "ChangeRecoveryPointFailed",
    "CommitFailoverInProgressOnRecovery",
    "CommitFailoverFailedOnRecovery",
    "CommitFailoverCompleted",
    "CancelFailoverInProgressOnRecovery",
    "CancelFailoverFailedOnRecovery",
    "ReprotectInitiated",
    "ReprotectFailed",
    "MigrationCompleted",
]
HealthName = Literal["Normal", "Warning", "Critical"]
OperationName = Literal[
    "finalize",
    "pause",
    "resume",
    "resync",
    "changePolicy",
    "changeDisks",
    "changeMapping",
    "takePoint",
    "testFailover",
    "testFailoverCleanup",
    "disable",
    "disableWithReplica",
    "forget",
    "protect",
    "checkFailover",
    "plannedFailover",
    "unplannedFailover",
    "changePoint",
    "commit",
    "cancelFailover",
    "reprotect",
    "failback",
    "completeMigration",
    "heldRelease",
    "heldDiscard",
]
_MACHINE = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_Named = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$")]
_Disk = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_Disks = Annotated[list[_Disk], Field(max_length=256)]
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{2,128}$")]
_Path = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\u0000]*$")]


class MappingBody(Model):
    """Where things of the source go at the target; what is not named is attached to nothing."""

    networks: dict[_Named, _Named] = Field(default={}, max_length=1000)
    pools: dict[_Named, _Named] = Field(default={}, max_length=1000)
    default_pool: _Named | None = None


class ImageBody(Model):
    """A copy of a disk that the target's site has already."""

    path: _Path
    format: Literal["raw", "qcow2"]


class NewItemBody(Model):
    """A machine to be protected."""

    machine: Annotated[str, Field(pattern=_MACHINE, description="Its id, as its site tells it.")]
    provider: GatewayName | None = Field(
        default=None, description="The gateway that protects it; absent: the closest to its host."
    )
    target_provider: GatewayName | None = Field(
        default=None, description="The gateway that keeps the replica; absent: one of the paired cloud."
    )
    policy: Annotated[_Named | None, Field(description="Id or name; absent: the built-in one.")] = None
    disks: Annotated[_Disks | None, Field(description="Only these; absent: all, also those to come.")] = None
    left_out: _Disks = Field(default=[], description="Not these.")
    mapping: Annotated[MappingBody | None, Field(description="Absent: as the sites are mapped.")] = None
    images: dict[_Disk, ImageBody] = Field(
        default={}, max_length=256, description="Begin the first copy with these."
    )


class ItemChangeBody(Model):
    """What is to be another; what is left out stays."""

    policy: _Named | None = None
    disks: Annotated[_Disks | None, Field(min_length=1)] = None
    all_disks: Annotated[bool, Field(description="All disks, also those to come.")] = False
    left_out: _Disks | None = None
    mapping: MappingBody | None = None
    pair_mapping: Annotated[bool, Field(description="As the sites are mapped.")] = False


class KeyFileBody(Model):
    """Which file the key was read from: the gateway's own copy proves nothing."""

    path: _Path
    device: Annotated[int, Field(ge=0, le=2**63 - 1)]
    inode: Annotated[int, Field(ge=0, le=2**63 - 1)]
    host: Annotated[
        str, Field(max_length=64, pattern=r"^[0-9a-f]*$", description="A keyed hash of its machine's id.")
    ] = ""


class ProofBody(Model):
    """The answer to a challenge."""

    nonce: _Hex
    proof: Annotated[_Hex, Field(description="HMAC of the nonce under the recovery key.")]
    key_file: KeyFileBody


class ChallengeView(View):
    """A question that only a holder of the recovery key can answer, once, within five minutes."""

    key_id: str
    nonce: str


class MappingView(View):
    """Where things of the source go at the target."""

    networks: dict[str, str]
    pools: dict[str, str]
    default_pool: str | None


class TestView(View):
    """A test failover that stands: a machine booted from a point, beside the original."""

    __test__ = False  # not a test class, whatever its name

    state: str
    name: str = Field(description="Of the test machine at the target's site.")


class FailoverView(View):
    """The newest failover of a machine at the gateway that took it over."""

    id: str = Field(description="Of the operation.")
    kind: Literal["Planned", "Unplanned"]
    state: str = Field(description="As the gateway tells it, in the field's words.")
    name: str = Field(description="Of the machine at the target's site.")
    point: int
    point_at: str
    requested_at: str
    requested_by: str
    writer: str = Field(description="Who wrote the machine before.")
    expected_loss_seconds: float
    loss_seconds: float | None = Field(description="Measured: from the point's instant to the claim.")
    epoch: int | None
    claimed_at: str | None
    booted_at: str | None
    console_at: str | None = Field(description="When its console was first written to.")
    userspace_at: str | None = Field(description="When its agent first answered.")
    ended_at: str | None
    flattened_bytes: int
    total_bytes: int
    kept: str = Field(description="Of a committed one: what became of the replica it came from.")
    note: str = Field(description="Why it stopped, or what it waits for.")


class HeldView(View):
    """A source that was taken over elsewhere, isolated by its gateway, and what was decided of it."""

    machine: str
    name: str
    provider: str
    state: str
    claimant: str = Field(description="Where the machine runs.")
    epoch: int
    held_at: str
    isolated_at: str | None
    last_point: int | None
    last_point_at: str | None = Field(description="What it wrote later is on its disks alone.")
    decided_at: str | None
    decided_by: str
    final: bool = Field(description="It moved for good: nothing is reversed onto it.")
    note: str


class ProblemView(View):
    """What is wrong with an item, why, and who can do what about it."""

    code: str
    severity: Literal["Warning", "Critical"]
    happened: str
    possible_causes: str
    recommended_action: str
    who_can_fix: str


class CopyingView(View):
    """How far a first copy, or a comparison of everything, has come."""

    done_bytes: int
    total_bytes: int = Field(description="0 while unknown.")
    bytes_per_second: float
    seconds_left: float | None
    differed_bytes: int | None


class ItemView(View):
    """A protected item."""

    id: str
    vault_id: str
    machine: str
    name: str
    provider: str
    target_provider: str
    state: StateName
    state_since: datetime
    health: HealthName
    allowed_operations: list[OperationName]
    live_job: str | None = Field(description="The job that has the machine.")
    policy_id: str | None
    policy_revision: int
    paused: bool
    bitmap_mode: bool
    recovery_points: int
    last_point: int | None
    last_point_at: str | None
    last_consistency: str | None
    rpo_seconds: float | None
    copying: CopyingView | None
    first_protected_at: datetime | None
    protected_days: int | None = Field(description="Days since it was protected for the first time.")
    revision: int
    taken_revision: int = Field(description="The newest its gateway works towards.")

    @classmethod
    def of(cls, item: Item, now: datetime, *, reachable: bool) -> ItemView:
        """As it goes out. reachable: one of its gateways is connected; of a standing failover."""
        return cls.model_validate(_fields(item, now, reachable=reachable))


class ItemDetail(ItemView):
    """An item with all that is known of it."""

    managed: bool = Field(description="False: its gateway has not told yet what it works towards.")
    policy: ReplicationPolicy
    disks: list[str] | None
    left_out: list[str]
    mapping: MappingView
    health_errors: list[ProblemView]
    epoch: int | None
    spool_bytes: int | None
    total_changed_bytes: int | None
    total_sent_bytes: int | None
    oldest_point_at: str | None
    retention: str | None = Field(description="What the target keeps.")
    test_failover: TestView | None = Field(description="The one that stands.")
    failover: FailoverView | None = Field(description="The newest, standing or past.")
    held: HeldView | None = Field(description="Its machine at the source.")
    created_at: datetime
    changed_at: datetime
    finalized_at: datetime | None
    left_behind: str

    @classmethod
    def detail(cls, item: Item, now: datetime, *, source_here: bool, target_here: bool) -> ItemDetail:
        """As it goes out."""
        reported, replica = item.reported, item.replica
        found = problems_of(item, source_here=source_here, target_here=target_here)
        return cls.model_validate(
            {
                **_fields(item, now, reachable=source_here or target_here),
                "managed": item.managed,
                "policy": item.policy,
                "disks": None if item.disks is None else list(item.disks),
                "left_out": list(item.left_out),
                "mapping": MappingView.model_validate(item.mapping.model_dump()),
                "health_errors": [ProblemView.model_validate(one) for one in found],
                "epoch": reported.epoch if reported else None,
                "spool_bytes": reported.spool_bytes if reported else None,
                "total_changed_bytes": reported.total_changed_bytes if reported else None,
                "total_sent_bytes": reported.total_sent_bytes if reported else None,
                "oldest_point_at": replica.oldest_at if replica else None,
                "retention": replica.retention or None if replica else None,
                "test_failover": _test(item),
                "failover": _failover(item),
                "held": None if item.held is None else held_view(item.source_name, item.held),
                "created_at": item.created_at,
                "changed_at": item.changed_at,
                "finalized_at": item.finalized_at,
                # removed since, once both gateways have said so
                "left_behind": "" if item.source_done and item.target_done else item.left_behind,
            }
        )


def _test(item: Item) -> TestView | None:
    replica = item.replica
    if replica is None or not replica.test_state:
        return None
    return TestView(state=replica.test_state, name=replica.test_name)


def _failover(item: Item) -> FailoverView | None:
    told = item.failover
    return None if told is None else FailoverView.model_validate(told.model_dump(include=_FAILOVER))


def held_view(provider: str, told: HeldReport) -> HeldView:
    """provider: the gateway that isolates it."""
    return HeldView.model_validate({**told.model_dump(include=_HELD), "provider": provider})


_FAILOVER, _HELD = set(FailoverView.model_fields), set(HeldView.model_fields) - {"provider"}


def _fields(item: Item, now: datetime, *, reachable: bool) -> dict[str, Any]:
    facts = replace(item.facts, reachable=reachable)
    reported, first = item.reported, item.first_protected_at
    copying = reported.copying if reported else None
    return {
        "id": item.id,
        "vault_id": item.vault_id,
        "machine": item.machine,
        "name": item.name,
        "provider": item.source_name,
        "target_provider": item.target_name,
        "state": item.state.value,
        "state_since": item.state_since,
        "health": item.health,
        "allowed_operations": [one.value for one in allowed_operations(item.state, facts)],
        "live_job": item.live_job or None,
        "policy_id": item.policy_id,
        "policy_revision": item.policy_revision,
        "paused": item.paused,
        "bitmap_mode": bool(reported and reported.bitmap_mode),
        "recovery_points": item.points,
        "last_point": reported.last_point if reported else None,
        "last_point_at": reported.last_point_at if reported else None,
        "last_consistency": (reported.last_consistency or None) if reported else None,
        "rpo_seconds": item.rpo_seconds(now),
        "copying": None if copying is None else CopyingView.model_validate(copying),
        "first_protected_at": first,
        "protected_days": None if first is None else (now - first).days,
        "revision": item.revision,
        "taken_revision": item.source_revision,
    }


class CountsView(View):
    """What is protected now, and since when."""

    protected: int
    items: int = Field(description="Also those on their way in or out.")
    by_state: dict[str, int]
    by_health: dict[str, int]
    first_protected_at: datetime | None
    protected_days: int | None = Field(description="Days since the oldest of them was protected first.")

    @classmethod
    def of(cls, counts: Counts, now: datetime) -> CountsView:
        """As it goes out."""
        first = counts.first_protected_at
        return cls(
            protected=counts.protected,
            items=sum(counts.by_state.values()),
            by_state={state.value: number for state, number in counts.by_state.items()},
            by_health=dict(counts.by_health),
            first_protected_at=first,
            protected_days=None if first is None else (now - first).days,
        )
