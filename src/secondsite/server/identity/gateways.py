"""The gateways of a server: who they are, whether they may work, when they were last heard of.

In the field's words a gateway is a recovery services provider. Its name is in its certificate and never
changes; its friendly name is for people.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Row, Select, delete, exists, func, insert, select, update
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import (
    authorities,
    certificates,
    gateways,
    revocations,
    vaults,
)
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.authority import count_up
from secondsite.server.identity.errors import (
    GatewayInUse,
    GatewayNotTold,
    GatewayRemoved,
    GatewayRevoked,
    GatewayStillRegistered,
    GatewayUnknown,
    GatewayUnregistered,
)
from secondsite.server.identity.heartbeats import Contact, Heartbeats
from secondsite.server.identity.states import GatewayEvent, GatewayState, after
from secondsite.server.identity.vaults import Note, friendly_name, no_note

REASON_CHARACTERS_MAX = 300
LIST_MAX = 500

# What needs a gateway: gives a phrase like "protects 3 machines", or an empty one.
GatewayUse = Callable[[Connection, str], str]


@dataclass(frozen=True)
class Gateway:
    """One gateway as the server knows it."""

    id: str
    name: str
    friendly_name: str
    vault_id: str
    vault: str
    site: str
    state: GatewayState
    state_reason: str
    state_since: datetime
    version: str  # the newest it told
    registered_at: datetime
    certificate_until: datetime | None
    refresh_number: int
    contact: Contact | None


@dataclass(frozen=True)
class GatewayIdentity:
    """Who a connection belongs to, checked for this request."""

    id: str
    name: str
    friendly_name: str
    vault_id: str
    serial: str
    refresh_number: int
    revocation_number: int


class Gateways:
    """All gateways of a server."""

    def __init__(self, database: Database, heartbeats: Heartbeats, clock: Clock) -> None:
        self._database = database
        self._heartbeats = heartbeats
        self._clock = clock
        self._uses: list[GatewayUse] = []
        self._to_learn: list[GatewayUse] = []

    def watch(self, use: GatewayUse) -> None:
        """Another area's say in whether a gateway may leave."""
        self._uses.append(use)

    def watch_leaving(self, to_learn: GatewayUse) -> None:
        """What a gateway has to hear of before it is let go: nothing reaches it afterwards."""
        self._to_learn.append(to_learn)

    def identify(self, name: str, serial: str) -> GatewayIdentity:
        """Who shows this certificate (its chain and dates were checked by TLS), asked at every request.

        Raises GatewayRevoked, GatewayUnregistered or GatewayRemoved.
        """
        number = select(func.max(authorities.c.revocation_number)).scalar_subquery()
        reason = select(revocations.c.reason).where(revocations.c.serial == serial).scalar_subquery()
        known = exists().where(certificates.c.serial == serial, certificates.c.gateway_id == gateways.c.id)
        query = select(gateways, number.label("number"), reason.label("reason"), known.label("known"))
        with self._database.read() as connection:
            row = connection.execute(query.where(gateways.c.name == name)).one_or_none()
        if row is None:
            raise GatewayRemoved(name=name)
        if row.state == GatewayState.UNREGISTERED.value:
            raise GatewayUnregistered(
                name=name, at=f"{from_moment(row.state_since):%Y-%m-%d %H:%M} UTC", why=row.state_reason
            )
        # A certificate of ours that no row names is of a gateway that was removed, or from after the backup
        # this database was restored from: it enrols again, rather than be trusted for its name alone.
        why = row.reason or ("" if row.known else "the server has no record of it")
        if why or row.state != GatewayState.REGISTERED.value:
            raise GatewayRevoked(name=name, serial=serial, why=why or row.state_reason)
        return GatewayIdentity(
            id=row.id,
            name=row.name,
            friendly_name=row.friendly_name,
            vault_id=row.vault_id,
            serial=serial,
            refresh_number=row.refresh_number,
            revocation_number=row.number,
        )

    def page(
        self, *, vault_ids: Collection[str] | None = None, after: str = "", limit: int = LIST_MAX
    ) -> list[Gateway]:
        """By name, from the one after `after` on. vault_ids: of these vaults only; None: of all."""
        query = _query().where(gateways.c.name > after)
        if vault_ids is not None:
            query = query.where(gateways.c.vault_id.in_(vault_ids))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(gateways.c.name).limit(limit)).all()
            return self._read(connection, rows)

    def connected(self) -> list[str]:
        """The ids of those that were heard of lately."""
        now, found, after = self._now(), [], ""
        while page := self.page(after=after):
            found += [one.id for one in page if one.contact is not None and one.contact.connected(now)]
            after = page[-1].name
        return found

    def get(self, name: str) -> Gateway:
        """By name. Raises GatewayUnknown."""
        with self._database.read() as connection:
            return self._get(connection, name)

    def rename(self, name: str, to: str, *, note: Note = no_note) -> Gateway:
        """Another friendly name. Raises GatewayUnknown or InvalidInput."""
        to = friendly_name(to)
        return self._set(name, note, friendly_name=to)

    def refresh(self, name: str, *, note: Note = no_note) -> Gateway:
        """Ask for a report now; the gateway gives it with its next heartbeats. Raises GatewayUnknown."""
        return self._set(name, note, refresh_number=gateways.c.refresh_number + 1)

    def revoke(self, name: str, *, why: str, note: Note = no_note) -> Gateway:
        """Its certificates are refused from now on, here at once, by gateways as they fetch the list.

        Raises GatewayUnknown or GatewayTransition.
        """
        return self._move(name, GatewayEvent.REVOKED, why, note)

    def unregister(self, name: str, *, why: str, in_use: bool = False, note: Note = no_note) -> Gateway:
        """It leaves its vault and is to work no more; what is known of it stays.

        in_use: also while something needs it, or it has to learn of something.

        Raises GatewayUnknown, GatewayInUse, GatewayNotTold or GatewayTransition.
        """
        return self._move(name, GatewayEvent.UNREGISTERED, why, note, in_use=in_use)

    def remove(self, name: str, *, note: Note = no_note) -> Gateway:
        """Forget it, with all that is kept of it; its revoked certificates stay refused.

        Raises GatewayUnknown or GatewayStillRegistered.
        """

        def work(connection: Connection) -> Gateway:
            found = self._get(connection, name)
            if found.state is GatewayState.REGISTERED:
                raise GatewayStillRegistered(name=name)
            after(name, found.state, GatewayEvent.REMOVED)
            connection.execute(delete(gateways).where(gateways.c.id == found.id))
            note(connection, found.vault_id, name)
            return found

        return self._database.run(work)

    def empty_vault(self, connection: Connection, vault_id: str) -> None:
        """Unregister and remove a vault's gateways, as part of deleting it. Raises GatewayInUse."""
        rows = connection.execute(_query().where(gateways.c.vault_id == vault_id)).all()
        for found in self._read(connection, rows):
            self._check_unused(connection, found.name)
            revoke_certificates(
                connection, found.id, found.name, why="its vault was deleted", now=self._now()
            )
        connection.execute(delete(gateways).where(gateways.c.vault_id == vault_id))

    def _move(self, name: str, event: GatewayEvent, why: str, note: Note, *, in_use: bool = True) -> Gateway:
        why = why.strip()[:REASON_CHARACTERS_MAX] or "no reason was given"

        def work(connection: Connection) -> Gateway:
            found = self._get(connection, name)
            target = after(name, found.state, event)
            assert target is not None
            if not in_use:
                self._check_unused(connection, name)
                self._check_told(connection, name)
            revoke_certificates(connection, found.id, name, why=why, now=self._now())
            if target is not found.state:
                change = update(gateways).where(gateways.c.id == found.id)
                values = {"state": target.value, "state_reason": why, "state_since": moment(self._now())}
                connection.execute(change.values(**values))
            note(connection, found.vault_id, name)
            return self._get(connection, name)

        return self._database.run(work)

    def _check_unused(self, connection: Connection, name: str) -> None:
        uses = [use(connection, name) for use in self._uses]
        if any(uses):
            raise GatewayInUse(name=name, uses=" and ".join(filter(None, uses)))

    def _check_told(self, connection: Connection, name: str) -> None:
        machines = [text for to_learn in self._to_learn if (text := to_learn(connection, name))]
        if machines:
            raise GatewayNotTold(name=name, machines=", ".join(machines))

    def _set(self, name: str, note: Note, **values: object) -> Gateway:
        def work(connection: Connection) -> Gateway:
            connection.execute(update(gateways).where(gateways.c.name == name).values(**values))
            found = self._get(connection, name)
            note(connection, found.vault_id, name)
            return found

        return self._database.run(work)

    def _now(self) -> datetime:
        return self._clock.utc()

    def _get(self, connection: Connection, name: str) -> Gateway:
        row = connection.execute(_query().where(gateways.c.name == name)).one_or_none()
        if row is None:
            raise GatewayUnknown(name=name[:200])
        return self._read(connection, [row])[0]

    def _read(self, connection: Connection, rows: Sequence[Row[tuple[object, ...]]]) -> list[Gateway]:
        contacts = self._heartbeats.contacts(connection, [row.id for row in rows])
        return [_gateway(row, contacts.get(row.id)) for row in rows]


