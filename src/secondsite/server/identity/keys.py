"""Registration keys of a vault: made on demand, valid five days by the server's clock, revocable.

A key may enrol any number of new gateways until it ends. One made for a gateway by name (`for_gateway`) may
enrol that one again and no other: nobody else's key can take over a gateway's identity.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateways, registration_keys
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.errors import (
    GatewayUnknown,
    RegistrationKeyExpired,
    RegistrationKeyRevoked,
    RegistrationKeyUnknown,
)
from secondsite.server.identity.vaults import Note, find_vault, no_note
from secondsite.transfer.pki import gateway_name
from secondsite.transfer.registration import SECRET_BYTES, RegistrationKey, server_url

KEY_DAYS = 5
# Ended keys are shown for a while, to tell a person why one was refused, then forgotten.
SHOWN_DAYS = 30


@dataclass(frozen=True)
class KeyRecord:
    """What the server keeps of a key."""

    id: str
    vault_id: str
    created_at: datetime
    created_by: str
    ends_at: datetime
    revoked_at: datetime | None
    for_gateway: str | None
    uses: int  # gateways it enrolled
    public: bytes

    def state(self, now: datetime) -> Literal["Active", "Expired", "Revoked"]:
        """Whether it can be used, and why not."""
        if self.revoked_at is not None:
            return "Revoked"
        return "Expired" if now >= self.ends_at else "Active"

    def check_usable(self, now: datetime) -> None:
        """Raise RegistrationKeyRevoked or RegistrationKeyExpired."""
        if self.revoked_at is not None:
            raise RegistrationKeyRevoked(at=_said(self.revoked_at))
        if now >= self.ends_at:
            raise RegistrationKeyExpired(ends=_said(self.ends_at), now=_said(now), days=KEY_DAYS)


class RegistrationKeys:
    """All registration keys of a server."""

    def __init__(self, database: Database, *, authority: bytes, clock: Clock) -> None:
        """authority: SHA-256 of its certificate, which goes into every key."""
        self._database = database
        self._authority = authority
        self._clock = clock

    def use_authority(self, authority: bytes) -> None:
        """New keys name another authority from now on."""
        self._authority = authority

    def create(
        self,
        vault: str,
        *,
        url: str,
        by: str,
        for_gateway: str | None = None,
        system_trust: bool = False,
        note: Note = no_note,
    ) -> tuple[RegistrationKey, KeyRecord]:
        """A new key, which is nowhere but in the answer.

        url: the address gateways reach the server at. for_gateway: the name of one that is to enrol again.
        Raises VaultUnknown, GatewayUnknown or InvalidInput.
        """
        url = server_url(url)
        if for_gateway is not None:
            gateway_name(for_gateway)
        now = self._clock.utc()
        key = RegistrationKey(
            id=secrets.token_hex(16),
            url=url,
            ends_at=now + timedelta(days=KEY_DAYS),
            authority=self._authority,
            secret=secrets.token_bytes(SECRET_BYTES),
            system_trust=system_trust,
        )

        def work(connection: Connection) -> KeyRecord:
            found = find_vault(connection, vault)
            if for_gateway is not None:
                known = (gateways.c.name == for_gateway) & (gateways.c.vault_id == found.id)
                if connection.execute(select(gateways.c.id).where(known)).one_or_none() is None:
                    raise GatewayUnknown(name=for_gateway)
            forgotten = registration_keys.c.ends_at < moment(now - timedelta(days=SHOWN_DAYS))
            connection.execute(delete(registration_keys).where(forgotten))
            connection.execute(
                insert(registration_keys).values(
                    id=key.id,
                    vault_id=found.id,
                    public_key=key.public().hex(),
                    for_gateway=for_gateway,
                    created_at=moment(now),
                    created_by=by[:200],
                    ends_at=moment(key.ends_at),
                    revoked_at=None,
                    uses=0,
                )
            )
            record = find_key(connection, key.id)
            assert record is not None
            note(connection, found.id, key.id)
            return record

        return key, self._database.run(work)

    def of_vault(self, vault: str) -> list[KeyRecord]:
        """A vault's keys, the newest first; those that ended are shown for a month. Raises VaultUnknown."""
        with self._database.read() as connection:
            found = find_vault(connection, vault)
            query = select(registration_keys).where(registration_keys.c.vault_id == found.id)
            rows = connection.execute(query.order_by(registration_keys.c.created_at.desc())).all()
        return [_record(row) for row in rows]

    def revoke(self, vault: str, key: str, *, note: Note = no_note) -> KeyRecord:
        """Nobody enrols with it any more; gateways it enrolled stay. Again is fine.

        Raises VaultUnknown or RegistrationKeyUnknown.
        """

        def work(connection: Connection) -> KeyRecord:
            found = find_vault(connection, vault)
            record = find_key(connection, key)
            if record is None or record.vault_id != found.id:
                raise RegistrationKeyUnknown(key=key[:64])
            if record.revoked_at is not None:
                return record
            values = update(registration_keys).where(registration_keys.c.id == key)
            connection.execute(values.values(revoked_at=moment(self._clock.utc())))
            again = find_key(connection, key)
            assert again is not None
            note(connection, found.id, key)
            return again

        return self._database.run(work)


def find_key(connection: Connection, key: str) -> KeyRecord | None:
    """What is kept of a key, or None."""
    row = connection.execute(select(registration_keys).where(registration_keys.c.id == key)).one_or_none()
    return None if row is None else _record(row)


def _record(row: Row[tuple[object, ...]]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        vault_id=row.vault_id,
        created_at=from_moment(row.created_at),
        created_by=row.created_by,
        ends_at=from_moment(row.ends_at),
        revoked_at=None if row.revoked_at is None else from_moment(row.revoked_at),
        for_gateway=row.for_gateway,
        uses=row.uses,
        public=bytes.fromhex(row.public_key),
    )


def _said(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
