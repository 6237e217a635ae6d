"""Clouds as people arrange them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_inventory import OBJECTS
from secondsite.server.database.tables_mappings import CLOUD_HOSTS, CLOUDS, PLACED
from secondsite.server.database.values import fresh_id, moment
from secondsite.server.identity.vaults import Note, friendly_name, no_note
from secondsite.server.inventory.service import Kind
from secondsite.server.topology.errors import (
    CloudEmpty,
    CloudInUse,
    CloudKept,
    CloudNameTaken,
    CloudPaired,
    HostUnknown,
)
from secondsite.server.topology.placing import key_of, read_again
from secondsite.server.topology.records import Cloud, Site, clouds_of, find_cloud, find_site, sites_of

# What needs a cloud as it is: gives a phrase like "3 machines of it are protected", or an empty one.
CloudUse = Callable[[Connection, str], str]


@dataclass(frozen=True)
class NewCloud:
    """A cloud to make: its hosts leave the clouds they are in."""

    name: str
    site: str
    hosts: Sequence[str]
    published: bool = True


class Clouds:
    """The clouds of every vault of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._uses: list[CloudUse] = []

    def watch(self, use: CloudUse) -> None:
        """Another area's say in whether a cloud may go out of sight."""
        self._uses.append(use)

    def sites(self, vault_id: str) -> list[Site]:
        """A vault's sites, by name."""
        with self._database.read() as connection:
            return sites_of(connection, vault_id)

    def list(self, vault_id: str) -> list[Cloud]:
        """A vault's clouds, by name."""
        with self._database.read() as connection:
            return clouds_of(connection, CLOUDS.c.vault_id == vault_id)

    def get(self, vault_id: str, cloud: str) -> Cloud:
        """By name or id. Raises CloudUnknown."""
        with self._database.read() as connection:
            return find_cloud(connection, vault_id, cloud)

    def create(self, vault_id: str, new: NewCloud, *, note: Note = no_note) -> Cloud:
        """Make a cloud of hosts of one site.

        Raises SiteUnknown, HostUnknown, CloudNameTaken, CloudPaired, CloudEmpty or InvalidInput.
        """
        name = friendly_name(new.name, "the cloud's name")

        def work(connection: Connection) -> Cloud:
            site = find_site(connection, vault_id, new.site)
            if not new.hosts:
                raise CloudEmpty(name=name)
            _check_name(connection, vault_id, name, "")
            made = fresh_id(self._database.clock)
            connection.execute(
                sa.insert(CLOUDS).values(
                    id=made,
                    vault_id=vault_id,
                    name=name,
                    name_key=key_of(name),
                    site=site.name,
                    site_key=site.key,
                    published=int(new.published),
                    created_at=moment(self._database.clock.utc()),
                )
            )
            self._move_hosts(connection, vault_id, site, made, new)
            note(connection, vault_id, name)
            return find_cloud(connection, vault_id, made)

        return self._database.run(work)

    def change(
        self,
        vault_id: str,
        cloud: str,
        *,
        name: str | None = None,
        published: bool | None = None,
        note: Note = no_note,
    ) -> Cloud:
        """Rename or publish, or take out of sight again.

        Raises CloudUnknown, CloudNameTaken, CloudPaired or CloudInUse.
        """

        def work(connection: Connection) -> Cloud:
            found = find_cloud(connection, vault_id, cloud)
            values: dict[str, object] = {}
            if name is not None:
                wanted = friendly_name(name, "the cloud's name")
                _check_name(connection, vault_id, wanted, found.id)
                values |= {"name": wanted, "name_key": key_of(wanted)}
            if published is not None and published is not found.published:
                values["published"] = int(published)
                if not published:
                    self._hide(connection, found)
            if values:
                connection.execute(sa.update(CLOUDS).where(CLOUDS.c.id == found.id).values(**values))
            if "published" in values:
                read_again(connection, [gateway.id for gateway in found.gateways])
            note(connection, vault_id, found.name)
            return find_cloud(connection, vault_id, found.id)

        return self._database.run(work)

    def delete(self, vault_id: str, cloud: str, *, note: Note = no_note) -> Cloud:
        """Give a cloud's hosts back to those of their gateways.

        Raises CloudUnknown, CloudKept, CloudPaired or CloudInUse.
        """

        def work(connection: Connection) -> Cloud:
            found = find_cloud(connection, vault_id, cloud)
            if found.default_of is not None:
                raise CloudKept(name=found.name, gateway=_name_of(connection, found.default_of))
            self._check_free(connection, found, "deleted")
            connection.execute(sa.delete(CLOUDS).where(CLOUDS.c.id == found.id))
            read_again(connection, [gateway.id for gateway in found.gateways])
            note(connection, vault_id, found.name)
            return found

        return self._database.run(work)

    def _move_hosts(
        self, connection: Connection, vault_id: str, site: Site, cloud: str, new: NewCloud
    ) -> None:
        here = (CLOUD_HOSTS.c.vault_id == vault_id, CLOUD_HOSTS.c.site_key == site.key)
        known = {row.host: row.cloud for row in connection.execute(sa.select(CLOUD_HOSTS).where(*here))}
        for host in dict.fromkeys(new.hosts):
            if host not in known:
                names = ", ".join(sorted(known)) or "none"
                raise HostUnknown(host=host[:100], site=site.name, known=names[:500])
            before = find_cloud(connection, vault_id, known[host])
            self._check_free(connection, before, f"changed (its host {host} would leave it)")
            this = (*here, CLOUD_HOSTS.c.host == host)
            connection.execute(sa.update(CLOUD_HOSTS).where(*this).values(cloud=cloud))
            placed = (PLACED.c.host == host, PLACED.c.cloud == before.id)
            connection.execute(sa.update(PLACED).where(*placed).values(cloud=cloud))
            read_again(connection, [gateway.id for gateway in before.gateways])

    def _hide(self, connection: Connection, found: Cloud) -> None:
        self._check_free(connection, found, "taken out of sight")
        machines = sa.select(PLACED.c.machine).where(PLACED.c.cloud == found.id)
        told = [gateway.id for gateway in found.gateways]
        these = (
            OBJECTS.c.kind == Kind.MACHINE.value,
            OBJECTS.c.gateway.in_(told),
            OBJECTS.c.id.in_(machines),
        )
        # what is not published is not kept, rather than marked as gone for a month
        connection.execute(sa.delete(OBJECTS).where(*these))
        connection.execute(sa.delete(PLACED).where(PLACED.c.cloud == found.id))

    def _check_free(self, connection: Connection, found: Cloud, what: str) -> None:
        if found.pair is not None:
            raise CloudPaired(name=found.name, what=what, other=found.paired_with)
        uses = [phrase for use in self._uses if (phrase := use(connection, found.id))]
        if uses:
            raise CloudInUse(name=found.name, what=what, uses=" and ".join(uses))


def _check_name(connection: Connection, vault_id: str, name: str, own: str) -> None:
    taken = sa.select(CLOUDS.c.name).where(
        CLOUDS.c.vault_id == vault_id, CLOUDS.c.name_key == key_of(name), CLOUDS.c.id != own
    )
    found = connection.execute(taken).scalar_one_or_none()
    if found is not None:
        raise CloudNameTaken(name=found)


def _name_of(connection: Connection, gateway: str) -> str:
    named = sa.select(gateways.c.name).where(gateways.c.id == gateway)
    return str(connection.execute(named).scalar_one_or_none() or gateway)
