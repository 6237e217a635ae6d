"""What gateways report of their items: heard at once, written once a second, only what changed.

A report is compared with what the database holds, outside any write; the few rows that differ are written
in short batches, each row under the condition that it is still what it was compared with: several servers
and the jobs may write meanwhile, and what lost is written with the next report. While the database is away
the newest report of each gateway waits in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.model.events import Severity
from secondsite.model.itemfailovers import TAKEN_OVER
from secondsite.model.items import ProtectedState
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.database.tables_jobs import job_locks
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.items.generations import generation_of, raise_generations
from secondsite.server.items.news import News, compare, write_batch
from secondsite.server.items.reconcile import Settling, settle
from secondsite.server.items.records import Item, item_of, lock_key, query
from secondsite.server.items.service import Items
from secondsite.server.items.settled import Settled, Watched
from secondsite.server.items.takeover import lacking_target, take_as_target, take_over
from secondsite.server.rounds import Round, Rounds
from secondsite.transfer.reports import TELL_MAX, ProtectionReport, Report, ReportAnswer

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0
# A gateway that says nothing is found out of itself: none reports that.
SWEEP_SECONDS = 10.0
# After a server's own start its gateways need a moment to be heard of again.
SETTLE_SECONDS = 60.0
SILENT = "gateway.silent"
# A job that changes an item waits at most for one batch: some milliseconds.
BATCH_MAX = 250


@dataclass(frozen=True)
class Heard:
    """A gateway's report, and when it came (moment text)."""

    who: GatewayIdentity
    report: Report
    at: str


