"""A worker's hold on a job, and the one way to write under it.

Every write of a worker goes through `Hold.write`: in the transaction, before anything else, the job's row is
locked and must still name this worker and this epoch. A worker that was taken for dead can therefore write
nothing, however late it wakes up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.server.database.engine import Database
from secondsite.server.database.errors import DatabaseBusy, DatabaseUnavailable
from secondsite.server.database.tables_jobs import jobs
from secondsite.server.jobs.errors import LeaseLost

T = TypeVar("T")

RETRY_SECONDS_MIN = 0.1
RETRY_SECONDS_MAX = 2.0


class Hold:
    """One job held by one worker under one epoch; used by one thread."""

    def __init__(
        self,
        database: Database,
        stop: threading.Event,
        *,
        job: str,
        worker: str,
        epoch: int,
        revision: int,
    ) -> None:
        self.database = database
        self.job = job
        self.worker = worker
        self.epoch = epoch
        self.revision = revision
        self._stop = stop

    def write(self, work: Callable[[Connection, Row[Any]], tuple[dict[str, object], T]]) -> T:
        """Run `work` in a transaction that only the holder can have.

        `work` is given the job's row as it is now, returns what to set in it and a value, and may be run
        again. While the database is away it is waited for; a write whose end was never heard of is recognised
        by the row's revision and not done twice. Raises LeaseLost.
        """
        value: list[T] = []
        unsure = False
        pause = RETRY_SECONDS_MIN
        while True:
            try:
                with self.database.write(alone=False) as connection:
                    row = self._row(connection)
                    if unsure and row.epoch == self.epoch and row.revision == self.revision + 1:
                        break  # it was kept after all
                    self._check(row)
                    changed, result = work(connection, row)
                    value[:] = [result]
                    self._set(connection, changed)
                break
            except (DatabaseUnavailable, DatabaseBusy) as error:
                unsure = unsure or (bool(value) and isinstance(error, DatabaseUnavailable))
                if self.database.clock.wait(self._stop, pause):
                    raise LeaseLost(job=self.job, epoch=self.epoch) from error
                pause = min(2 * pause, RETRY_SECONDS_MAX)
        self.revision += 1
        return value[0]

    def _row(self, connection: Connection) -> Row[Any]:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == self.job).with_for_update()).one_or_none()
        if row is None:
            raise LeaseLost(job=self.job, epoch=self.epoch)
        return row

    def _check(self, row: Row[Any]) -> None:
        if row.worker != self.worker or row.epoch != self.epoch or row.revision != self.revision:
            raise LeaseLost(job=self.job, epoch=self.epoch)

    def _set(self, connection: Connection, changed: dict[str, object]) -> None:
        now = self.database.now()
        values = {"changed": now, **changed, "revision": self.revision + 1}
        connection.execute(jobs.update().where(jobs.c.id == self.job).values(**values))
