"""Network and storage mappings of pairs: what there is to map, what a change would do, and the change.

A target that is not at every gateway of the target cloud is refused: what would fail is not offered. Networks
that are not named are attached to nothing; pools that are not named lie in the default pool, where there is
one, else where the gateway's own configuration says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.units import format_bytes
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_inventory import OBJECTS
from secondsite.server.database.tables_mappings import (
    CLOUD_HOSTS,
    CLOUDS,
    PAIR_MAPPINGS,
    PAIR_SIDES,
    PAIRS,
    PLACED,
)
from secondsite.server.inventory.service import Kind as ThingKind
from secondsite.server.mappings.errors import MappingRefused, NotPaired
from secondsite.server.mappings.pairs import find_pair, pairs_of
from secondsite.server.mappings.records import DEFAULT_POOL, Kind, Pair
from secondsite.server.mappings.things import Things, things_of
from secondsite.server.topology.choice import Choice, choose_gateway
from secondsite.transfer.desired import WantedMapping

# Told of a pair (its id) whose mapping was changed, in the transaction of the change.
Changed = Callable[[Connection, str], None]


@dataclass(frozen=True)
class Change:
    """One source, before and after; None: not mapped."""

    source: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Plan:
    """What a change of a mapping would do. notes: what to know before; never a reason against it."""

    pair: Pair
    kind: Kind
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def _nobody(_connection: Connection, _pair: str) -> None:
    """Nobody has to know."""


class Mappings:
    """The mappings of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changed: Changed = _nobody

    def shown(self, vault_id: str, pair: str) -> tuple[Pair, Things]:
        """A pair (by id or either cloud) and what its two clouds have. Raises PairUnknown."""
        with self._database.read() as connection:
            found = find_pair(connection, vault_id, pair)
            return found, things_of(connection, found)

    def plan(self, connection: Connection, pair: Pair, kind: Kind, wanted: Mapping[str, str | None]) -> Plan:
        """What `wanted` (source -> target, None: not mapped) would change. Raises MappingRefused."""
        things = things_of(connection, pair)
        known = mapped(pair, kind)
        changes = tuple(
            Change(source, known.get(source), target)
            for source, target in sorted(wanted.items())
            if known.get(source) != target
        )
        notes = [note for change in changes for note in _judge(pair, kind, things, change)]
        after = {**known, **{change.source: change.after for change in changes}}
        if kind is Kind.POOL:
            notes += _room(things, {source: target for source, target in after.items() if target})
        return Plan(pair, kind, changes, tuple(notes))

    def write(self, connection: Connection, pair: str, kind: Kind, wanted: Mapping[str, str | None]) -> None:
        """Map, by the pair's id, and tell who has to know."""
        mine = (PAIR_MAPPINGS.c.pair == pair, PAIR_MAPPINGS.c.kind == kind.value)
        for source, target in wanted.items():
            connection.execute(sa.delete(PAIR_MAPPINGS).where(*mine, PAIR_MAPPINGS.c.source == source))
            if target is not None:
                row = {"pair": pair, "kind": kind.value, "source": source, "target": target}
                connection.execute(sa.insert(PAIR_MAPPINGS).values(**row))
        self.changed(connection, pair)

    def choose_gateway(self, connection: Connection, machine: str, *, cloud: str | None = None) -> Choice:
        """The gateway for a machine, and why it. cloud: whose, where two sites list it. Raises NoGateway."""
        return choose_gateway(connection, machine, now=self._database.clock.utc(), cloud=cloud)

    def require_pair(self, connection: Connection, choice: Choice) -> Pair:
        """The pair a chosen gateway's machine is replicated with. Raises NotPaired."""
        paired = sa.select(PAIR_SIDES.c.pair).where(PAIR_SIDES.c.cloud == choice.cloud)
        found = pairs_of(connection, PAIRS.c.id.in_(paired))
        if not found or found[0].primary.id != choice.cloud:
            named = find_name(connection, choice.cloud)
            raise NotPaired(cloud=named)
        return found[0]

    def for_pair(
        self, connection: Connection, source_gateway: str, target_gateway: str, machine: str
    ) -> WantedMapping:
        """Where a machine's networks and disks go, from one gateway to another (each by id or name).

        Against the direction of the pair the mapping is read backwards; what two sources share then has no
        one source to go back to, and is not mapped. Gateways of no pair: nothing is mapped.
        """
        source = _clouds_of(connection, source_gateway, machine)
        target = _clouds_of(connection, target_gateway, None)
        sides = PAIRS.c.primary_cloud.in_(source | target)
        for pair in pairs_of(connection, sides):
            if pair.primary.id in source and pair.target.id in target:
                return WantedMapping(networks=pair.networks, pools=pair.pools, default_pool=pair.default_pool)
            if pair.primary.id in target and pair.target.id in source:
                return WantedMapping(networks=_backwards(pair.networks), pools=_backwards(pair.pools))
        return WantedMapping()


