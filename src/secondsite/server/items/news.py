"""What a report changes: compared with what is known, then written row by row under conditions.

Pure but for the two functions at the end, which read the replicas and write a batch.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.itemfailovers import STANDING, TAKEN_OVER
from secondsite.model.items import COUNTED, TABLE, ProtectedState, reported
from secondsite.server.database.bulk import upsert
from secondsite.server.database.tables_failovers import FAILOVERS, HELD
from secondsite.server.database.tables_items import ITEMS, REPLICAS, REPORTS
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.items.failovers import (
    follow,
    found_text,
    health_of,
    is_older,
    migrated_text,
    walk,
)
from secondsite.server.items.reconcile import Settling, Told, reconciled
from secondsite.server.items.records import Item
from secondsite.transfer.reports import FailoverReport, HeldReport, ProtectionReport, ReplicaReport, Report

# The same point's age, told twice, differs by how long the report was on its way: no reason to write.
INSTANT_SECONDS = 2.0
_ITEM_COLUMNS = (
    "state",
    "state_since",
    "health",
    "health_code",
    "health_note",
    "source_revision",
    "target_revision",
    "refused",
    "source_done",
    "target_done",
    "first_protected_at",
    "failover_id",
    "left_behind",
)


@dataclass
class News:
    """The rows a report changes. told: protections that the server is to take over."""

    items: list[dict[str, object]] = field(default_factory=list)
    reports: list[dict[str, object]] = field(default_factory=list)
    replicas: list[dict[str, object]] = field(default_factory=list)
    gone: list[tuple[str, str]] = field(default_factory=list)  # replicas: gateway, machine
    # of the two tables of failing over: rows, and those that are gone
    failovers: list[dict[str, object]] = field(default_factory=list)
    held: list[dict[str, object]] = field(default_factory=list)
    over: list[tuple[sa.Table, str, str]] = field(default_factory=list)
    told: list[ProtectionReport] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    events: list[tuple[Item, Severity, str, str]] = field(default_factory=list)
    settled: list[Settling] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts())

    def _parts(self) -> tuple[Sequence[object], ...]:
        return (
            self.items,
            self.reports,
            self.replicas,
            self.gone,
            self.failovers,
            self.held,
            self.over,
        )

    def batches(self, size: int) -> Iterator[News]:
        """Parts of at most so many rows of each kind."""
        for start in range(0, max(len(part) for part in self._parts()), size):
            cut = slice(start, start + size)
            yield News(
                self.items[cut],
                self.reports[cut],
                self.replicas[cut],
                self.gone[cut],
                self.failovers[cut],
                self.held[cut],
                self.over[cut],
            )


@dataclass
class _Row:
    """An item's columns that reports change, before and after."""

    item: Item
    values: dict[str, object]
    now: str

    @classmethod
    def of(cls, item: Item, now: str) -> _Row:
        values: dict[str, object] = {name: getattr(item, name) for name in _ITEM_COLUMNS}
        values["state"] = item.state.value
        values["state_since"] = moment(item.state_since)
        values["source_done"], values["target_done"] = int(item.source_done), int(item.target_done)
        first = item.first_protected_at
        values["first_protected_at"] = None if first is None else moment(first)
        return cls(item, values, now)

    def changed(self, before: Mapping[str, object]) -> dict[str, object] | None:
        if self.values == before:
            return None
        item = self.item
        keys = {
            "the_id": item.id,
            "the_revision": item.revision,
            "the_state": item.state.value,
            "the_left": item.left_behind,
        }
        return {**keys, **self.values}


def compare(
    connection: Connection, who: GatewayIdentity, report: Report, at: str, known: Sequence[Item]
) -> News:
    """What of a report, heard at `at`, is new. known: every item the gateway is an end of."""
    news = News()
    rows = {item.id: _Row.of(item, at) for item in known}
    before = {item.id: dict(rows[item.id].values) for item in known}
    by_machine = {item.machine: item for item in known}
    said = {one.machine: one for one in report.protections}
    kept = {one.machine: one for one in report.replicas}
    over = {one.machine: one for one in report.failovers}
    for item in known:
        row = rows[item.id]
        if item.source_id == who.id:
            _source(row, said.get(item.machine), report, news)
        if item.target_id == who.id:
            _target(row, kept.get(item.machine), report)
            _failover(row, over.get(item.machine), kept.get(item.machine), (who, news))
        changed = row.changed(before[item.id])
        replica = kept.get(item.machine)
        epoch = replica.epoch if replica is not None else 0
        told = Told(who, report, said.get(item.machine), over.get(item.machine), epoch)
        settling = reconciled(item, told, at) if row.values["state"] == item.state.value else None
        if settling is not None:
            news.settled.append(settling)
            news.machines.append(item.machine)
        if changed is not None:
            news.items.append(changed)
            news.machines.append(item.machine)
    for machine, one in said.items():
        found = by_machine.get(machine)
        if found is None or found.source_id != who.id or is_news(found, one):
            news.told.append(one)
    _replicas(connection, who, report, news)
    for table, tells, into in (
        (FAILOVERS, report.failovers, news.failovers),
        (HELD, report.held, news.held),
    ):
        fresh = _told(connection, who, table, tells, news)
        into += [{**one_row, "sent_at": report.sent_at} for one_row in fresh]
    news.items.sort(key=lambda row: str(row["the_id"]))
    news.reports.sort(key=lambda row: str(row["item"]))
    return news


