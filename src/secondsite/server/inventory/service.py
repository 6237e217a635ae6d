"""Keeps what gateways tell of their sites, and lists it.

An inventory is taken whole: what it does not name any more is marked as gone, kept for a while (a protected
machine may be missing because its host is), then dropped.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.model.ids import machine_id
from secondsite.model.machines import Host, Machine, Network, Pool
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_inventory import OBJECTS, READS
from secondsite.server.database.values import from_moment, moment

GONE_KEPT = dt.timedelta(days=30)
# More than a site's hypervisors carry together; a hundred thousand objects are 50 MB of JSON.
OBJECTS_MAX = 100_000
NAME_CHARACTERS_MAX = 255


class Kind(enum.StrEnum):
    """What an inventory lists."""

    HOST = "host"
    MACHINE = "machine"
    NETWORK = "network"
    POOL = "pool"


class InventoryRefused(SecondsiteError):
    """A gateway told what cannot be."""

    code = "inventory.refused"
    outcome = Outcome.FAILED
    happened = "The inventory of gateway {gateway} was not taken: {why}."
    cause = "The gateway is of another version, or its hypervisor reports what no machine can have."
    action = (
        "Compare `secondsite --version` at both ends; look at `secondsite inventory` on the gateway itself."
    )


class ObjectUnknown(SecondsiteError):
    """Nothing of that name."""

    code = "inventory.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no {kind} {id} at the site of gateway {gateway}."
    cause = "It was removed there, or the site was not read since it was made."
    action = "Read the site again (refresh), and look at the listing."


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """An inventory as a gateway's control API tells it."""

    hosts: tuple[Host, ...] = ()
    machines: tuple[Machine, ...] = ()
    networks: tuple[Network, ...] = ()
    pools: tuple[Pool, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One thing of a site."""

    gateway: str
    kind: Kind
    id: str
    name: str
    detail: str  # JSON
    seen_first: dt.datetime
    gone_since: dt.datetime | None


@dataclass(frozen=True)
class Changes:
    """What an inventory changed, by number."""

    appeared: int = 0
    changed: int = 0
    gone: int = 0


@dataclass(frozen=True)
class LastRead:
    """When a site was asked last, and whether it told."""

    begun_at: dt.datetime
    read_at: dt.datetime | None
    problem: dict[str, object] | None


@dataclass(frozen=True)
class Search:
    """What a listing is limited to."""

    kind: Kind
    gateways: Collection[str]
    name_contains: str = ""
    with_gone: bool = False


# (transaction, gateway's id, what it told) -> what of it is kept
Admit = Callable[[Connection, str, "Told"], "Told"]


def _all(_connection: Connection, _gateway: str, told: Told) -> Told:
    return told


def parse_told(gateway: str, text: str) -> Told:
    """Check what a gateway told. Raises InventoryRefused."""
    try:
        told = msgspec.json.decode(text, type=Told)
    except JSON_ERRORS as error:
        raise InventoryRefused(gateway=gateway, why=str(error)) from None
    rows = list(_rows(told))
    if len(rows) > OBJECTS_MAX:
        raise InventoryRefused(gateway=gateway, why=f"it names {len(rows)} things, more than {OBJECTS_MAX}")
    for kind, identity, name, _ in rows:
        # PostgreSQL keeps no NUL in a text
        if not 0 < len(name) <= NAME_CHARACTERS_MAX or "\0" in name:
            raise InventoryRefused(gateway=gateway, why=f"a {kind.value} has the name {name[:40]!r}")
        if kind is Kind.MACHINE and machine_id(identity) != identity:
            raise InventoryRefused(gateway=gateway, why=f"a machine has the id {identity[:40]!r}")
    keys = [(kind, identity) for kind, identity, _, _ in rows]
    if len(set(keys)) != len(keys):
        raise InventoryRefused(gateway=gateway, why="it names a thing twice")
    return told


def _rows(told: Told) -> Iterator[tuple[Kind, str, str, str]]:
    """(kind, id, name, detail)"""
    for machine in told.machines:
        yield Kind.MACHINE, machine.id, machine.name, _json(machine)
    for kind, things in ((Kind.HOST, told.hosts), (Kind.NETWORK, told.networks), (Kind.POOL, told.pools)):
        for thing in things:
            yield kind, thing.name, thing.name, _json(thing)


def _json(value: Host | Machine | Network | Pool) -> str:
    return msgspec.json.encode(value).decode()


class Inventories:
    """The inventories in one database. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.admit: Admit = _all  # asked in the transaction that takes an inventory

    def due(self, gateway: str, *, seconds: float) -> bool:
        """Whether the site was not asked for so long: then the caller asks, and no other server."""
        now = self._database.clock.utc()
        edge = moment(now - dt.timedelta(seconds=seconds))

        def take(connection: Connection) -> bool:
            row = connection.execute(
                sa.select(READS.c.begun_at).where(READS.c.gateway == gateway)
            ).one_or_none()
            if row is None:
                connection.execute(sa.insert(READS).values(gateway=gateway, begun_at=moment(now)))
                return True
            if row.begun_at > edge:
                return False
            mine = sa.update(READS).where(READS.c.gateway == gateway)
            connection.execute(mine.values(begun_at=moment(now)))
            return True

        return self._database.run(take)

    def record(self, gateway: str, told: Told) -> Changes:
        """Take an inventory: whole, or nothing of it."""
        now = self._database.now()

        def write(connection: Connection) -> Changes:
            changes = _merge(connection, gateway, self.admit(connection, gateway, told), now)
            _note(connection, gateway, {"begun_at": now, "read_at": now, "problem": None})
            return changes

        return self._database.run(write)

    def failed(self, gateway: str, error: SecondsiteError) -> None:
        """Keep why a site could not be read."""
        problem = msgspec.json.encode(error.as_dict()).decode()
        now = self._database.now()
        self._database.run(
            lambda connection: _note(connection, gateway, {"begun_at": now, "problem": problem})
        )

    def last_read(self, gateway: str) -> LastRead | None:
        """When it was read last; None: never asked."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(READS).where(READS.c.gateway == gateway)).one_or_none()
        if row is None:
            return None
        return LastRead(
            begun_at=from_moment(row.begun_at),
            read_at=None if row.read_at is None else from_moment(row.read_at),
            problem=None if row.problem is None else msgspec.json.decode(row.problem, type=dict[str, object]),
        )

    def find(self, gateway: str, kind: Kind, identity: str) -> Entry:
        """One thing. Raises ObjectUnknown, also for what is gone."""
        mine = (OBJECTS.c.gateway == gateway, OBJECTS.c.kind == kind.value, OBJECTS.c.id == identity)
        with self._database.read() as connection:
            row = connection.execute(sa.select(OBJECTS).where(*mine)).one_or_none()
        if row is None or row.gone_since is not None:
            raise ObjectUnknown(kind=kind.value, id=identity, gateway=gateway)
        return _entry(row)

    def list(self, search: Search, *, after: tuple[str, str, str] | None, limit: int) -> list[Entry]:
        """A page by name, gateway and id. after: the last entry's (`sort_key_of` its name, gateway, id)."""
        order = (OBJECTS.c.sort_key, OBJECTS.c.gateway, OBJECTS.c.id)
        query = (
            sa.select(OBJECTS)
            .where(OBJECTS.c.kind == search.kind.value, OBJECTS.c.gateway.in_(search.gateways))
            .order_by(*order)
            .limit(limit)
        )
        if not search.with_gone:
            query = query.where(OBJECTS.c.gone_since.is_(None))
        if search.name_contains:
            query = query.where(
                OBJECTS.c.sort_key.contains(sort_key_of(search.name_contains), autoescape=True)
            )
        if after is not None:
            query = query.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(part) for part in after)))
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def forget(self, gateway: str) -> None:
        """Drop a gateway's site, with the gateway."""
        with self._database.write() as connection:
            connection.execute(sa.delete(OBJECTS).where(OBJECTS.c.gateway == gateway))
            connection.execute(sa.delete(READS).where(READS.c.gateway == gateway))

    def tidy(self) -> int:
        """Drop what has been gone for long; returns how many."""
        edge = moment(self._database.clock.utc() - GONE_KEPT)
        with self._database.write() as connection:
            return connection.execute(sa.delete(OBJECTS).where(OBJECTS.c.gone_since < edge)).rowcount


