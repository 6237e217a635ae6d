"""What is measured when Prometheus asks: items, gateways, calls, events, alerts, the database.

Series are bounded: the age of the newest point is told of the items where it is oldest, and
how many are left out is told as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.model.items import ProtectedState
from secondsite.server.api.services import Services
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_calls import CALLS
from secondsite.server.database.tables_events import ALERT_CHANNELS, ALERT_MESSAGES, EVENTS_HEAD
from secondsite.server.database.tables_items import ITEMS, REPORTS
from secondsite.server.database.values import from_moment
from secondsite.server.events.intervals import Rpo
from secondsite.server.identity.gateways import Gateways
from secondsite.server.identity.states import GatewayState

# A series costs Prometheus some kilobytes; who has more items wants those that are late.
ITEMS_TOLD_MAX = 1000
NAME_CHARACTERS_MAX = 100


class Measures(Collector):
    """Reads everything anew with each question; part of no registry, asked by `Metrics.text`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """All families. Raises what the database raises."""
        services = self._services
        now = services.clock.utc()
        with services.database.read() as connection:
            yield from _items(connection, now)
            yield _one(
                "secondsite_calls_waiting", "Calls to gateways without an answer yet", _calls(connection)
            )
            yield from _events(connection)
            yield from _last_hour(services.events.counts(connection, now - timedelta(hours=1)))
            yield from _alerts(connection)
            size = _database_bytes(connection, services.database)
        yield _one("secondsite_database_bytes", "Size of the database", size)
        if services.identity is not None:
            yield _gateways(services.identity.gateways, now)
        if services.telling is not None:
            missed = services.telling.histories.going_on(Rpo.MISSED)
            text = "Items that miss their recovery point objective now, of those this server hears of"
            yield _one("secondsite_items_rpo_missed", text, missed)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _items(connection: Connection, now: datetime) -> Iterator[Metric]:
    live = ITEMS.c.state != ProtectedState.UNPROTECTED.value
    counted = sa.select(ITEMS.c.state, ITEMS.c.health, sa.func.count()).where(live)
    found = GaugeMetricFamily(
        "secondsite_items", "Protected items, by state and health", labels=["state", "health"]
    )
    total = 0
    for state, health, count in connection.execute(counted.group_by(ITEMS.c.state, ITEMS.c.health)):
        found.add_metric([state, health], count)
        total += count
    yield found
    ages = GaugeMetricFamily(
        "secondsite_item_rpo_seconds",
        "Age of an item's newest recovery point, of those it is oldest of",
        labels=["item", "name"],
    )
    joined = ITEMS.join(REPORTS, REPORTS.c.item == ITEMS.c.id)
    oldest = (
        sa.select(ITEMS.c.id, ITEMS.c.name, REPORTS.c.last_point_here)
        .select_from(joined)
        .where(live, REPORTS.c.last_point_here.is_not(None))
        .order_by(REPORTS.c.last_point_here)
        .limit(ITEMS_TOLD_MAX)
    )
    told = 0
    for row in connection.execute(oldest):
        age = (now - from_moment(row.last_point_here)).total_seconds()
        ages.add_metric([row.id, row.name[:NAME_CHARACTERS_MAX]], max(0.0, age))
        told += 1
    yield ages
    yield _one(
        "secondsite_items_without_rpo", "Items whose age is not told: no point yet, or too many", total - told
    )


def _calls(connection: Connection) -> int:
    waiting = sa.select(sa.func.count()).select_from(CALLS).where(CALLS.c.answered_at.is_(None))
    return int(connection.execute(waiting).scalar_one())


def _events(connection: Connection) -> Iterator[Metric]:
    head = connection.execute(sa.select(EVENTS_HEAD)).one_or_none()
    written, dropped = (head.number, head.dropped) if head is not None else (0, 0)
    yield CounterMetricFamily("secondsite_events", "Events written", value=written)
    yield CounterMetricFamily("secondsite_events_dropped", "Events dropped by age or number", value=dropped)


def _last_hour(counts: dict[Severity, int]) -> Iterator[Metric]:
    found = GaugeMetricFamily(
        "secondsite_events_last_hour", "Events of the last hour, by severity", labels=["severity"]
    )
    for severity, count in counts.items():
        found.add_metric([severity.value], count)
    yield found


def _alerts(connection: Connection) -> Iterator[Metric]:
    waits = sa.select(sa.func.count()).select_from(ALERT_MESSAGES).where(ALERT_MESSAGES.c.sent_at.is_(None))
    yield _one(
        "secondsite_alerts_waiting", "Messages that are not delivered", connection.execute(waits).scalar_one()
    )
    failing = GaugeMetricFamily(
        "secondsite_alert_channel_failing", "1: the last try to deliver failed", labels=["channel"]
    )
    columns = (ALERT_CHANNELS.c.name, ALERT_CHANNELS.c.sent_at, ALERT_CHANNELS.c.failed_at)
    for row in connection.execute(sa.select(*columns)):
        failing.add_metric([row.name], float((row.failed_at or "") > (row.sent_at or "")))
    yield failing


def _gateways(gateways: Gateways, now: datetime) -> Metric:
    counts: Counter[str] = Counter({"Connected": 0, "Disconnected": 0})
    after = ""
    while page := gateways.page(after=after):
        for gateway in page:
            if gateway.state is not GatewayState.REGISTERED:
                counts[gateway.state.value] += 1
            elif gateway.contact is not None and gateway.contact.connected(now):
                counts["Connected"] += 1
            else:
                counts["Disconnected"] += 1
        after = page[-1].name
    found = GaugeMetricFamily("secondsite_gateways", "Gateways, by state", labels=["state"])
    for state, count in sorted(counts.items()):
        found.add_metric([state], count)
    return found


def _database_bytes(connection: Connection, database: Database) -> int:
    if database.is_sqlite:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        return int(pages) * int(connection.exec_driver_sql("PRAGMA page_size").scalar_one())
    return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
