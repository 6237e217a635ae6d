"""A protected item as readers see it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Row

from secondsite.model.itemfailovers import TAKEN_OVER
from secondsite.model.items import ItemFacts, ProtectedState
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.database.tables_failovers import FAILOVERS, HELD
from secondsite.server.database.tables_items import ITEMS, REPLICAS, REPORTS
from secondsite.server.database.tables_jobs import job_locks
from secondsite.server.database.values import from_moment
from secondsite.transfer.desired import WantedMapping
from secondsite.transfer.reports import FailoverReport, HeldReport

LOCK_PREFIX = "machine:"


def lock_key(machine: str) -> str:
    """What a job that works on the machine has, and no other."""
    return LOCK_PREFIX + machine


class Reported(msgspec.Struct, frozen=True):
    """What the source gateway last measured. last_point_here: by the server's clock."""

    word: str
    bitmap_mode: bool
    epoch: int
    copying: dict[str, Any] | None
    resynced: int
    points: int
    last_point: int | None
    last_point_at: str | None
    last_consistency: str
    last_point_here: datetime | None
    spool_bytes: int
    total_changed_bytes: int
    total_sent_bytes: int


class Replica(msgspec.Struct, frozen=True):
    """What the target gateway last said."""

    points: int
    oldest_at: str | None
    newest: int | None
    newest_at: str | None
    retention: str
    test_state: str  # of the test failover that stands, in the field's words; "": none does
    test_name: str
    doubt: str
    code: str
    note: str


class Item(msgspec.Struct, frozen=True, dict=True):
    """One protected item.

    No dataclass: one of fifty frozen fields takes longer to make than its row takes to read. Its fields are
    the columns of `query()`, in their order; those from `reported` on are made of other tables'.
    """

    id: str
    vault_id: str
    machine: str
    name: str
    source_id: str
    source_name: str
    target_id: str | None
    target_name: str
    managed: bool
    revision: int
    source_generation: int
    target_generation: int
    policy_id: str | None
    policy_revision: int
    policy_text: str
    disks: tuple[str, ...] | None
    left_out: tuple[str, ...]
    mapping_text: str
    own_mapping: bool
    paused: bool
    resync: int
    enabled: bool
    delete_replica: bool
    state: ProtectedState
    state_since: datetime
    health: str
    health_code: str
    health_note: str
    source_revision: int
    target_revision: int
    refused: str
    source_done: bool
    target_done: bool
    left_behind: str
    finalized_at: datetime | None
    first_protected_at: datetime | None
    created_at: datetime
    changed_at: datetime
    changed_by: str
    before_change: str
    home: str  # how it was protected from its first site, while its machine is away from there (JSON)
    failover_id: str  # of the failover that its state follows, or followed last
    reported: Reported | None
    replica: Replica | None
    failover_told: str | None
    held_told: str | None
    replica_epoch: int  # the highest the target told of
    live_job: str

    @cached_property
    def failover(self) -> FailoverReport | None:
        """The newest the target told of; None: there was none."""
        told = self.failover_told
        return None if told is None else FailoverReport.model_validate_json(told)

    @cached_property
    def held(self) -> HeldReport | None:
        """Its machine at the source, where it is or was held."""
        return None if self.held_told is None else HeldReport.model_validate_json(self.held_told)

    @cached_property
    def policy(self) -> ReplicationPolicy:
        """As it was taken."""
        return _policy(self.policy_text)

    @property
    def rpo_threshold_seconds(self) -> float | None:
        """From which age of its newest point on it is told of."""
        return self.policy.rpo_threshold_seconds

    @cached_property
    def mapping(self) -> WantedMapping:
        """Where its things go at the target."""
        return WantedMapping.model_validate_json(self.mapping_text)

    @property
    def points(self) -> int:
        """Recovery points the target keeps; while it says nothing, those the source knows of.

        A source counts from its own start, and asks its target for the newest one before anything else.
        """
        if self.replica is not None:
            return self.replica.points
        if self.reported is None:
            return 0
        return max(self.reported.points, int(self.reported.last_point is not None))

    @property
    def facts(self) -> ItemFacts:
        """What decides, beside its state, what may be asked of it."""
        test = self.replica.test_state if self.replica is not None else ""
        held = self.held.state if self.held is not None else ""
        return ItemFacts(
            managed=self.managed,
            points=self.points,
            live_job=self.live_job,
            test=test,
            held=held,
            away=bool(self.home),
        )

    def rpo_seconds(self, now: datetime) -> float | None:
        """Age of the newest point; None: there is none, none was told of, or it runs elsewhere by now."""
        if self.state in TAKEN_OVER:
            return None  # its source writes no points, also one that has not heard of it yet
        if self.reported is None or self.reported.last_point_here is None:
            return None
        return max(0.0, (now - self.reported.last_point_here).total_seconds())


