"""Takes what gateways tell of what happened there: each event once, in its order, gaps told.

How far each log of each gateway is, is written in the transaction of its events: a batch that comes again,
also to another server at the same moment, adds nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.base.errors import InvalidInput
from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import EVENT_LOGS
from secondsite.server.database.tables_identity import gateways
from secondsite.server.events.service import Events, NewEvent
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.transfer.reports import EventAnswer, EventBatch, ToldEvent

# A gateway keeps at most 17 logs; what is older here than the newest 64 it has forgotten itself.
LOGS_MAX = 64
GAP = "events.gap"

# (connection, gateway's id, machines) -> the protected items they are, by machine
ItemsOf = Callable[[Connection, str, Collection[str]], Mapping[str, str]]


def no_items(_connection: Connection, _gateway: str, _machines: Collection[str]) -> Mapping[str, str]:
    """No machine is an item."""
    return {}


class EventIntake:
    """Of one database. items_of: which protected items the machines of events are."""

    def __init__(self, database: Database, events: Events, items_of: ItemsOf = no_items) -> None:
        self._database = database
        self._events = events
        self._items_of = items_of

    def take(self, who: GatewayIdentity, batch: EventBatch) -> EventAnswer:
        """Take what is new of a batch, and say how far the log is. Raises InvalidInput."""
        numbers = [event.number for event in batch.events]
        if numbers and (numbers[0] < 1 or any(a >= b for a, b in itertools.pairwise(numbers))):
            raise InvalidInput(what="the batch of events", why="their numbers do not grow from 1")
        if not numbers:
            with self._database.read() as connection:
                return EventAnswer(last=_last(connection, who.id, batch.log))
        at = {event.number: _moment_of(event) for event in batch.events}
        return self._database.run(lambda connection: self._take(connection, who, batch, at), alone=False)

    def _take(
        self, connection: Connection, who: GatewayIdentity, batch: EventBatch, at: Mapping[int, datetime]
    ) -> EventAnswer:
        last = self._hold(connection, who.id, batch.log)
        new = [event for event in batch.events if event.number > last]
        if not new or (batch.after != last and new[0].number > last + 1):
            return EventAnswer(last=last)
        machines = {event.machine for event in new if event.machine}
        items = self._items_of(connection, who.id, machines) if machines else {}
        rows = [
            NewEvent(
                vault=who.vault_id,
                severity=Severity(event.severity),
                code=event.code,
                text=event.text,
                item=items.get(event.machine or "", ""),
                gateway=who.name,
                machine=event.machine or "",
                told_at=at[event.number],
                lasts=event.lasts,
                ends=event.ends,
            )
            for event in new
        ]
        missing = new[-1].number - last - len(new)
        if missing:
            text = f"{missing} events of gateway {who.name} are lost: it could not keep them so long"
            rows.insert(0, NewEvent(who.vault_id, Severity.WARNING, GAP, text, gateway=who.name))
        self._set(connection, who.id, batch.log, new[-1].number)
        self._events.write(connection, rows)
        return EventAnswer(last=new[-1].number)

    def tidy(self) -> None:
        """Forget the logs of gateways that were removed."""
        known = sa.select(gateways.c.id)
        self._database.run(
            lambda connection: (
                connection.execute(sa.delete(EVENT_LOGS).where(EVENT_LOGS.c.gateway.not_in(known))).rowcount
            )
        )

    def _hold(self, connection: Connection, gateway: str, log: str) -> int:
        """How far a log is; its row is ours until the transaction ends."""
        make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = {"gateway": gateway, "log": log, "last": 0, "changed_at": self._database.now()}
        made = make(EVENT_LOGS).values(row).on_conflict_do_nothing().returning(EVENT_LOGS.c.log)
        if connection.execute(made).first() is not None:
            _forget_oldest(connection, gateway)
        query = sa.select(EVENT_LOGS.c.last).where(*_is(gateway, log)).with_for_update()
        return int(connection.execute(query).scalar_one())

    def _set(self, connection: Connection, gateway: str, log: str, last: int) -> None:
        change = sa.update(EVENT_LOGS).where(*_is(gateway, log))
        connection.execute(change.values(last=last, changed_at=self._database.now()))


def _is(gateway: str, log: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return EVENT_LOGS.c.gateway == gateway, EVENT_LOGS.c.log == log


def _last(connection: Connection, gateway: str, log: str) -> int:
    found = connection.execute(sa.select(EVENT_LOGS.c.last).where(*_is(gateway, log))).scalar_one_or_none()
    return int(found or 0)


def _forget_oldest(connection: Connection, gateway: str) -> None:
    mine = EVENT_LOGS.c.gateway == gateway
    order = (EVENT_LOGS.c.changed_at.desc(), EVENT_LOGS.c.log.desc())
    kept = sa.select(EVENT_LOGS.c.log).where(mine).order_by(*order).limit(LOGS_MAX)
    names = list(connection.execute(kept).scalars())
    if len(names) == LOGS_MAX:
        connection.execute(sa.delete(EVENT_LOGS).where(mine, EVENT_LOGS.c.log.not_in(names)))


def _moment_of(event: ToldEvent) -> datetime:
    try:
        found = datetime.fromisoformat(event.at)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(what=f"the time of event {event.number}", why="it is not RFC 3339") from None
