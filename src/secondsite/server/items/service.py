"""Protected items in the database: each change in the caller's transaction, a new revision, told to gateways.

A change that a gateway has to know raises the item's revision and the generation of both gateways in one
transaction; the gateways fetch it by themselves (`wanted`), and say in their reports how far they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.model.events import Severity
from secondsite.model.items import COUNTED, ProtectedEvent, ProtectedState, after
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_items import GENERATIONS, ITEMS, REPLICAS, REPORTS
from secondsite.server.database.tables_mappings import PLACED
from secondsite.server.database.values import fresh_id, from_moment, moment, to_json
from secondsite.server.items.errors import (
    ItemAmbiguous,
    ItemBehind,
    ItemExists,
    ItemsTooMany,
    ItemUnknown,
    SameGateway,
    StillEnding,
)
from secondsite.server.items.failovers import known_failover
from secondsite.server.items.generations import raise_generations
from secondsite.server.items.records import Item, item_of, query
from secondsite.server.items.seams import Seams
from secondsite.server.items.search import Search, name_key, page_of
from secondsite.transfer.desired import ITEMS_MAX, WantedMapping

# SQLite takes 32766 values in one statement.
BATCH_MAX = 1000


@dataclass(frozen=True)
class GatewayRef:
    """A gateway by id and name. id None: it is none of this server's."""

    id: str | None
    name: str


@dataclass(frozen=True)
class NewItem:
    """A machine that is to be protected. disks None: all, also those to come."""

    vault_id: str
    machine: str
    name: str
    source: GatewayRef
    target: GatewayRef
    policy_id: str | None = None
    disks: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    mapping: WantedMapping | None = None  # None: as its sites are mapped


@dataclass(frozen=True)
class Counts:
    """What a vault protects. first: since when the oldest of them is protected."""

    by_state: Mapping[ProtectedState, int]
    by_health: Mapping[str, int]
    protected: int
    first_protected_at: datetime | None


