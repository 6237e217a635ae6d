"""How each protected item did over time: when it missed its recovery point objective, and how its health was.

Looks are taken in memory and written together, once a minute: a server that is killed leaves at most that
minute out, and a neighbouring interval is carried on after a restart. Moments are of the server's clock. A
time of which no server knows anything is unknown, never met.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database import bulk
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import HEALTH_CHANGES, RPO_INTERVALS
from secondsite.server.database.values import from_moment, moment
from secondsite.server.events.intervals import LOOK_GAP, Day, Interval, Look, Rpo, days, follow, joined
from secondsite.server.rounds import Round, Rounds

log = logging.getLogger(__name__)

WRITE_SECONDS = 60.0
BATCH_MAX = 500
KEPT = timedelta(days=90)
# An item nobody looked at for so long is gone; it begins anew when it comes again.
FORGET = timedelta(hours=1)
# While the database is away closed intervals and changes wait; beyond this the oldest are dropped.
WAITING_MAX = 50_000
NOTE_CHARACTERS_MAX = 1000
_T = TypeVar("_T")


@dataclass(frozen=True)
class HealthChange:
    """From this moment on an item's health was this."""

    at: datetime
    health: str
    code: str
    note: str


@dataclass(frozen=True)
class RpoReport:
    """How an item did. missed: the intervals, oldest first."""

    days: tuple[Day, ...]
    missed: tuple[Interval, ...]


@dataclass
class _Open:
    """The interval of an item that goes on."""

    interval: Interval
    written: Interval | None = None  # as it lies in the database; None: it does not yet


@dataclass
class _Row:
    """An interval to be written. open: what it is, or was, the interval of."""

    item: str
    interval: Interval
    open: _Open


class Histories:
    """Of one database. Thread-safe; `start` once, `close` at the end; tests call `flush`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = database.clock
        self._lock = threading.Lock()
        # each bounded by the number of items
        self._open: dict[str, _Open] = {}
        self._health: dict[str, HealthChange] = {}
        self._closed: list[_Row] = []
        self._changes: list[tuple[str, HealthChange]] = []
        waits = "histories of items wait in memory"
        self._rounds = Rounds(
            Round("histories", self.flush, WRITE_SECONDS, waits, at_end=True, on_trouble=self._trouble),
            self._clock,
        )

    def start(self) -> None:
        """Write what came in, once a minute, until `close`."""
        self._rounds.start()

    def close(self) -> None:
        """Write what is left."""
        self._rounds.close()

    def observe(self, item: str, at: datetime, rpo_seconds: float | None, threshold: float | None) -> None:
        """An item's newest point is so old. at: the server's clock; None: no point yet, or no objective."""
        with self._lock:
            found = self._open.get(item)
            ended, goes_on = follow(found.interval if found else None, Look(at, rpo_seconds, threshold))
            if ended is not None:
                assert found is not None
                self._closed.append(_Row(item, ended, found))
                found = None
            if goes_on is None:
                self._open.pop(item, None)
            elif found is None:
                self._open[item] = _Open(goes_on)
            else:
                found.interval = goes_on

    def observe_health(self, item: str, at: datetime, health: str, code: str = "", note: str = "") -> None:
        """An item's health is this; kept when it is another than before."""
        change = HealthChange(at, health, code, note[:NOTE_CHARACTERS_MAX])
        with self._lock:
            before = self._health.get(item)
            if before is None or (before.health, before.code) != (health, code):
                self._health[item] = change
                self._changes.append((item, change))

    def flush(self) -> int:
        """Write what came in since the last time; how many rows. Raises what the database raises."""
        with self._lock:
            closed, changes = list(self._closed), list(self._changes)
            going_on = [
                _Row(item, one.interval, one)
                for item, one in self._open.items()
                if one.interval != one.written
            ]
        rows = [*closed, *going_on]
        for some in _batches(rows):
            self._database.run(functools.partial(_write_intervals, some), alone=False)
        for changed in _batches(changes):
            self._database.run(functools.partial(_write_changes, changed), alone=False)
        with self._lock:
            del self._closed[: len(closed)], self._changes[: len(changes)]
            for row in going_on:
                row.open.written = row.interval
                # it may carry on one that was there before
                row.open.interval = replace(row.open.interval, since=row.interval.since)
            self._forget()
        return len(rows) + len(changes)

    def rpo(self, item: str, *, days_back: int) -> RpoReport:
        """How an item did in so many days up to now; the time before anything is known of it is left out."""
        now = self._clock.utc()
        edge = now - timedelta(days=days_back)
        where = (RPO_INTERVALS.c.item == item, RPO_INTERVALS.c.until > moment(edge))
        with self._database.read() as connection:
            rows = connection.execute(sa.select(RPO_INTERVALS).where(*where)).all()
            oldest = connection.execute(
                sa.select(sa.func.min(RPO_INTERVALS.c.since)).where(RPO_INTERVALS.c.item == item)
            ).scalar_one_or_none()
        found = [_interval(row) for row in rows]
        with self._lock:
            found += [row.interval for row in self._closed if row.item == item]
            if item in self._open:
                found.append(self._open[item].interval)
        if not found and oldest is None:
            return RpoReport((), ())
        first = min([*(one.since for one in found), *([from_moment(oldest)] if oldest else [])])
        # what is not reported yet is not unknown yet
        end = max([now - LOOK_GAP, *(min(one.until, now) for one in found)])
        return RpoReport(
            tuple(days(found, first=max(first, edge), end=end)), tuple(joined(found, Rpo.MISSED))
        )

    def going_on(self, state: Rpo) -> int:
        """Of how many items this is known now, by the reports this server took."""
        edge = self._clock.utc() - LOOK_GAP
        with self._lock:
            intervals = [one.interval for one in self._open.values()]
        return sum(1 for one in intervals if one.state is state and one.until >= edge)

    def health(self, item: str, *, before: str | None, limit: int) -> list[HealthChange]:
        """How an item's health changed, youngest first. before: the moment text of the last one seen."""
        query = sa.select(HEALTH_CHANGES).where(HEALTH_CHANGES.c.item == item)
        if before is not None:
            query = query.where(HEALTH_CHANGES.c.at < before)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(HEALTH_CHANGES.c.at.desc()).limit(limit)).all()
        return [HealthChange(from_moment(row.at), row.health, row.code, row.note) for row in rows]

    def tidy(self) -> None:
        """Drop what is too old."""
        edge = moment(self._clock.utc() - KEPT)

        def work(connection: Connection) -> None:
            connection.execute(sa.delete(RPO_INTERVALS).where(RPO_INTERVALS.c.until < edge))
            connection.execute(sa.delete(HEALTH_CHANGES).where(HEALTH_CHANGES.c.at < edge))

        self._database.run(work)

    def _forget(self) -> None:
        edge = self._clock.utc() - FORGET
        for item in [item for item, one in self._open.items() if one.interval.until < edge]:
            del self._open[item]
            self._health.pop(item, None)
        for waiting in (self._closed, self._changes):
            del waiting[: max(0, len(waiting) - WAITING_MAX)]

    def _trouble(self) -> None:
        with self._lock:
            self._forget()