def find_name(connection: Connection, cloud: str) -> str:
    """A cloud's name by its id."""
    named = sa.select(CLOUDS.c.name).where(CLOUDS.c.id == cloud)
    return str(connection.execute(named).scalar_one_or_none() or cloud)


def mapped(pair: Pair, kind: Kind) -> dict[str, str]:
    """Source -> target, the default pool by its own name for it."""
    if kind is Kind.NETWORK:
        return pair.networks
    default = {} if pair.default_pool is None else {DEFAULT_POOL: pair.default_pool}
    return {**pair.pools, **default}


def _judge(pair: Pair, kind: Kind, things: Things, change: Change) -> list[str]:
    """Notes on one change. Raises MappingRefused."""
    word = "network" if kind is Kind.NETWORK else "pool"
    sources, targets = things.sources(kind), things.targets(kind)
    notes = []
    if change.source != DEFAULT_POOL and change.source not in sources and change.after is not None:
        names = ", ".join(sorted(sources)) or "none"
        raise _refused(
            pair,
            kind,
            f"{pair.primary.name} has no {word} {change.source!r}",
            f"A mistyped name, or it was removed. There is: {names[:500]}.",
            "See `secondsite mapping` for what there is; have the site read again if it is new.",
        )
    if change.after is None:
        if kind is Kind.NETWORK:
            notes.append(f"{change.source}: adapters on it come up attached to nothing after a failover")
        return notes
    found = targets.get(change.after)
    if found is None:
        names = ", ".join(sorted(targets)) or "none"
        raise _refused(
            pair,
            kind,
            f"{pair.target.name} has no {word} {change.after!r}",
            f"A mistyped name, or it was removed. There is: {names[:500]}.",
            f"Name one of these, or make the {word} at the target and have its site read.",
        )
    if found.missing_at:
        raise _refused(
            pair,
            kind,
            f"the {word} {change.after!r} is not at {', '.join(found.missing_at)}",
            f"A machine may be recovered at any host of {pair.target.name}; there it would have no {word}.",
            f"Make the {word} there too, under the same name, or choose one that is at every host.",
        )
    if not found.active:
        notes.append(f"{change.after} is not active at the target now")
    others = sorted(source for source in found.used_by if source != change.source)
    if others and kind is Kind.NETWORK:
        notes.append(f"{change.after} is used by {', '.join(others)} already: their machines will share it")
    return notes


def _room(things: Things, after: Mapping[str, str]) -> list[str]:
    """Where what is mapped to a pool does not fit into what is free there."""
    needed: dict[str, int] = {}
    for name, source in things.sources(Kind.POOL).items():
        target = after.get(name, after.get(DEFAULT_POOL))
        if target is not None:
            needed[target] = needed.get(target, 0) + source.disk_bytes
    targets = things.targets(Kind.POOL)
    return [
        f"{name} has {format_bytes(targets[name].free_bytes)} free at its fullest host; the disks that would "
        f"go there have {format_bytes(size)} in all"
        for name, size in sorted(needed.items())
        if name in targets and size > targets[name].free_bytes
    ]


def _refused(pair: Pair, kind: Kind, why: str, cause: str, action: str) -> MappingRefused:
    names = {"primary": pair.primary.name, "target": pair.target.name}
    return MappingRefused(kind=kind.value, why=why, cause=cause, action=action, **names)


def _backwards(mapping: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for source, target in mapping.items():
        found.setdefault(target, []).append(source)
    return {target: sources[0] for target, sources in found.items() if len(sources) == 1}


def _clouds_of(connection: Connection, gateway: str, machine: str | None) -> set[str]:
    """The clouds of a gateway's hosts; where it tells of the machine, the machine's cloud alone."""
    gateway = _id_of(connection, gateway)
    if machine is not None:
        this = (PLACED.c.gateway == gateway, PLACED.c.machine == machine)
        placed = connection.execute(sa.select(PLACED.c.cloud).where(*this)).scalar_one_or_none()
        if placed is not None:
            return {placed}
    listed = sa.and_(
        OBJECTS.c.kind == ThingKind.HOST.value,
        OBJECTS.c.id == CLOUD_HOSTS.c.host,
        OBJECTS.c.gateway == gateway,
    )
    joined = CLOUD_HOSTS.join(OBJECTS, listed)
    mine = joined.join(
        gateways, sa.and_(gateways.c.id == gateway, gateways.c.vault_id == CLOUD_HOSTS.c.vault_id)
    )
    return set(connection.execute(sa.select(CLOUD_HOSTS.c.cloud).select_from(mine)).scalars())


def _id_of(connection: Connection, gateway: str) -> str:
    """A gateway's id by its name; anything else as it is."""
    named = sa.select(gateways.c.id).where(gateways.c.name == gateway)
    return str(connection.execute(named).scalar_one_or_none() or gateway)
