"""What the clouds of a pair have to be mapped: networks with their subnets, pools with their room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.machines import Machine, Network, Pool
from secondsite.server.database.tables_inventory import OBJECTS
from secondsite.server.database.tables_mappings import PLACED
from secondsite.server.inventory.service import Kind as ThingKind
from secondsite.server.mappings.records import DEFAULT_POOL, Kind, Pair
from secondsite.server.topology.records import Cloud

T = TypeVar("T", Network, Pool)


@dataclass(frozen=True)
class SourceThing:
    """A network or pool of the primary cloud."""

    name: str
    subnets: tuple[str, ...] = ()  # of a network
    active: bool = True
    machines: tuple[str, ...] = ()  # names of those that are attached to it, or have disks in it
    disk_bytes: int = 0  # of a pool: the disks that lie in it


@dataclass(frozen=True)
class TargetThing:
    """A network or pool of the target cloud."""

    name: str
    subnets: tuple[str, ...] = ()
    active: bool = True
    isolated: bool = False
    missing_at: tuple[str, ...] = ()  # gateways of the target cloud that have none of this name
    used_by: tuple[str, ...] = ()  # sources of the pair that are mapped to it; "": the default of pools
    free_bytes: int = 0  # of a pool, where there is least
    capacity_bytes: int = 0


@dataclass(frozen=True)
class Things:
    """Of both clouds of a pair, by name."""

    source_networks: dict[str, SourceThing]
    source_pools: dict[str, SourceThing]
    target_networks: dict[str, TargetThing]
    target_pools: dict[str, TargetThing]

    def sources(self, kind: Kind) -> dict[str, SourceThing]:
        """What may be mapped."""
        return self.source_networks if kind is Kind.NETWORK else self.source_pools

    def targets(self, kind: Kind) -> dict[str, TargetThing]:
        """What it may be mapped to."""
        return self.target_networks if kind is Kind.NETWORK else self.target_pools


def things_of(connection: Connection, pair: Pair) -> Things:
    """What both clouds of a pair have, as their gateways last told."""
    machines = list(_machines(connection, pair.primary))
    networks = _told(connection, pair.primary, ThingKind.NETWORK, Network)
    pools = _told(connection, pair.primary, ThingKind.POOL, Pool)
    sources = {name: _source_network(name, [n for _, n in told], machines) for name, told in networks.items()}
    return Things(
        source_networks=sources,
        source_pools={
            name: _source_pool(name, [p for _, p in told], machines) for name, told in pools.items()
        },
        target_networks=_target_networks(connection, pair),
        target_pools=_target_pools(connection, pair),
    )


def _source_network(name: str, told: Sequence[Network], machines: Sequence[Machine]) -> SourceThing:
    attached = {machine.name for machine in machines if any(nic.network == name for nic in machine.nics)}
    return SourceThing(
        name,
        subnets=_subnets(told),
        active=any(network.active for network in told),
        machines=tuple(sorted(attached)),
    )


def _source_pool(name: str, told: Sequence[Pool], machines: Sequence[Machine]) -> SourceThing:
    inside = [(machine, disk) for machine in machines for disk in machine.disks if disk.pool == name]
    return SourceThing(
        name,
        active=any(pool.active for pool in told),
        machines=tuple(sorted({machine.name for machine, _ in inside})),
        disk_bytes=sum(disk.size_bytes for _, disk in inside),
    )


def _target_networks(connection: Connection, pair: Pair) -> dict[str, TargetThing]:
    return {
        name: TargetThing(
            name,
            subnets=_subnets([network for _, network in told]),
            active=all(network.active for _, network in told),
            isolated=all(network.isolated for _, network in told),
            missing_at=_missing(pair.target, [gateway for gateway, _ in told]),
            used_by=tuple(sorted(source for source, to in pair.networks.items() if to == name)),
        )
        for name, told in _told(connection, pair.target, ThingKind.NETWORK, Network).items()
    }


def _target_pools(connection: Connection, pair: Pair) -> dict[str, TargetThing]:
    mapped = {**pair.pools, **({} if pair.default_pool is None else {DEFAULT_POOL: pair.default_pool})}
    return {
        name: TargetThing(
            name,
            active=all(pool.active for _, pool in told),
            missing_at=_missing(pair.target, [gateway for gateway, _ in told]),
            used_by=tuple(sorted(source for source, to in mapped.items() if to == name)),
            free_bytes=min(pool.free_bytes for _, pool in told),
            capacity_bytes=min(pool.capacity_bytes for _, pool in told),
        )
        for name, told in _told(connection, pair.target, ThingKind.POOL, Pool).items()
    }


def _missing(cloud: Cloud, at: Sequence[str]) -> tuple[str, ...]:
    return tuple(gateway.name for gateway in cloud.gateways if gateway.id not in at)


def _subnets(told: Sequence[Network]) -> tuple[str, ...]:
    return tuple(sorted({subnet for network in told for subnet in network.subnets}))


def _told(
    connection: Connection, cloud: Cloud, kind: ThingKind, form: type[T]
) -> dict[str, list[tuple[str, T]]]:
    """name -> what each gateway (its id) of the cloud told of it"""
    these = (
        OBJECTS.c.kind == kind.value,
        OBJECTS.c.gone_since.is_(None),
        OBJECTS.c.gateway.in_([gateway.id for gateway in cloud.gateways]),
    )
    query = sa.select(OBJECTS.c.gateway, OBJECTS.c.name, OBJECTS.c.detail).where(*these)
    found: dict[str, list[tuple[str, T]]] = {}
    for row in connection.execute(query.order_by(OBJECTS.c.sort_key, OBJECTS.c.gateway)):
        found.setdefault(row.name, []).append((row.gateway, msgspec.json.decode(row.detail, type=form)))
    return found


def _machines(connection: Connection, cloud: Cloud) -> Iterator[Machine]:
    """Each machine of a cloud once."""
    here = sa.and_(
        OBJECTS.c.gateway == PLACED.c.gateway,
        OBJECTS.c.id == PLACED.c.machine,
        OBJECTS.c.kind == ThingKind.MACHINE.value,
        OBJECTS.c.gone_since.is_(None),
    )
    query = sa.select(OBJECTS.c.id, OBJECTS.c.detail).select_from(PLACED.join(OBJECTS, here))
    seen = set()
    for row in connection.execute(query.where(PLACED.c.cloud == cloud.id).order_by(OBJECTS.c.gateway)):
        if row.id not in seen:
            seen.add(row.id)
            yield msgspec.json.decode(row.detail, type=Machine)