def is_news(item: Item, one: ProtectionReport) -> bool:
    """Whether the item's source gateway works towards something that the server does not know."""
    if item.state is ProtectedState.UNPROTECTED and item.source_done:
        return one.state != "DisablingProtection"  # protected again, at the gateway itself
    return one.wanted is not None and (one.revision > item.revision or not item.managed)


def _source(row: _Row, one: ProtectionReport | None, report: Report, news: News) -> None:
    item, values = row.item, row.values
    heard_newest = report.generation >= item.source_generation
    if one is None:
        if not item.enabled:
            values["source_done"] = int(item.source_done or heard_newest)
            left = report.left_behind.get(item.id, "")
            if left and heard_newest and left not in item.left_behind:
                values["left_behind"] = f"{item.left_behind}; {left}" if item.left_behind else left
        elif heard_newest and item.managed:
            refused = report.refused.get(item.id, "")
            _refused(row, refused)
            fresh = (ProtectedState.UNPROTECTED, ProtectedState.ENABLING)
            if not refused and item.state not in fresh and item.state not in TAKEN_OVER:
                _health(row, "Critical", "item.not-at-gateway", "Its gateway does not protect it any more.")
        return
    values["source_revision"] = one.revision
    if item.managed and (item.state is ProtectedState.UNPROTECTED or one.revision > item.revision):
        return  # it was ended here and not yet there, or the gateway knows better: taken over first
    _moved(row, one)
    _refused(row, report.refused.get(item.id, "") if heard_newest else item.refused)
    if not values["refused"] and item.state not in TAKEN_OVER:
        code, note = one.code, one.note
        if one.bitmap_mode:
            code = code or "item.bitmap-mode"
            note = note or "Captures wait; the host's own tracking goes on."
            if item.reported is not None and not item.reported.bitmap_mode:
                news.events.append((item, Severity.WARNING, "item.bitmap-mode", _bitmap(item, note)))
        _health(row, one.health, code, note)
    measured = _measured(item, one, report, row.now)
    if measured is not None:
        news.reports.append(measured)
        if item.machine not in news.machines:
            news.machines.append(item.machine)


def _bitmap(item: Item, note: str) -> str:
    return f"{item.name} has fallen into bitmap mode: {note}"


def _moved(row: _Row, one: ProtectionReport) -> None:
    item = row.item
    event = reported(
        item.state,
        one.state,
        finalized=item.finalized_at is not None,
        resync_waits=one.resynced < item.resync or one.revision < item.revision,
    )
    if event is None or one.revision < item.revision:
        return  # what it does is not yet what is wanted now
    state = TABLE[item.state][event]
    if state is not item.state:
        row.values |= {"state": state.value, "state_since": row.now}
    if row.values["first_protected_at"] is None and (state in COUNTED or state is ProtectedState.COPIED):
        row.values["first_protected_at"] = row.now


def _refused(row: _Row, why: str) -> None:
    row.values["refused"] = why
    if why:
        _health(row, "Critical", "item.gateway-refused", why)
        if row.item.state in (ProtectedState.ENABLING, ProtectedState.COPYING):
            event = reported(row.item.state, "EnablingFailed", finalized=False, resync_waits=False)
            assert event is not None
            row.values |= {"state": TABLE[row.item.state][event].value, "state_since": row.now}


def _health(row: _Row, health: str, code: str, note: str) -> None:
    row.values |= {"health": health, "health_code": code, "health_note": note}


def _measured(item: Item, one: ProtectionReport, report: Report, at: str) -> dict[str, object] | None:
    """The row of measurements; None when it is as it was."""
    values: dict[str, Any] = {
        "word": one.state,
        "bitmap_mode": int(one.bitmap_mode),
        "epoch": one.epoch,
        "copying": None if one.copying is None else one.copying.model_dump_json(by_alias=True),
        "resynced": one.resynced,
        "points": one.points,
        "last_point": one.last_point,
        "last_point_at": one.last_point_at,
        "last_consistency": one.last_consistency,
        "spool_bytes": one.spool_bytes,
        "total_changed_bytes": one.total_changed_bytes,
        "total_sent_bytes": one.total_sent_bytes,
    }
    here = None
    if one.rpo_seconds is not None:
        here = from_moment(at) - timedelta(seconds=one.rpo_seconds)
    before = item.reported
    if before is not None:
        same = all(
            getattr(before, name) == value for name, value in values.items() if name != "copying"
        ) and (before.copying is None) == (one.copying is None)
        if same and before.copying is not None and one.copying is not None:
            same = before.copying == one.copying.model_dump(by_alias=True)
        known = before.last_point_here
        if known is not None and here is not None and abs((here - known).total_seconds()) < INSTANT_SECONDS:
            here = known
        if same and here == known:
            return None
    last = None if here is None else moment(here)
    return {"item": item.id, "sent_at": report.sent_at, **values, "last_point_here": last}