def _write_intervals(rows: Sequence[_Row], connection: Connection) -> None:
    """Write them; one that is new here carries on what lies in the database and touches it."""
    known = _neighbours(connection, [row for row in rows if row.open.written is None])
    values = []
    for row in rows:
        for other in known.get(row.item, ()):
            touches = other.since <= row.interval.until and row.interval.since - other.until <= LOOK_GAP
            if other.state is row.interval.state and touches:
                row.interval = replace(row.interval, since=min(other.since, row.interval.since))
        values.append(
            {
                "item": row.item,
                "since": moment(row.interval.since),
                "state": row.interval.state.value,
                "until": moment(row.interval.until),
            }
        )
    # in one order everywhere: two servers that write the same rows must not wait for each other
    values.sort(key=lambda value: (value["item"], value["since"], value["state"]))
    bulk.upsert(connection, RPO_INTERVALS, values, newer="until")


def _neighbours(connection: Connection, rows: Sequence[_Row]) -> dict[str, list[Interval]]:
    if not rows:
        return {}
    edge = moment(min(row.interval.since for row in rows) - LOOK_GAP)
    where = (RPO_INTERVALS.c.item.in_({row.item for row in rows}), RPO_INTERVALS.c.until >= edge)
    found: dict[str, list[Interval]] = {}
    for row in connection.execute(sa.select(RPO_INTERVALS).where(*where)):
        found.setdefault(row.item, []).append(_interval(row))
    return found


def _write_changes(rows: Sequence[tuple[str, HealthChange]], connection: Connection) -> None:
    """Those that are other than what is there: after a restart every item's health comes again."""
    newest = (
        sa.select(HEALTH_CHANGES.c.item, sa.func.max(HEALTH_CHANGES.c.at).label("at"))
        .where(HEALTH_CHANGES.c.item.in_({item for item, _ in rows}))
        .group_by(HEALTH_CHANGES.c.item)
        .subquery()
    )
    same = sa.and_(HEALTH_CHANGES.c.item == newest.c.item, HEALTH_CHANGES.c.at == newest.c.at)
    known = {
        row.item: (row.health, row.code)
        for row in connection.execute(sa.select(HEALTH_CHANGES).join(newest, same))
    }
    values = []
    for item, change in rows:
        if known.get(item) != (change.health, change.code):
            known[item] = (change.health, change.code)
            values.append(
                {
                    "item": item,
                    "at": moment(change.at),
                    "health": change.health,
                    "code": change.code,
                    "note": change.note,
                }
            )
    bulk.add(connection, HEALTH_CHANGES, values)


def _batches(rows: Sequence[_T]) -> list[Sequence[_T]]:
    return [rows[start : start + BATCH_MAX] for start in range(0, len(rows), BATCH_MAX)]


def _interval(row: sa.Row[tuple[object, ...]]) -> Interval:
    return Interval(Rpo(row.state), from_moment(row.since), from_moment(row.until))