def revoke_certificates(
    connection: Connection, gateway_id: str, name: str, *, why: str, now: datetime
) -> int:
    """Put every certificate of a gateway that is still valid on the revocation list; returns how many."""
    listed = select(revocations.c.serial)
    valid = (certificates.c.gateway_id == gateway_id) & (certificates.c.valid_until > moment(now))
    rows = connection.execute(select(certificates).where(valid, certificates.c.serial.not_in(listed))).all()
    for row in rows:
        connection.execute(
            insert(revocations).values(
                serial=row.serial,
                gateway_name=name,
                reason=why,
                revoked_at=moment(now),
                valid_until=row.valid_until,
            )
        )
    if rows:
        count_up(connection)
    return len(rows)


def _query() -> Select[tuple[object, ...]]:
    until = (
        select(func.max(certificates.c.valid_until))
        .where(certificates.c.gateway_id == gateways.c.id)
        .scalar_subquery()
    )
    joined = gateways.join(vaults, vaults.c.id == gateways.c.vault_id)
    columns = (*gateways.c, vaults.c.friendly_name.label("vault"), until.label("until"))
    return select(*columns).select_from(joined)


def _gateway(row: Row[tuple[object, ...]], contact: Contact | None) -> Gateway:
    return Gateway(
        id=row.id,
        name=row.name,
        friendly_name=row.friendly_name,
        vault_id=row.vault_id,
        vault=row.vault,
        site=row.site,
        state=GatewayState(row.state),
        state_reason=row.state_reason,
        state_since=from_moment(row.state_since),
        version=contact.version if contact is not None else row.version,
        registered_at=from_moment(row.registered_at),
        certificate_until=None if row.until is None else from_moment(row.until),
        refresh_number=row.refresh_number,
        contact=contact,
    )