def _target(row: _Row, one: ReplicaReport | None, report: Report) -> None:
    item, values = row.item, row.values
    if one is not None:
        values["target_revision"] = one.revision
    if item.enabled or report.generation < item.target_generation:
        return
    taken = one is None or (not item.delete_replica and one.revision >= item.revision)
    values["target_done"] = int(item.target_done or taken)


def _failover(
    row: _Row,
    one: FailoverReport | None,
    replica: ReplicaReport | None,
    teller: tuple[GatewayIdentity, News],
) -> None:
    item, values, (who, news) = row.item, row.values, teller
    if one is None or (item.failover is not None and is_older(one, item.failover)):
        return
    events = follow(item, one, epoch=replica.epoch if replica is not None else 0)
    state = walk(item.state, events)
    if events:
        if item.failover_id != one.id:
            news.events.append((item, *found_text(item, one, who.name)))
            values["failover_id"] = one.id
        if state is ProtectedState.MIGRATED:
            news.events.append((item, *migrated_text(item)))
        if state is not item.state:
            values |= {"state": state.value, "state_since": row.now}
    if state in TAKEN_OVER and values["failover_id"] == one.id:
        health, code, note = health_of(item, state, one)
        _health(row, health, code, note)
    elif item.state in STANDING and state not in STANDING:
        _health(row, "Normal", "", "")  # the source's next word says how it is


def _told(
    connection: Connection,
    who: GatewayIdentity,
    table: sa.Table,
    said: Sequence[FailoverReport | HeldReport],
    news: News,
) -> list[dict[str, object]]:
    """The rows that are new; those that are told of no more go."""
    mine = sa.select(table.c.machine, table.c.told).where(table.c.gateway == who.id)
    before = {row.machine: row.told for row in connection.execute(mine)}
    found: list[dict[str, object]] = []
    for one in said:
        text = one.model_dump_json(by_alias=True)
        known = before.pop(one.machine, None)
        if known != text and not _is_older(one, known):
            found.append({"gateway": who.id, "machine": one.machine, "told": text})
            news.machines.append(one.machine)
    news.over += [(table, who.id, machine) for machine in before]
    return found


def _is_older(one: FailoverReport | HeldReport, known: str | None) -> bool:
    if known is None or not isinstance(one, FailoverReport):
        return False
    return is_older(one, FailoverReport.model_validate_json(known))


def _replicas(connection: Connection, who: GatewayIdentity, report: Report, news: News) -> None:
    columns = [REPLICAS.c[name] for name in _REPLICA_COLUMNS]
    mine = sa.select(REPLICAS.c.machine, REPLICAS.c.sent_at, *columns).where(REPLICAS.c.gateway == who.id)
    known = {row[0]: row for row in connection.execute(mine)}
    for one in report.replicas:
        told, before = _told_of(one), known.pop(one.machine, None)
        if before is None or before[2:] != told:
            row = dict(zip(_REPLICA_COLUMNS, told, strict=True))
            news.replicas.append(row | {"gateway": who.id, "machine": one.machine, "sent_at": report.sent_at})
    news.gone += [(who.id, machine) for machine, old in known.items() if old.sent_at <= report.sent_at]


_REPLICA_COLUMNS = tuple(
    column.name for column in REPLICAS.c if column.name not in ("gateway", "machine", "sent_at")
)
_told_of = operator.attrgetter(*_REPLICA_COLUMNS)


def write_batch(connection: Connection, batch: News) -> None:
    """Write one; each row only if it is still what it was compared with."""
    if batch.items:
        still = (
            ITEMS.c.id == sa.bindparam("the_id"),
            ITEMS.c.revision == sa.bindparam("the_revision"),
            ITEMS.c.state == sa.bindparam("the_state"),
            ITEMS.c.left_behind == sa.bindparam("the_left"),  # the one column a job writes without moving it
        )
        given: dict[str, Any] = {name: sa.bindparam(name) for name in _ITEM_COLUMNS}
        connection.execute(sa.update(ITEMS).where(*still).values(**given), batch.items)
    upsert(connection, REPORTS, batch.reports, newer="sent_at")
    upsert(connection, REPLICAS, batch.replicas, newer="sent_at")
    for gateway, machine in batch.gone:
        this = (REPLICAS.c.gateway == gateway, REPLICAS.c.machine == machine)
        connection.execute(sa.delete(REPLICAS).where(*this))
    upsert(connection, FAILOVERS, batch.failovers, newer="sent_at")
    upsert(connection, HELD, batch.held, newer="sent_at")
    for table, gateway, machine in batch.over:
        connection.execute(sa.delete(table).where(table.c.gateway == gateway, table.c.machine == machine))
