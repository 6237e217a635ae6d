"""Puts hosts and machines into clouds as inventories come in, so that a small set-up needs nothing done.

A gateway has a cloud of its own from its enrolment on. A host that a gateway tells of and that is in no cloud
goes there; a machine is in its host's cloud. What runs on hosts of a cloud that is not published is left out
of the inventory before anything of it is kept.
"""

from __future__ import annotations

import datetime as dt
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_inventory import OBJECTS, READS
from secondsite.server.database.tables_mappings import CLOUD_HOSTS, CLOUDS, PLACED
from secondsite.server.database.values import fresh_id, moment
from secondsite.server.inventory.service import Kind, Told


@dataclass(frozen=True)
class _Home:
    """A gateway's place, and the cloud that was made for it."""

    gateway: str
    vault_id: str
    site_key: str
    cloud: str


def key_of(name: str) -> str:
    """What names of clouds and sites are compared by."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def enrolled(connection: Connection, clock: Clock, gateway: str, *, published: bool) -> None:
    """A gateway enrolled: it has a cloud of its own. published: of one that is new."""
    _home(connection, clock, gateway, published=published)


def admit(connection: Connection, clock: Clock, gateway: str, told: Told) -> Told:
    """Place what a gateway told, and give what of it is to be kept.

    Of a gateway that is not known (any more) nothing is placed, and all is kept.
    """
    home = _home(connection, clock, gateway, published=True)
    if home is None:
        return told
    names = {host.name for host in told.hosts} | {machine.host for machine in told.machines}
    clouds = _clouds_of(connection, home, names)
    published = set(
        connection.execute(
            sa.select(CLOUDS.c.id).where(CLOUDS.c.vault_id == home.vault_id, CLOUDS.c.published == 1)
        ).scalars()
    )
    kept = tuple(machine for machine in told.machines if clouds[machine.host] in published)
    _place(connection, gateway, {machine.id: (machine.host, clouds[machine.host]) for machine in kept})
    return msgspec.structs.replace(told, machines=kept)


def read_again(connection: Connection, gateway_ids: Iterable[str]) -> None:
    """Have the sites of these gateways read with the next look, which is seconds away."""
    long_ago = moment(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
    these = READS.c.gateway.in_(list(gateway_ids))
    connection.execute(sa.update(READS).where(these).values(begun_at=long_ago))


def _home(connection: Connection, clock: Clock, gateway: str, *, published: bool) -> _Home | None:
    row = connection.execute(sa.select(gateways).where(gateways.c.id == gateway)).one_or_none()
    if row is None:
        return None
    site_key = key_of(row.site)
    found = connection.execute(sa.select(CLOUDS).where(CLOUDS.c.default_of == gateway)).one_or_none()
    if found is not None and found.site_key == site_key:
        return _Home(gateway, row.vault_id, site_key, found.id)
    if found is not None:  # enrolled again, at another site
        this = sa.update(CLOUDS).where(CLOUDS.c.id == found.id)
        connection.execute(this.values(site=row.site, site_key=site_key))
        connection.execute(sa.delete(CLOUD_HOSTS).where(CLOUD_HOSTS.c.cloud == found.id))
        return _Home(gateway, row.vault_id, site_key, found.id)
    cloud = fresh_id(clock)
    name = _free_name(connection, row.vault_id, row.name)
    connection.execute(
        sa.insert(CLOUDS).values(
            id=cloud,
            vault_id=row.vault_id,
            name=name,
            name_key=key_of(name),
            site=row.site,
            site_key=site_key,
            published=int(published),
            default_of=gateway,
            created_at=moment(clock.utc()),
        )
    )
    return _Home(gateway, row.vault_id, site_key, cloud)


def _free_name(connection: Connection, vault_id: str, name: str) -> str:
    """The gateway's name, or the first free one that begins with it."""
    taken = set(
        connection.execute(sa.select(CLOUDS.c.name_key).where(CLOUDS.c.vault_id == vault_id)).scalars()
    )
    number, candidate = 1, name
    while key_of(candidate) in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate


def _clouds_of(connection: Connection, home: _Home, hosts: set[str]) -> dict[str, str]:
    """The cloud of each host; those that are in none go into the gateway's own."""
    here = (CLOUD_HOSTS.c.vault_id == home.vault_id, CLOUD_HOSTS.c.site_key == home.site_key)
    known = {row.host: row.cloud for row in connection.execute(sa.select(CLOUD_HOSTS).where(*here))}
    listed = sa.select(OBJECTS.c.id).where(OBJECTS.c.kind == Kind.HOST.value)
    # a host that was renamed, or removed for long, is nowhere any more
    gone = (CLOUD_HOSTS.c.cloud == home.cloud, CLOUD_HOSTS.c.host.not_in(listed))
    for host in connection.execute(sa.select(CLOUD_HOSTS.c.host).where(*gone)).scalars().all():
        if host not in hosts:
            connection.execute(sa.delete(CLOUD_HOSTS).where(*here, CLOUD_HOSTS.c.host == host))
    new = [
        {"vault_id": home.vault_id, "site_key": home.site_key, "host": host, "cloud": home.cloud}
        for host in sorted(hosts - set(known))
    ]
    if new:
        connection.execute(sa.insert(CLOUD_HOSTS), new)
    return {**dict.fromkeys(hosts, home.cloud), **known}


def _place(connection: Connection, gateway: str, wanted: Mapping[str, tuple[str, str]]) -> None:
    """Write which machines a gateway tells of; only what changed is written."""
    mine = PLACED.c.gateway == gateway
    known = {row.machine: (row.host, row.cloud) for row in connection.execute(sa.select(PLACED).where(mine))}
    changed = {machine: place for machine, place in wanted.items() if known.get(machine) != place}
    old = [{"the_machine": machine} for machine in known if machine not in wanted or machine in changed]
    if old:
        connection.execute(
            sa.delete(PLACED).where(mine, PLACED.c.machine == sa.bindparam("the_machine")), old
        )
    if changed:
        rows = [
            {"gateway": gateway, "machine": machine, "host": host, "cloud": cloud}
            for machine, (host, cloud) in changed.items()
        ]
        connection.execute(sa.insert(PLACED), rows)