class Reports:
    """Thread-safe. `start` once, `close` at the end; tests call `flush`."""

    def __init__(self, items: Items, clock: Clock) -> None:
        # has a waiting job look again (`Jobs.wake`)
        self.wake: Callable[[Connection, str], None] = lambda _connection, _job: None
        self.nudge: Callable[[], None] = lambda: None  # once that stands: this server's worker looks at once
        # the ids of the gateways that were heard of lately; None: nobody looks for silent ones
        self.connected: Callable[[], Sequence[str]] | None = None
        self._items = items
        self._database = items.database
        self._clock = clock
        self.looked: Callable[[Heard, Sequence[Watched]], None] = lambda _heard, _items: None  # for histories
        self._lock = threading.Lock()
        # bounded by the number of registered gateways: only they get this far
        self._waiting: dict[str, Heard] = {}
        # item and gateway of those told of; bounded by the items
        self._conflicts: set[tuple[str, str]] = set()
        self._next_sweep = clock.monotonic() + SETTLE_SECONDS
        self._settled = Settled()
        waits = "reports wait in memory"
        self._rounds = Rounds(
            Round("reports", self._write_and_sweep, WRITE_SECONDS, waits, at_end=True), clock
        )

    def start(self) -> None:
        """Write what came in, once a second, until `close`."""
        self._rounds.start()

    def close(self) -> None:
        """Write what is left."""
        self._rounds.close()

    def heard(self, who: GatewayIdentity, report: Report) -> ReportAnswer:
        """A gateway reports now; the answer says what it is to fetch and to tell."""
        with self._lock:
            self._waiting[who.id] = Heard(who, report, self._items.now())
        with self._database.read() as connection:
            generation = generation_of(connection, who.id)
            columns = (ITEMS.c.machine, ITEMS.c.revision, ITEMS.c.managed, ITEMS.c.state)
            mine = (ITEMS.c.vault_id == who.vault_id, ITEMS.c.source_id == who.id)
            known = {row.machine: row for row in connection.execute(sa.select(*columns).where(*mine))}
        tell = []
        for said in report.protections:
            row = known.get(said.machine)
            ended = row is not None and row.state == ProtectedState.UNPROTECTED.value
            if said.wanted is None and (
                row is None or not row.managed or ended or said.revision > row.revision
            ):
                tell.append(said.machine)
        if report.generation > generation:  # this server was restored from a backup: count on from there
            self._database.run(
                lambda connection: raise_generations(connection, [who.id], above=report.generation),
                alone=False,
            )
            generation = report.generation + 1
        return ReportAnswer(generation=generation, tell=tuple(tell[:TELL_MAX]))

    def flush(self) -> int:
        """Write what came in since the last time; how many rows changed. Raises what the database does."""
        with self._lock:
            taken = dict(self._waiting)
        changed = 0
        for gateway, heard in sorted(taken.items()):
            changed += self._take(heard)
            with self._lock:
                if self._waiting.get(gateway) is heard:
                    del self._waiting[gateway]
        return changed

    def sweep(self) -> int:
        """Mark the items of gateways that fell silent, so that they are found by their health; how many.

        The next report says again how they are.
        """
        if self.connected is None:
            return 0
        # of a machine that was taken over the target tells: that its source is silent is expected
        others = [ProtectedState.UNPROTECTED.value, *sorted(state.value for state in TAKEN_OVER)]
        live = (ITEMS.c.state.not_in(others), ITEMS.c.health_code != SILENT)
        with self._database.read() as connection:
            sources = set(connection.execute(sa.select(ITEMS.c.source_id).where(*live).distinct()).scalars())
        silent = sorted(sources - set(self.connected()))
        if not silent:
            return 0
        note = "Its gateway is not heard of: what is shown is old."
        values = {"health": "Critical", "health_code": SILENT, "health_note": note}

        def work(connection: Connection) -> int:
            mine = sa.update(ITEMS).where(*live, ITEMS.c.source_id.in_(silent[:BATCH_MAX]))
            return connection.execute(mine.values(**values)).rowcount

        return self._database.run(work, alone=False)

    def _take(self, heard: Heard) -> int:
        who = heard.who
        ends = sa.or_(ITEMS.c.source_id == who.id, ITEMS.c.target_id == who.id)
        with self._database.read() as connection:
            lacking = lacking_target(connection, who)[:BATCH_MAX]
            looks = self._settled.look(connection, who, heard.report, heard.at)
            which = ITEMS.c.id.in_(looks.ids) if looks.few else ends
            rows = connection.execute(query().where(which, ITEMS.c.vault_id == who.vault_id))
            known = [item_of(row) for row in rows if row.id in looks.ids]
            news = compare(connection, heard.who, looks.report, heard.at, known)
        changed = {str(row["the_id"]) for row in news.items} | {told[0].id for told in news.events}
        changed |= {settling.item.id for settling in news.settled}
        told = {one.machine for one in news.told}
        news.reports = sorted([*news.reports, *looks.measured], key=lambda row: str(row["item"]))
        news.machines += [one.machine for one in looks.fresh.values()]
        if lacking:
            self._database.run(partial(_as_target, who, lacking), alone=False)
        self.looked(heard, [*known, *looks.rest])
        self._write(news)
        stayed = [item for item in known if item.id not in changed and item.machine not in told]
        self._settled.remember(who, looks, stayed)
        for said in news.told:
            taken = partial(self._taken_over, who, said)
            try:
                self._database.run(taken)
            except SecondsiteError as error:
                log.warning("what gateway %s protects was not taken over: %s", who.name, error)
        self._wake_jobs([*news.machines, *(said.machine for said in news.told)])
        return len(news)

    def _write(self, news: News) -> None:
        for batch in news.batches(BATCH_MAX):
            self._database.run(partial(_write, batch), alone=False)
        for told in news.events:
            self._database.run(partial(self._tell, told), alone=False)
        for settling in news.settled:
            self._database.run(partial(self._settle, settling), alone=False)

    def _taken_over(self, who: GatewayIdentity, said: ProtectionReport, connection: Connection) -> None:
        take_over(self._items, connection, who, said, self._conflicts)

    def _settle(self, found: Settling, connection: Connection) -> None:
        settle(self._items, connection, found)

    def _tell(self, told: tuple[Item, Severity, str, str], connection: Connection) -> None:
        self._items.tell(connection, *told)

    def _wake_jobs(self, machines: Sequence[str]) -> None:
        """In a transaction of its own: a job's own writes lock its row first, and items' rows then."""
        keys, locks = {lock_key(machine) for machine in machines}, job_locks.c
        after, before = lock_key(""), lock_key("\U0010ffff")
        with self._database.read() as connection:  # of as many as jobs run, where machines are thousands
            held = sa.select(locks.key, locks.job).where(locks.key >= after, locks.key < before)
            jobs = sorted({row.job for row in connection.execute(held) if row.key in keys} if keys else ())
        for start in range(0, len(jobs), BATCH_MAX):
            some = jobs[start : start + BATCH_MAX]
            self._database.run(partial(self._wake_all, some), alone=False)
        if jobs:
            self.nudge()

    def _wake_all(self, jobs: Sequence[str], connection: Connection) -> None:
        for job in jobs:
            self.wake(connection, job)

    def _write_and_sweep(self) -> None:
        self.flush()
        if self._clock.monotonic() >= self._next_sweep:
            self._next_sweep = self._clock.monotonic() + SWEEP_SECONDS
            self.sweep()


def _write(batch: News, connection: Connection) -> None:
    write_batch(connection, batch)


def _as_target(who: GatewayIdentity, found: Sequence[str], connection: Connection) -> None:
    take_as_target(connection, who, found)