@functools.lru_cache(maxsize=1024)  # as many as there are policies, not items
def _policy(text: str) -> ReplicationPolicy:
    return ReplicationPolicy.model_validate_json(text)


_R, _P, _F, _H = REPORTS.c, REPLICAS.c, FAILOVERS.c, HELD.c
_REPORTED = [_R[name].label(f"r_{name}") for name in Reported.__struct_fields__]
_REPLICA = [_P[name].label(f"p_{name}") for name in Replica.__struct_fields__]
_TEXTS = {"policy_text": "policy", "mapping_text": "mapping"}
_FIELDS = Item.__struct_fields__[: Item.__struct_fields__.index("reported")]
_COLUMNS = [_TEXTS.get(name, name) for name in _FIELDS]


@functools.cache  # seventy columns: building it costs more than a row of it
def query() -> sa.Select[Any]:
    """Rows that `item_of` reads, with reports, replica and live job."""
    return _joined(ITEMS)


def query_page(which: sa.Select[Any]) -> sa.Select[Any]:
    """The same of the first items by name and id, which a select of theirs finds and limits.

    They are found before anything is joined to them: PostgreSQL, whose statistics are old where many items
    are new, else joins all there are with everything else and then sorts.
    """
    items = which.subquery("listed")
    return _joined(items).order_by(items.c.name_key, items.c.id)


def _joined(items: sa.FromClause) -> sa.Select[Any]:
    machine, source, target = items.c.machine, items.c.source_id, items.c.target_id
    joined = (
        items.outerjoin(REPORTS, _R.item == items.c.id)
        .outerjoin(REPLICAS, sa.and_(_P.gateway == target, _P.machine == machine))
        .outerjoin(FAILOVERS, sa.and_(_F.gateway == target, _F.machine == machine))
        .outerjoin(HELD, sa.and_(_H.gateway == source, _H.machine == machine))
        .outerjoin(job_locks, job_locks.c.key == LOCK_PREFIX + machine)
    )
    others = (_F.told.label("f_told"), _H.told.label("h_told"), _P.epoch.label("p_epoch"))
    columns = [items.c[name] for name in _COLUMNS]
    live = job_locks.c.job.label("live_job")
    return sa.select(*columns, *_REPORTED, *_REPLICA, *others, live).select_from(joined)


def _places(*names: str) -> tuple[int, ...]:
    return tuple(_FIELDS.index(name) for name in names)


# by place: by name, a page of a hundred took twice as long
_FLAGS = _places(
    "managed", "own_mapping", "paused", "enabled", "delete_replica", "source_done", "target_done"
)
_MOMENTS = _places("state_since", "created_at", "changed_at", "finalized_at", "first_protected_at")
_DISKS, _LEFT_OUT, _STATE = _places("disks", "left_out", "state")
# where the parts of a row begin
_AT_REPORTED = len(_FIELDS)
_AT_REPLICA = _AT_REPORTED + len(_REPORTED)
_AT_OTHERS = _AT_REPLICA + len(_REPLICA)


def item_of(row: Row[Any]) -> Item:
    """An item from a row of `query()`."""
    cells = tuple(row)
    values = list(cells[:_AT_REPORTED])
    for place in _FLAGS:
        values[place] = bool(values[place])
    for place in _MOMENTS:
        values[place] = values[place] and from_moment(values[place])
    disks = values[_DISKS]
    values[_DISKS] = None if disks is None else tuple(msgspec.json.decode(disks, type=list[str]))
    values[_LEFT_OUT] = tuple(msgspec.json.decode(values[_LEFT_OUT], type=list[str]))
    values[_STATE] = ProtectedState(values[_STATE])
    reported = _reported(cells[_AT_REPORTED:_AT_REPLICA])
    replica = None if cells[_AT_REPLICA] is None else Replica(*cells[_AT_REPLICA:_AT_OTHERS])
    failover, held, epoch, live_job = cells[_AT_OTHERS:]
    values += [reported, replica, failover, held, epoch or 0, live_job or ""]
    return Item(*values)


def _reported(cells: Sequence[Any]) -> Reported | None:
    values = dict(zip(Reported.__struct_fields__, cells, strict=True))
    if values["word"] is None:
        return None
    values["bitmap_mode"] = bool(values["bitmap_mode"])
    if values["copying"] is not None:
        values["copying"] = msgspec.json.decode(values["copying"])
    if values["last_point_here"] is not None:
        values["last_point_here"] = from_moment(values["last_point_here"])
    return Reported(**values)


def job_input(item: Item, by: str | None = None) -> dict[str, Any]:
    """What the input of every job on an item begins with. by: who asks, for jobs that keep it."""
    found: dict[str, Any] = {
        "vault": item.vault_id,
        "item": item.id,
        "machine": item.machine,
        "name": item.name,
    }
    return found if by is None else {**found, "by": by[:255]}