class Items:
    """The protected items of one database. Thread-safe."""

    def __init__(self, database: Database, clock: Clock, seams: Seams) -> None:
        self.database = database
        self.clock = clock
        self.seams = seams

    # reading

    def get(self, connection: Connection, item: str) -> Item:
        """By id. Raises ItemUnknown."""
        row = connection.execute(query().where(ITEMS.c.id == item)).one_or_none()
        if row is None:
            raise ItemUnknown(item=item)
        return item_of(row)

    def of_machine(self, connection: Connection, vault_id: str, machine: str) -> Item | None:
        """A vault's item of a machine, also an ended one."""
        mine = (ITEMS.c.vault_id == vault_id, ITEMS.c.machine == machine)
        row = connection.execute(query().where(*mine)).one_or_none()
        return None if row is None else item_of(row)

    def find(self, connection: Connection, vault_id: str, named: str) -> Item:
        """By id, machine or name. Raises ItemUnknown, ItemAmbiguous."""
        called = sa.or_(
            ITEMS.c.id == named,
            ITEMS.c.machine == named.lower(),
            sa.and_(ITEMS.c.name_key == name_key(named), ITEMS.c.state != ProtectedState.UNPROTECTED.value),
        )
        # in one query, at most one by its id, one by its machine
        found = connection.execute(query().where(ITEMS.c.vault_id == vault_id, called).limit(12)).all()
        rows = (
            [row for row in found if row.id == named]
            or [row for row in found if row.machine == named.lower()]
            or found
        )
        if len(rows) == 1:
            return item_of(rows[0])
        if rows:
            ids = ", ".join(row.id for row in rows)
            raise ItemAmbiguous(item=named, count=len(rows), ids=ids)
        raise ItemUnknown(item=named)

    def page(self, search: Search, *, after: tuple[str, str] | None, limit: int) -> list[Item]:
        """By name and id. after: the last entry's (`name_key` of its name, id)."""
        found, values = page_of(search, after, limit)
        return [item_of(row) for row in self.database.rows(found, values)]

    def counts(self, vaults: Collection[str] | None) -> Counts:
        """How many there are, by state and health; None: of all vaults."""
        where = [] if vaults is None else [ITEMS.c.vault_id.in_(vaults)]
        live = ITEMS.c.state != ProtectedState.UNPROTECTED.value
        counted = sa.select(ITEMS.c.state, ITEMS.c.health, sa.func.count()).where(live, *where)
        first = sa.select(sa.func.min(ITEMS.c.first_protected_at)).where(live, *where)
        with self.database.read() as connection:
            rows = connection.execute(counted.group_by(ITEMS.c.state, ITEMS.c.health)).all()
            since = connection.execute(first).scalar_one()
        by_state: dict[ProtectedState, int] = {}
        by_health: dict[str, int] = {}
        for state, health, number in rows:
            by_state[ProtectedState(state)] = by_state.get(ProtectedState(state), 0) + number
            by_health[health] = by_health.get(health, 0) + number
        return Counts(
            by_state=by_state,
            by_health=by_health,
            protected=sum(by_state.get(state, 0) for state in COUNTED),
            first_protected_at=None if since is None else from_moment(since),
        )

    # changing, each in the caller's transaction

    def has_replica(self, connection: Connection, gateway: str, machine: str) -> bool:
        """Whether a gateway, by its id, keeps recovery points of a machine."""
        kept = (REPLICAS.c.gateway == gateway, REPLICAS.c.machine == machine, REPLICAS.c.points > 0)
        return connection.execute(sa.select(REPLICAS.c.machine).where(*kept)).first() is not None

    def enable(self, connection: Connection, new: NewItem, *, by: str) -> Item:
        """Begin to protect a machine; of one protected before, the item it was. by: the action of a job.

        Raises ItemExists, SameGateway, StillEnding, ItemsTooMany, or what the policy's source raises.
        """
        if new.source.id == new.target.id:
            raise SameGateway(gateway=new.source.name)
        found = self.of_machine(connection, new.vault_id, new.machine)
        if found is not None:
            self._check_enable(found, new)
        self._check_room(connection, new.source)
        policy, policy_revision = self._policy(connection, new.policy_id)
        mapping = new.mapping
        if mapping is None:
            assert new.source.id is not None
            assert new.target.id is not None
            mapping = self.seams.mappings.for_pair(connection, new.source.id, new.target.id, new.machine)
        values: dict[str, object] = {
            **_place(new),
            "managed": 1,
            "policy_id": new.policy_id,
            "policy_revision": policy_revision,
            "policy": policy.model_dump_json(by_alias=True),
            "disks": None if new.disks is None else to_json(list(new.disks)),
            "left_out": to_json(list(new.left_out)),
            "mapping": mapping.model_dump_json(by_alias=True),
            "own_mapping": int(new.mapping is not None),
            **FRESH,
            # what the target took over in an earlier protection is another story, whatever came of it
            "failover_id": known_failover(connection, new.target.id, new.machine),
            "changed_by": by,
        }
        if found is None:
            item = self._insert(connection, new, values)
        else:
            item = found.id
            connection.execute(sa.delete(REPORTS).where(REPORTS.c.item == item))
        return self.change(connection, item, ProtectedEvent.ENABLED, values)

    def adopt(self, connection: Connection, new: NewItem, values: Mapping[str, object]) -> Item:
        """An item that a gateway protects and the server did not know: as it is there. values: columns."""
        item = self._insert(connection, new, {**_place(new), **values})
        moved = self.move(connection, item, ProtectedEvent.ADOPTED, {"finalized_at": self.now()})
        self.tell(connection, moved, Severity.INFORMATION, "item.adopted", _ADOPTED.format(item=moved))
        return moved

    def change(
        self,
        connection: Connection,
        item: str,
        event: ProtectedEvent,
        values: Mapping[str, object],
        *,
        force: bool = False,
    ) -> Item:
        """A new revision with other columns, which both gateways are to take; the event moves the state.

        force: also when the gateway knows a newer one. Raises ItemUnknown, ItemTransition, ItemBehind.
        """
        found = self._locked(connection, item)
        if found.source_revision > found.revision and not force:
            raise ItemBehind(name=found.name, there=found.source_revision, here=found.revision)
        source = str(values.get("source_id", found.source_id))
        target = values.get("target_id", found.target_id)
        told = raise_generations(connection, [source, *([str(target)] if target else [])])
        revision = max(found.revision, found.source_revision, found.target_revision) + 1
        told_of = {
            "revision": revision,
            "source_generation": told[source],
            "target_generation": told.get(str(target), 0),
            "changed_at": self.now(),
            "refused": "",
        }
        return self._set(connection, found, event, {**values, **told_of})

    def move(
        self,
        connection: Connection,
        item: str,
        event: ProtectedEvent,
        values: Mapping[str, object] | None = None,
    ) -> Item:
        """Another state, of which the gateways learn nothing. Raises ItemUnknown, ItemTransition."""
        return self._set(connection, self._locked(connection, item), event, dict(values or {}))

    def lead(
        self, connection: Connection, item: str, events: Sequence[ProtectedEvent], *, failover: str
    ) -> Item:
        """Several events at once, of a failover by its operation. Raises ItemUnknown, ItemTransition."""
        found = self._locked(connection, item)
        for event in events[:-1]:
            found = replace(found, state=after(found.state, event, found.name))
        values: dict[str, object] = {"failover_id": failover, "state": found.state.value}
        return self._set(connection, found, events[-1], values)

    def refresh(self, connection: Connection, *, policy: str) -> int:
        """A policy says something else: its items take it. Returns how many."""
        settings, number = self.seams.policies.get(connection, policy)
        text = settings.model_dump_json(by_alias=True)
        mine = (ITEMS.c.policy_id == policy, ITEMS.c.policy != text)
        return self._refreshed(connection, mine, {"policy": text, "policy_revision": number})

    def remap(self, connection: Connection, source: str, target: str) -> int:
        """What a pair of gateways, by name, is mapped to has changed: its items take it. Returns how many.

        Those with a mapping of their own keep it.
        """
        placed = sa.and_(PLACED.c.gateway == ITEMS.c.source_id, PLACED.c.machine == ITEMS.c.machine)
        columns = (ITEMS.c.id, ITEMS.c.machine, ITEMS.c.source_id, ITEMS.c.target_id, PLACED.c.cloud)
        pair = (ITEMS.c.source_name == source, ITEMS.c.target_name == target, ITEMS.c.target_id.is_not(None))
        mine = (ITEMS.c.own_mapping == 0, ITEMS.c.managed == 1, ITEMS.c.enabled == 1)
        query = sa.select(*columns).select_from(ITEMS.outerjoin(PLACED, placed)).where(*pair, *mine)
        # one cloud, one mapping: asked for once each
        texts: dict[str | None, str] = {}
        wanted: dict[str, list[str]] = {}
        for item, machine, source_id, target_id, cloud in connection.execute(query).all():
            if cloud not in texts:
                mapping = self.seams.mappings.for_pair(connection, source_id, target_id, machine)
                texts[cloud] = mapping.model_dump_json(by_alias=True)
            wanted.setdefault(texts[cloud], []).append(item)
        changed = 0
        for text, items in wanted.items():
            for start in range(0, len(items), BATCH_MAX):
                these = (ITEMS.c.id.in_(items[start : start + BATCH_MAX]), ITEMS.c.mapping != text)
                changed += self._refreshed(connection, these, {"mapping": text})
        return changed

    def _refreshed(
        self,
        connection: Connection,
        which: Sequence[sa.ColumnElement[bool]],
        values: Mapping[str, object],
    ) -> int:
        """Give live items other columns, whatever their state, in a few statements; gateways are told."""
        live = sa.and_(ITEMS.c.enabled == 1, *which)
        ends = sa.union(
            sa.select(ITEMS.c.source_id).where(live),
            sa.select(ITEMS.c.target_id).where(live, ITEMS.c.target_id.is_not(None)),
        )
        raise_generations(connection, list(connection.execute(ends).scalars()))

        def told(gateway: sa.Column[str]) -> sa.ScalarSelect[int]:
            number = sa.select(GENERATIONS.c.generation).where(GENERATIONS.c.gateway == gateway)
            return number.scalar_subquery()

        greatest = sa.func.greatest if connection.dialect.name == "postgresql" else sa.func.max
        known = greatest(ITEMS.c.revision, ITEMS.c.source_revision, ITEMS.c.target_revision)
        changed = (
            sa.update(ITEMS)
            .where(live)
            .values(
                **values,
                revision=known + 1,
                source_generation=told(ITEMS.c.source_id),
                target_generation=sa.func.coalesce(told(ITEMS.c.target_id), 0),
                changed_at=self.now(),
                refused="",
            )
        )
        return connection.execute(changed).rowcount

    def policy_counts(self, connection: Connection, policies: Sequence[str]) -> dict[str, int]:
        """How many items use each policy; those that none uses are missing."""
        live = (ITEMS.c.policy_id.in_(policies), ITEMS.c.state != ProtectedState.UNPROTECTED.value)
        counted = sa.select(ITEMS.c.policy_id, sa.func.count()).where(*live).group_by(ITEMS.c.policy_id)
        return {policy: number for policy, number in connection.execute(counted) if policy is not None}

    def tell(self, connection: Connection, item: Item, severity: Severity, code: str, text: str) -> None:
        """An event of the item, in the transaction of what it tells of."""
        self.seams.events.emit(
            connection,
            item.vault_id,
            severity,
            code,
            text,
            item=item.id,
            gateway=item.source_name,
            machine=item.machine,
        )

    def now(self) -> str:
        """This moment as columns hold it."""
        return moment(self.clock.utc())

    def gateway_uses(self, connection: Connection, gateway: str) -> str:
        """What needs a gateway, by name: for those who would take it out of its vault."""
        live = ITEMS.c.state != ProtectedState.UNPROTECTED.value
        told = []
        for column, words in ((ITEMS.c.source_name, "protects"), (ITEMS.c.target_name, "keeps replicas of")):
            count = sa.select(sa.func.count()).select_from(ITEMS).where(column == gateway, live)
            number = connection.execute(count).scalar_one()
            if number:
                told.append(f"it {words} {number} machine{'s' if number != 1 else ''}")
        return " and ".join(told)

    def vault_uses(self, connection: Connection, vault_id: str) -> str:
        """What is protected in a vault: for those who would delete it."""
        live = (ITEMS.c.vault_id == vault_id, ITEMS.c.state != ProtectedState.UNPROTECTED.value)
        number = connection.execute(sa.select(sa.func.count()).select_from(ITEMS).where(*live)).scalar_one()
        return "" if not number else f"{number} protected item{'s' if number != 1 else ''}"

    # inside

    def _policy(self, connection: Connection, policy: str | None) -> tuple[ReplicationPolicy, int]:
        if policy is None:
            return ReplicationPolicy(), 0
        return self.seams.policies.get(connection, policy)

    def _check_enable(self, found: Item, new: NewItem) -> None:
        if found.state is not ProtectedState.UNPROTECTED:
            raise ItemExists(
                name=found.name,
                state=found.state.value,
                source=found.source_name,
                target=found.target_name,
            )
        # the item's row tells a gateway that was away what ended; another protection would take its place
        if not found.source_done and found.source_id != new.source.id:
            raise StillEnding(name=found.name, gateway=found.source_name)
        if not found.target_done and found.target_id != new.target.id:
            raise StillEnding(name=found.name, gateway=found.target_name)

    @staticmethod
    def _check_room(connection: Connection, source: GatewayRef) -> None:
        mine = (ITEMS.c.source_id == source.id, ITEMS.c.enabled == 1)
        number = connection.execute(sa.select(sa.func.count()).select_from(ITEMS).where(*mine)).scalar_one()
        if number >= ITEMS_MAX:
            raise ItemsTooMany(gateway=source.name, count=number)

    def _insert(self, connection: Connection, new: NewItem, values: Mapping[str, object]) -> str:
        item, now = fresh_id(self.clock), self.now()
        row: dict[str, object] = {
            "id": item,
            "vault_id": new.vault_id,
            "machine": new.machine,
            "revision": 0,
            "source_generation": 0,
            "target_generation": 0,
            "source_revision": 0,
            "target_revision": 0,
            "own_mapping": 1,
            **FRESH,
            "state": ProtectedState.UNPROTECTED.value,
            "state_since": now,
            "created_at": now,
            "changed_at": now,
            **values,
        }
        connection.execute(sa.insert(ITEMS).values(**row))
        return item

    def _locked(self, connection: Connection, item: str) -> Item:
        held = sa.select(ITEMS.c.id).where(ITEMS.c.id == item).with_for_update()
        if connection.execute(held).first() is None:
            raise ItemUnknown(item=item)
        return self.get(connection, item)

    def _set(
        self, connection: Connection, found: Item, event: ProtectedEvent, values: dict[str, object]
    ) -> Item:
        state = after(found.state, event, found.name)
        if state is not found.state:
            values |= {"state": state.value, "state_since": self.now()}
        if values:
            connection.execute(sa.update(ITEMS).where(ITEMS.c.id == found.id).values(**values))
        return self.get(connection, found.id)


_ADOPTED = "{item.name} is protected at gateway {item.source_name}: it is an item of this server now."
# What an item begins with, also one that is protected again.
FRESH: Mapping[str, object] = {
    "paused": 0,
    "resync": 0,
    "enabled": 1,
    "delete_replica": 0,
    "health": "Normal",
    "health_code": "",
    "health_note": "",
    "refused": "",
    "source_done": 0,
    "target_done": 0,
    "left_behind": "",
    "changed_by": "",
    "before_change": "{}",
    "finalized_at": None,
    "failover_id": "",
    "home": "",
}


def _place(new: NewItem) -> dict[str, object]:
    return {
        "name": new.name,
        "name_key": name_key(new.name),
        "source_id": new.source.id,
        "source_name": new.source.name,
        "target_id": new.target.id,
        "target_name": new.target.name,
    }
