"""Events at the server: written in the transaction of what they tell of, read by pages, kept for a while.

    events.emit(connection, vault, Severity.WARNING, "item.rpo-missed", "...", item=item, machine=machine)

Numbers follow the order in which transactions are kept, without a gap: who has read up to a number has missed
nothing before it. So who writes an event holds the head's row until the transaction ends: write events last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import EVENTS, EVENTS_HEAD
from secondsite.server.database.values import from_moment, moment

TEXT_CHARACTERS_MAX = 4000
# A hundred machines in trouble tell some thousands a day; 200,000 rows are about 60 MiB.
EVENTS_MAX = 200_000
KEPT = timedelta(days=90)
# What one transaction of the housekeeping deletes: it must not hold the writers up.
DELETE_ROWS_MAX = 5000
_SEVERITIES = list(Severity)  # from the least to the most


@dataclass(frozen=True)
class NewEvent:
    """An event to be written. vault: its id, empty for the server's own; gateway: its name."""

    vault: str
    severity: Severity
    code: str
    text: str
    item: str = ""
    gateway: str = ""
    machine: str = ""
    told_at: datetime | None = None  # when a gateway says that it happened
    lasts: bool = False  # it is wrong until another event says that it is over
    ends: str = ""  # the code of such an event, which this one says is over


@dataclass(frozen=True)
class StoredEvent(NewEvent):
    """An event as it is kept."""

    number: int = 0
    at: datetime = field(kw_only=True)  # the server's clock, when it was written


@dataclass(frozen=True)
class Search:
    """What events are looked for. None: whatever it is."""

    vaults: Collection[str] | None = None  # of these only; None: of all, and the server's own
    at_least: Severity = Severity.INFORMATION
    codes: Sequence[str] = ()  # each a code, or its beginning with a * behind
    gateway: str | None = None
    machine: str | None = None
    item: str | None = None
    since: datetime | None = None


@dataclass(frozen=True)
class Kept:
    """How much is there. dropped: how many the retention took so far."""

    newest: int
    kept: int
    dropped: int


class Events:
    """The events of one database."""

    def __init__(
        self, database: Database, *, events_max: int = EVENTS_MAX, kept_for: timedelta = KEPT
    ) -> None:
        self._database = database
        self._events_max = events_max
        self._kept_for = kept_for

    def emit(
        self,
        connection: Connection,
        vault: str,
        severity: Severity,
        code: str,
        text: str,
        *,
        item: str = "",
        gateway: str = "",
        machine: str = "",
        lasts: bool = False,
        ends: str = "",
    ) -> int:
        """Write an event in the caller's transaction; its number. vault: an id; empty: the server's own.

        lasts: it is wrong until an event of the same item, machine and gateway `ends` its code.
        """
        event = NewEvent(vault, severity, code, text, item, gateway, machine, None, lasts, ends)
        return self.write(connection, [event])

    def write(self, connection: Connection, events: Sequence[NewEvent]) -> int:
        """Write some, in their order; the number of the last one, or of the newest when there are none."""
        last = _count_up(connection, len(events))
        at = self._database.now()
        rows = [_row(event, number, at) for number, event in enumerate(events, last - len(events) + 1)]
        if rows:
            connection.execute(sa.insert(EVENTS), rows)
        return last

    def newest(self, search: Search, *, before: int | None, limit: int) -> list[StoredEvent]:
        """The youngest, from the one before `before` on, youngest first."""
        query = _query(search).order_by(EVENTS.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(EVENTS.c.number < before)
        return self._read(query)

    def after(self, search: Search, number: int, *, limit: int) -> list[StoredEvent]:
        """Those after a number, oldest first."""
        query = _query(search).where(EVENTS.c.number > number).order_by(EVENTS.c.number).limit(limit)
        return self._read(query)

    def read_after(self, connection: Connection, number: int, *, limit: int) -> list[StoredEvent]:
        """All those after a number, oldest first, in the caller's transaction."""
        query = sa.select(*EVENTS.c).where(EVENTS.c.number > number).order_by(EVENTS.c.number).limit(limit)
        return [_stored(row) for row in connection.execute(query)]

    def kept(self) -> Kept:
        """How many there are, and how many are gone."""
        with self._database.read() as connection:
            head = connection.execute(sa.select(EVENTS_HEAD)).one_or_none()
            count = connection.execute(sa.select(sa.func.count()).select_from(EVENTS)).scalar_one()
        return Kept(head.number, count, head.dropped) if head else Kept(0, count, 0)

    def counts(self, connection: Connection, since: datetime) -> dict[Severity, int]:
        """How many there were since a moment, by severity."""
        counted = sa.select(EVENTS.c.severity, sa.func.count()).where(EVENTS.c.at >= moment(since))
        found = {
            Severity(text): count for text, count in connection.execute(counted.group_by(EVENTS.c.severity))
        }
        return {severity: found.get(severity, 0) for severity in Severity}

    def tidy(self) -> int:
        """Drop what is too old or too much, some thousands at a time, and count it; returns how many."""
        dropped = 0
        while some := self._database.run(self._drop):
            dropped += some
        return dropped

    def _drop(self, connection: Connection) -> int:
        edge = moment(self._database.clock.utc() - self._kept_for)
        newest = sa.select(EVENTS_HEAD.c.number).scalar_subquery()
        # numbers have no gaps but those at the old end: counting rows would read them all
        gone = sa.or_(EVENTS.c.at < edge, EVENTS.c.number <= newest - self._events_max)
        some = sa.select(EVENTS.c.number).where(gone).order_by(EVENTS.c.number).limit(DELETE_ROWS_MAX)
        numbers = list(connection.execute(some).scalars())
        if numbers:
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.number <= numbers[-1], gone))
            connection.execute(sa.update(EVENTS_HEAD).values(dropped=EVENTS_HEAD.c.dropped + len(numbers)))
        return len(numbers)

    def _read(self, query: sa.Select[tuple[object, ...]]) -> list[StoredEvent]:
        with self._database.read() as connection:
            return [_stored(row) for row in connection.execute(query)]


