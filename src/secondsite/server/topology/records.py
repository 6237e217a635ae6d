"""Sites and clouds as readers see them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.server.database.tables_identity import gateways, vaults
from secondsite.server.database.tables_inventory import OBJECTS
from secondsite.server.database.tables_mappings import CLOUD_HOSTS, CLOUDS, PAIR_SIDES, PAIRS, PLACED
from secondsite.server.database.values import from_moment
from secondsite.server.identity.states import GatewayState
from secondsite.server.inventory.service import Kind
from secondsite.server.topology.errors import CloudUnknown, SiteUnknown
from secondsite.server.topology.placing import key_of


@dataclass(frozen=True)
class GatewayOf:
    """A gateway as clouds name it."""

    id: str
    name: str


@dataclass(frozen=True)
class CloudHost:
    """A host of a cloud, and the registered gateways that tell of it."""

    name: str
    gateways: tuple[GatewayOf, ...]


@dataclass(frozen=True)
class Cloud:
    """Hosts of one site between which machines move."""

    id: str
    vault_id: str
    name: str
    site: str
    site_key: str
    published: bool
    default_of: str | None  # the id of the gateway it was made for
    created_at: dt.datetime
    hosts: tuple[CloudHost, ...]
    machines: int
    pair: str | None  # the pair's id
    role: str  # "Primary" or "Target" in it; "" without one
    paired_with: str  # the other cloud's name

    @property
    def gateways(self) -> tuple[GatewayOf, ...]:
        """Every gateway that tells of a host of it, by name, once."""
        found = {gateway.id: gateway for host in self.hosts for gateway in host.gateways}
        return tuple(sorted(found.values(), key=lambda gateway: gateway.name))


@dataclass(frozen=True)
class Site:
    """Where gateways are: a fabric, in the field's words."""

    name: str
    key: str
    gateways: tuple[str, ...]
    clouds: tuple[str, ...]


def sites_of(connection: Connection, vault_id: str) -> list[Site]:
    """The sites of a vault: where its gateways are, let go or not."""
    rows = connection.execute(
        sa.select(gateways.c.name, gateways.c.site)
        .where(gateways.c.vault_id == vault_id)
        .order_by(gateways.c.registered_at)
    ).all()
    names: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(key_of(row.site), row.site)
        members.setdefault(key_of(row.site), []).append(row.name)
    clouds: dict[str, list[str]] = {}
    for row in connection.execute(sa.select(CLOUDS).where(CLOUDS.c.vault_id == vault_id)):
        clouds.setdefault(row.site_key, []).append(row.name)
    return [
        Site(names[key], key, tuple(sorted(members[key])), tuple(sorted(clouds.get(key, ()))))
        for key in sorted(names)
    ]


def find_cloud(connection: Connection, vault_id: str, cloud: str) -> Cloud:
    """By id or name. Raises CloudUnknown."""
    for condition in (CLOUDS.c.id == cloud, CLOUDS.c.name_key == key_of(cloud)):
        found = clouds_of(connection, sa.and_(CLOUDS.c.vault_id == vault_id, condition))
        if found:
            return found[0]
    named = sa.select(vaults.c.friendly_name).where(vaults.c.id == vault_id)
    vault = connection.execute(named).scalar_one_or_none()
    raise CloudUnknown(cloud=cloud[:100], vault=vault or vault_id)


def clouds_of(connection: Connection, condition: sa.ColumnElement[bool]) -> list[Cloud]:
    """The clouds a condition on `CLOUDS` names, by name."""
    rows = connection.execute(sa.select(CLOUDS).where(condition)).all()
    hosts = _hosts_of(connection, [row.id for row in rows])
    counted = sa.select(PLACED.c.cloud, sa.func.count(sa.distinct(PLACED.c.machine))).group_by(PLACED.c.cloud)
    machines = {cloud: number for cloud, number in connection.execute(counted)}  # noqa: C416
    pairs = _pairs_of(connection)
    made = [_cloud(row, hosts.get(row.id, ()), machines.get(row.id, 0), pairs.get(row.id)) for row in rows]
    return sorted(made, key=lambda cloud: key_of(cloud.name))


def _cloud(
    row: Row[tuple[object, ...]],
    hosts: tuple[CloudHost, ...],
    machines: int,
    pair: tuple[str, str, str] | None,
) -> Cloud:
    return Cloud(
        id=row.id,
        vault_id=row.vault_id,
        name=row.name,
        site=row.site,
        site_key=row.site_key,
        published=bool(row.published),
        default_of=row.default_of,
        created_at=from_moment(row.created_at),
        hosts=hosts,
        machines=machines,
        pair=pair[0] if pair else None,
        role=pair[1] if pair else "",
        paired_with=pair[2] if pair else "",
    )


def _hosts_of(connection: Connection, clouds: Sequence[str]) -> dict[str, tuple[CloudHost, ...]]:
    listed = sa.and_(
        OBJECTS.c.kind == Kind.HOST.value,
        OBJECTS.c.id == CLOUD_HOSTS.c.host,
        OBJECTS.c.gone_since.is_(None),
    )
    registered = sa.and_(
        gateways.c.id == OBJECTS.c.gateway,
        gateways.c.vault_id == CLOUD_HOSTS.c.vault_id,
        gateways.c.state == GatewayState.REGISTERED.value,
    )
    joined = CLOUD_HOSTS.outerjoin(OBJECTS, listed).outerjoin(gateways, registered)
    columns = (CLOUD_HOSTS.c.cloud, CLOUD_HOSTS.c.host, CLOUD_HOSTS.c.site_key)
    query = sa.select(*columns, gateways.c.id, gateways.c.name, gateways.c.site).select_from(joined)
    found: dict[str, dict[str, list[GatewayOf]]] = {}
    for row in connection.execute(query.where(CLOUD_HOSTS.c.cloud.in_(clouds))):
        tellers = found.setdefault(row.cloud, {}).setdefault(row.host, [])
        # two sites may have hosts of one name
        if row.id is not None and key_of(row.site) == row.site_key:
            tellers.append(GatewayOf(row.id, row.name))
    return {
        cloud: tuple(
            CloudHost(host, tuple(sorted(tellers, key=lambda gateway: gateway.name)))
            for host, tellers in sorted(hosts.items())
        )
        for cloud, hosts in found.items()
    }


def _pairs_of(connection: Connection) -> dict[str, tuple[str, str, str]]:
    """cloud -> (pair, its role there, the other cloud's name)"""
    primary, target = CLOUDS.alias("primary_side"), CLOUDS.alias("target_side")
    joined = (
        PAIR_SIDES.join(PAIRS, PAIRS.c.id == PAIR_SIDES.c.pair)
        .join(primary, primary.c.id == PAIRS.c.primary_cloud)
        .join(target, target.c.id == PAIRS.c.target_cloud)
    )
    columns = (PAIR_SIDES.c.cloud, PAIRS.c.id, PAIRS.c.primary_cloud)
    query = sa.select(*columns, primary.c.name.label("first"), target.c.name.label("second"))
    found = {}
    for row in connection.execute(query.select_from(joined)):
        first = row.cloud == row.primary_cloud
        found[row.cloud] = (row.id, "Primary" if first else "Target", row.second if first else row.first)
    return found


def find_site(connection: Connection, vault_id: str, site: str) -> Site:
    """By name. Raises SiteUnknown."""
    for found in sites_of(connection, vault_id):
        if found.key == key_of(site):
            return found
    named = sa.select(vaults.c.friendly_name).where(vaults.c.id == vault_id)
    raise SiteUnknown(site=site[:100], vault=connection.execute(named).scalar_one_or_none() or vault_id)
