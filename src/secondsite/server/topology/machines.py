"""What could be protected: each machine of the published clouds once, whichever gateways tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.machines import Machine
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_inventory import OBJECTS
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.database.tables_mappings import CLOUDS, PAIR_CHECKS, PLACED
from secondsite.server.identity.states import GatewayState
from secondsite.server.inventory.service import Kind, sort_key_of
from secondsite.server.topology.choice import Choice, candidates_of, choose
from secondsite.server.topology.records import Cloud, clouds_of

Key = tuple[str, str, str]  # the name as it sorts, the machine's id, the cloud's id


@dataclass(frozen=True)
class Protectable:
    """One machine. reasons: why it cannot be protected now; empty when it can."""

    machine: Machine  # as the chosen gateway told it
    cloud: Cloud
    choice: Choice
    reasons: tuple[str, ...]
    key: Key
    item: str | None = None  # the protected item it is already
    state: str = "Unprotected"  # of that item


class Machines:
    """The machines of the clouds of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(
        self, clouds: Sequence[str], *, name_contains: str = "", after: Key | None = None, limit: int
    ) -> list[Protectable]:
        """Of these clouds (ids), by name. after: the last entry's key."""
        now = self._database.clock.utc()
        with self._database.read() as connection:
            keys = _keys(connection, clouds, name_contains, after, limit)
            by_id = {cloud.id: cloud for cloud in clouds_of(connection, CLOUDS.c.id.in_(clouds))}
            found = candidates_of(connection, [machine for _, machine, _ in keys], now=now)
            items = _items(connection, [machine for _, machine, _ in keys])
            ready = _ready(connection, [cloud.pair for cloud in by_id.values() if cloud.pair is not None])
        result = []
        for key in keys:
            _, machine, cloud_id = key
            cloud = by_id[cloud_id]
            told = [one for one in found[machine] if one.cloud == cloud_id]
            choice = choose(told)
            detail = next(one.told for one in told if one.gateway == choice.gateway)
            item, state = items.get((cloud.vault_id, machine), (None, "Unprotected"))
            reasons = [*detail.unprotectable, *_reasons(cloud, choice.host, ready)]
            if not any(one.connected for one in told):
                reasons.append("no gateway that tells of it is connected")
            if item is not None:
                reasons.append(f"it is protected already ({state})")
            result.append(Protectable(detail, cloud, choice, tuple(reasons), key, item, state))
        return result


def _keys(
    connection: Connection, clouds: Sequence[str], name_contains: str, after: Key | None, limit: int
) -> list[Key]:
    here = sa.and_(
        OBJECTS.c.gateway == PLACED.c.gateway,
        OBJECTS.c.kind == Kind.MACHINE.value,
        OBJECTS.c.id == PLACED.c.machine,
    )
    first = sa.func.min(OBJECTS.c.sort_key)
    order = (first, PLACED.c.machine, PLACED.c.cloud)
    query = (
        sa.select(*order)
        .select_from(PLACED.join(OBJECTS, here).join(gateways, gateways.c.id == PLACED.c.gateway))
        .where(
            PLACED.c.cloud.in_(clouds),
            OBJECTS.c.gone_since.is_(None),
            gateways.c.state == GatewayState.REGISTERED.value,
        )
        .group_by(PLACED.c.machine, PLACED.c.cloud)
        .order_by(*order)
        .limit(limit)
    )
    if name_contains:
        query = query.where(OBJECTS.c.sort_key.contains(sort_key_of(name_contains), autoescape=True))
    if after is not None:
        query = query.having(sa.tuple_(*order) > sa.tuple_(*(sa.literal(part) for part in after)))
    return [(name, machine, cloud) for name, machine, cloud in connection.execute(query)]


def _items(connection: Connection, machines: Sequence[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(vault, machine) -> (item, its state), of those that are protected."""
    columns = (ITEMS.c.vault_id, ITEMS.c.machine, ITEMS.c.id, ITEMS.c.state)
    query = sa.select(*columns).where(ITEMS.c.machine.in_(machines), ITEMS.c.enabled == 1)
    return {(row.vault_id, row.machine): (row.id, row.state) for row in connection.execute(query)}


def _ready(connection: Connection, pairs: Sequence[str]) -> dict[tuple[str, str], bool]:
    """(pair, host) -> whether one of its gateways reached the target; hosts never asked are left out."""
    columns = (PAIR_CHECKS.c.pair, PAIR_CHECKS.c.host)
    query = sa.select(*columns, sa.func.max(PAIR_CHECKS.c.ok).label("ok")).group_by(*columns)
    return {
        (row.pair, row.host): bool(row.ok)
        for row in connection.execute(query.where(PAIR_CHECKS.c.pair.in_(pairs)))
    }


def _reasons(cloud: Cloud, host: str, ready: dict[tuple[str, str], bool]) -> Iterator[str]:
    if cloud.pair is None:
        yield f"its cloud {cloud.name} is not paired: `secondsite pair create` says where it goes"
    elif cloud.role == "Target":
        yield f"its cloud {cloud.name} is the target of {cloud.paired_with}"
    elif (cloud.pair, host) not in ready:
        asked = f"its host {host} was not yet asked whether it reaches {cloud.paired_with}"
        yield f"{asked}: `secondsite pair check`"
    elif not ready[cloud.pair, host]:
        yield f"its host {host} does not reach {cloud.paired_with}: `secondsite pair show` says why"
