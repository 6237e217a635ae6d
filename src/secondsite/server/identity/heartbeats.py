"""Heartbeats: what gateways said within the last second is in memory, what they said before in one table.

One batched write a second, whatever comes in: a heartbeat itself writes nothing. While the database is away
the newest word of each gateway waits in memory. Several servers write into the same table; the newest wins.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Row, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import gateway_contacts, gateways
from secondsite.server.database.values import from_moment, moment
from secondsite.server.rounds import Round, Rounds
from secondsite.transfer.enrolment import HEARTBEAT_SECONDS

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0
# SQLite takes 32766 values in one statement; executemany has no such limit, this one bounds a transaction.
BATCH_MAX = 1000
# Three missed in a row: one may be lost to a restart, two to a short cut of the line.
SILENT_AFTER = timedelta(seconds=3 * HEARTBEAT_SECONDS + 5)


@dataclass(frozen=True)
class Contact:
    """A gateway's last word."""

    at: datetime  # the server's clock
    address: str
    version: str
    clock_seconds: float  # by which the gateway's clock is ahead
    refreshed: int
    protected: int
    points: int
    health: str
    url: str | None = None  # where other gateways reach its listener

    def connected(self, now: datetime) -> bool:
        """Whether it was heard of lately."""
        return now - self.at <= SILENT_AFTER


class Heartbeats:
    """Thread-safe. `start` once, `close` at the end; tests call `flush`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        # bounded by the number of registered gateways: only they get this far
        self._waiting: dict[str, Contact] = {}
        waits = "heartbeats wait in memory"
        self._rounds = Rounds(Round("heartbeats", self.flush, WRITE_SECONDS, waits, at_end=True), clock)

    def start(self) -> None:
        """Write what came in, once a second, until `close`."""
        self._rounds.start()

    def close(self) -> None:
        """Write what is left."""
        self._rounds.close()

    def heard(self, gateway_id: str, contact: Contact) -> None:
        """A gateway said something now."""
        with self._lock:
            self._waiting[gateway_id] = contact

    def contacts(self, connection: Connection, gateway_ids: list[str]) -> dict[str, Contact]:
        """The last words of some gateways; those that never said one are left out."""
        query = select(gateway_contacts).where(gateway_contacts.c.gateway_id.in_(gateway_ids))
        found = {row.gateway_id: _contact(row) for row in connection.execute(query)}
        with self._lock:
            for gateway_id in gateway_ids:
                newer = self._waiting.get(gateway_id)
                if newer is not None:
                    found[gateway_id] = newer
        return found

    def flush(self) -> int:
        """Write what came in since the last time; returns how many. Raises what the database raises."""
        with self._lock:
            taken = dict(self._waiting)
        if not taken:
            return 0
        for start in range(0, len(taken), BATCH_MAX):
            batch = dict(list(taken.items())[start : start + BATCH_MAX])
            # each row carries its own condition: several servers may write at once
            self._database.run(functools.partial(_write, batch), alone=False)
        with self._lock:
            for gateway_id, contact in taken.items():
                if self._waiting.get(gateway_id) is contact:
                    del self._waiting[gateway_id]
        return len(taken)


def _write(batch: dict[str, Contact], connection: Connection) -> None:
    known = select(gateways.c.id).where(gateways.c.id.in_(list(batch)))
    rows = []
    # in one order everywhere: two servers that write the same rows must not wait for each other
    for gateway_id in sorted(connection.execute(known).scalars()):
        values = dataclasses.asdict(batch[gateway_id])
        rows.append({"gateway_id": gateway_id, "last_contact": moment(values.pop("at")), **values})
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(gateway_contacts)
    new = statement.excluded
    changed = {column.name: new[column.name] for column in gateway_contacts.c if column.name != "gateway_id"}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[gateway_contacts.c.gateway_id],
            set_=changed,
            where=new.last_contact >= gateway_contacts.c.last_contact,
        ),
        rows,
    )


def _contact(row: Row[tuple[object, ...]]) -> Contact:
    return Contact(
        at=from_moment(row.last_contact),
        address=row.address,
        version=row.version,
        clock_seconds=row.clock_seconds,
        refreshed=row.refreshed,
        protected=row.protected,
        points=row.points,
        health=row.health,
        url=row.url,
    )
