"""Says when a gateway falls silent and is heard again, and when no server was there at all.

Each change is said once, whichever server notices it: it is a row made or removed in the event's transaction.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.base.units import format_seconds
from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import EVENTS_HEAD, GATEWAY_SILENCES
from secondsite.server.database.values import from_moment, moment
from secondsite.server.events.service import Events, head_row
from secondsite.server.identity.gateways import Gateway, Gateways
from secondsite.server.identity.heartbeats import SILENT_AFTER
from secondsite.server.identity.states import GatewayState
from secondsite.server.rounds import Round, Rounds

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
# A restart takes seconds; a longer time without any server is worth a word.
DOWN_AFTER = timedelta(seconds=60)
SILENT = "gateway.silent"
HEARD = "gateway.heard"
WAS_DOWN = "server.was-down"


class Watch:
    """Of one server. `start` once, `close` at the end; tests call `look`."""

    def __init__(self, database: Database, events: Events, gateways: Gateways) -> None:
        self._database = database
        self._clock = database.clock
        self._events = events
        self._gateways = gateways
        self._begun_at: float | None = None
        waits = "nobody watches who is there"
        self._rounds = Rounds(Round("watch", self.look, LOOK_SECONDS, waits, at_once=True), self._clock)

    def start(self) -> None:
        """Look every ten seconds until `close`."""
        self._rounds.start()

    def close(self) -> None:
        """Note that a server was there until now."""
        self._rounds.close()

    def look(self) -> None:
        """See who is there. Raises what the database raises."""
        first = self._begun_at is None
        self._database.run(lambda connection: self._alive(connection, first=first))
        if self._begun_at is None:
            self._begun_at = self._clock.monotonic()
        # who could not reach a server that was away is not silent: they get as long as they always have
        if self._clock.monotonic() - self._begun_at >= SILENT_AFTER.total_seconds():
            self._look_at_gateways()

    def _alive(self, connection: Connection, *, first: bool) -> None:
        now = self._clock.utc()
        head_row(connection)
        found = connection.execute(sa.select(EVENTS_HEAD.c.alive_at).with_for_update()).scalar_one()
        if not found or from_moment(found) < now:  # a clock that was put back changes nothing
            connection.execute(sa.update(EVENTS_HEAD).values(alive_at=moment(now)))
        if first and found and now - from_moment(found) > DOWN_AFTER:
            was = from_moment(found)
            text = (
                f"no server was there for {format_seconds((now - was).total_seconds())}, since "
                f"{was:%Y-%m-%d %H:%M:%S} UTC; replication went on, and gateways tell what happened meanwhile"
            )
            self._events.emit(connection, "", Severity.WARNING, WAS_DOWN, text)

    def _look_at_gateways(self) -> None:
        with self._database.read() as connection:
            told = set(connection.execute(sa.select(GATEWAY_SILENCES.c.gateway)).scalars())
        now, after, known = self._clock.utc(), "", set()
        while page := self._gateways.page(after=after):
            for gateway in page:
                known.add(gateway.id)
                since = _silent_since(gateway, now)
                if since is not None and gateway.id not in told:
                    self._say(gateway, since)
                elif since is None and gateway.id in told:
                    self._say(gateway, None)
            after = page[-1].name
        for gone in told - known:
            self._database.run(partial(_forget, gone))

    def _say(self, gateway: Gateway, since: datetime | None) -> None:
        def work(connection: Connection) -> None:
            if since is not None:
                make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
                row = make(GATEWAY_SILENCES).values(gateway=gateway.id, since=moment(since))
                made = row.on_conflict_do_nothing().returning(GATEWAY_SILENCES.c.gateway)
                if connection.execute(made).first() is not None:
                    text = f"gateway {gateway.name} was not heard of since {since:%Y-%m-%d %H:%M:%S} UTC"
                    self._emit(connection, gateway, Severity.CRITICAL, SILENT, text)
                return
            was = _forget(gateway.id, connection)
            if was is not None and gateway.state is GatewayState.REGISTERED:
                seconds = (self._clock.utc() - from_moment(was)).total_seconds()
                text = f"gateway {gateway.name} is heard again, after {format_seconds(seconds)}"
                self._emit(connection, gateway, Severity.INFORMATION, HEARD, text)

        self._database.run(work)

    def _emit(
        self, connection: Connection, gateway: Gateway, severity: Severity, code: str, text: str
    ) -> None:
        self._events.emit(connection, gateway.vault_id, severity, code, text, gateway=gateway.name)


def _silent_since(gateway: Gateway, now: datetime) -> datetime | None:
    """Since when it is silent; None: it is not, or need not be heard."""
    if gateway.state is not GatewayState.REGISTERED:
        return None
    last = gateway.contact.at if gateway.contact is not None else gateway.registered_at
    return last if now - last > SILENT_AFTER else None


def _forget(gateway: str, connection: Connection) -> str | None:
    where = GATEWAY_SILENCES.c.gateway == gateway
    found = sa.delete(GATEWAY_SILENCES).where(where).returning(GATEWAY_SILENCES.c.since)
    return connection.execute(found).scalar_one_or_none()