def head_row(connection: Connection) -> None:
    """Make the head's row, where there is none yet."""
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = {"id": 1, "number": 0, "dropped": 0, "alive_at": ""}
    connection.execute(make(EVENTS_HEAD).values(row).on_conflict_do_nothing())


def _count_up(connection: Connection, by: int) -> int:
    """The new number of the newest event; the head's row is ours until the transaction ends."""
    up = sa.update(EVENTS_HEAD).values(number=EVENTS_HEAD.c.number + by).returning(EVENTS_HEAD.c.number)
    found = connection.execute(up).scalar_one_or_none()
    if found is None:
        head_row(connection)
        found = connection.execute(up).scalar_one()
    return int(found)


def _row(event: NewEvent, number: int, at: str) -> dict[str, object]:
    return {
        "number": number,
        "at": at,
        "told_at": "" if event.told_at is None else moment(event.told_at),
        "severity": event.severity.value,
        "code": event.code,
        "text": _clean(event.text),
        "vault": event.vault,
        "gateway": event.gateway,
        "item": event.item,
        "machine": event.machine,
        "lasts": int(event.lasts),
        "ends": event.ends,
    }


def _clean(text: str) -> str:
    """What PostgreSQL keeps and a terminal does not obey: line ends and other controls become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:TEXT_CHARACTERS_MAX])


def _query(search: Search) -> sa.Select[tuple[object, ...]]:
    query = sa.select(*EVENTS.c)
    if search.vaults is not None:
        query = query.where(EVENTS.c.vault.in_(search.vaults))
    if search.at_least is not Severity.INFORMATION:
        wanted = _SEVERITIES[_SEVERITIES.index(search.at_least) :]
        query = query.where(EVENTS.c.severity.in_([severity.value for severity in wanted]))
    if search.codes:
        query = query.where(sa.or_(*(_code_is(code) for code in search.codes)))
    for column, wanted_text in (
        (EVENTS.c.gateway, search.gateway),
        (EVENTS.c.machine, search.machine),
        (EVENTS.c.item, search.item),
    ):
        if wanted_text is not None:
            query = query.where(column == wanted_text)
    if search.since is not None:
        query = query.where(EVENTS.c.at >= moment(search.since))
    return query


def _code_is(code: str) -> sa.ColumnElement[bool]:
    if code.endswith("*"):
        return EVENTS.c.code.startswith(code[:-1], autoescape=True)
    return EVENTS.c.code == code


def _stored(row: sa.Row[tuple[object, ...]]) -> StoredEvent:
    return StoredEvent(
        vault=row.vault,
        severity=Severity(row.severity),
        code=row.code,
        text=row.text,
        item=row.item,
        gateway=row.gateway,
        machine=row.machine,
        told_at=from_moment(row.told_at) if row.told_at else None,
        lasts=bool(row.lasts),
        ends=row.ends,
        number=row.number,
        at=from_moment(row.at),
    )
