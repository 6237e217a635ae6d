"""Where alerts go. An address is a secret: sealed as it comes in, opened only to send, never shown again."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.alerts.errors import ChannelUnknown, NameTaken, TooMany
from secondsite.server.alerts.sending import service_of
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import ALERT_CHANNELS, ALERT_MESSAGES
from secondsite.server.database.values import fresh_id, from_moment
from secondsite.server.identity.envelopes import MasterKey, Place

CHANNELS_MAX = 50
PER_HOUR = 30


@dataclass(frozen=True)
class Channel:
    """A channel as it is shown. service: what kind of address; waiting: messages that its rate holds back."""

    id: str
    name: str
    service: str
    per_hour: int
    created_at: datetime
    created_by: str
    sent_at: datetime | None
    failed_at: datetime | None
    problem: str
    waiting: int


class Channels:
    """Of one database."""

    def __init__(self, database: Database, master: MasterKey) -> None:
        self._database = database
        self._master = master

    def add(self, connection: Connection, name: str, address: str, *, per_hour: int, by: str) -> Channel:
        """Make one. Raises AddressRefused, NameTaken or TooMany."""
        service = service_of(address)
        names = list(connection.execute(sa.select(ALERT_CHANNELS.c.name)).scalars())
        if name in names:
            raise NameTaken(what="channel", name=name)
        if len(names) >= CHANNELS_MAX:
            raise TooMany(limit=CHANNELS_MAX, what="channels")
        identity = fresh_id(self._database.clock)
        connection.execute(
            sa.insert(ALERT_CHANNELS).values(
                id=identity,
                name=name,
                service=service,
                envelope=base64.b64encode(self._master.seal(_place(identity), address.encode())).decode(),
                per_hour=per_hour,
                created_at=self._database.now(),
                created_by=by,
                problem="",
            )
        )
        return self.get(connection, name)

    def list(self) -> list[Channel]:
        """All, by name."""
        with self._database.read() as connection:
            return [_channel(row) for row in connection.execute(_query().order_by(ALERT_CHANNELS.c.name))]

    def get(self, connection: Connection, name: str) -> Channel:
        """By name. Raises ChannelUnknown."""
        row = connection.execute(_query().where(ALERT_CHANNELS.c.name == name)).one_or_none()
        if row is None:
            raise ChannelUnknown(name=name)
        return _channel(row)

    def remove(self, connection: Connection, name: str) -> Channel:
        """Forget it with its rules and what waits for it. Raises ChannelUnknown."""
        found = self.get(connection, name)
        connection.execute(sa.delete(ALERT_CHANNELS).where(ALERT_CHANNELS.c.id == found.id))
        return found

    def address(self, connection: Connection, identity: str) -> str:
        """In the clear, to send to. Raises EnvelopeUnopened."""
        where = ALERT_CHANNELS.c.id == identity
        envelope = connection.execute(sa.select(ALERT_CHANNELS.c.envelope).where(where)).scalar_one()
        return self._master.open(_place(identity), base64.b64decode(envelope)).decode()


def _place(identity: str) -> Place:
    return Place("alert_channels", identity, "envelope")


def _query() -> sa.Select[tuple[object, ...]]:
    waits = (ALERT_MESSAGES.c.channel == ALERT_CHANNELS.c.id) & ALERT_MESSAGES.c.begun_at.is_(None)
    waiting = sa.select(sa.func.count()).select_from(ALERT_MESSAGES).where(waits).scalar_subquery()
    return sa.select(*ALERT_CHANNELS.c, waiting.label("waiting"))


def _channel(row: sa.Row[tuple[object, ...]]) -> Channel:
    return Channel(
        id=row.id,
        name=row.name,
        service=row.service,
        per_hour=row.per_hour,
        created_at=from_moment(row.created_at),
        created_by=row.created_by,
        sent_at=from_moment(row.sent_at) if row.sent_at else None,
        failed_at=from_moment(row.failed_at) if row.failed_at else None,
        problem=row.problem,
        waiting=row.waiting,
    )