def sort_key_of(name: str) -> str:
    """What names are sorted and searched by."""
    return name.casefold()


def _note(connection: Connection, gateway: str, values: dict[str, str | None]) -> None:
    found = connection.execute(sa.update(READS).where(READS.c.gateway == gateway).values(**values))
    if not found.rowcount:
        connection.execute(sa.insert(READS).values(gateway=gateway, **values))


def _merge(connection: Connection, gateway: str, told: Told, now: str) -> Changes:
    mine = OBJECTS.c.gateway == gateway
    columns = (OBJECTS.c.kind, OBJECTS.c.id, OBJECTS.c.detail, OBJECTS.c.gone_since)
    known = {(row.kind, row.id): row for row in connection.execute(sa.select(*columns).where(mine))}
    appeared, changed = [], []
    for kind, identity, name, detail in _rows(told):
        row = known.pop((kind.value, identity), None)
        values = {"name": name, "sort_key": sort_key_of(name), "detail": detail}
        key = {"gateway": gateway, "kind": kind.value, "id": identity}
        if row is None:
            appeared.append({**key, **values, "seen_first": now})
        elif row.detail != detail or row.gone_since is not None:
            changed.append({**{f"the_{part}": value for part, value in key.items()}, **values})
    gone = [
        {"the_kind": kind, "the_id": identity}
        for (kind, identity), row in known.items()
        if not row.gone_since
    ]
    this = (mine, OBJECTS.c.kind == sa.bindparam("the_kind"), OBJECTS.c.id == sa.bindparam("the_id"))
    if appeared:
        connection.execute(sa.insert(OBJECTS), appeared)
    if changed:
        these = sa.update(OBJECTS).where(OBJECTS.c.gateway == sa.bindparam("the_gateway"), *this[1:])
        given: dict[str, sa.BindParameter[str]] = {
            part: sa.bindparam(part) for part in ("name", "sort_key", "detail")
        }
        connection.execute(these.values(gone_since=sa.null(), **given), changed)
    if gone:
        connection.execute(sa.update(OBJECTS).where(*this).values(gone_since=now), gone)
    return Changes(len(appeared), len(changed), len(gone))


def _entry(row: sa.Row[tuple[object, ...]]) -> Entry:
    return Entry(
        gateway=row.gateway,
        kind=Kind(row.kind),
        id=row.id,
        name=row.name,
        detail=row.detail,
        seen_first=from_moment(row.seen_first),
        gone_since=None if row.gone_since is None else from_moment(row.gone_since),
    )
