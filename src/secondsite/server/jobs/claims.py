"""Who has which job: workers show a sign of life, take what is due, and take over from those who show none.

A worker's beat is a number that grows. A peer that has seen it stand still for the lease's length, by its own
monotonic clock, declares it dead: no clock is ever compared with another's. All of a dead worker's jobs are
freed in one transaction with its row, so there is no moment at which it is half dead.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_jobs import job_steps, job_workers, jobs
from secondsite.server.database.values import fresh_id, moment
from secondsite.server.jobs import processes
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.service import add_log
from secondsite.server.jobs.states import LIVE, JobState

GIVEN_BACK_SECONDS = 60.0
_LIVE = [state.value for state in LIVE]


@dataclass
class _Seen:
    beat: int
    since: float  # monotonic, ours


class Claims:
    """One worker's part in sharing the jobs of a database; used by its dispatcher's thread."""

    def __init__(self, database: Database, kinds: Sequence[str], lease_seconds: float) -> None:
        self.database = database
        self.kinds = tuple(kinds)
        self.lease_seconds = lease_seconds
        self.worker = ""
        self._peers: dict[str, _Seen] = {}

    def join(self) -> None:
        """Be known as a worker, under a new id."""
        worker, now = fresh_id(self.database.clock), self.database.now()
        name = f"{platform.node()}:{os.getpid()}"
        with self.database.write(alone=False) as connection:
            connection.execute(
                job_workers.insert().values(
                    id=worker, name=name, process=processes.own(), beat=0, started=now, seen=now
                )
            )
        self.worker = worker

    def leave(self) -> None:
        """Give back what is still held, at once, and be no worker any more."""
        with self.database.write(alone=False) as connection:
            self._bury(connection, self.worker, "its worker stopped")
        self.worker = ""

    def beat(self) -> bool:
        """Show that this worker lives. False: it was declared dead, its jobs are lost, it must join again."""
        with self.database.write(alone=False) as connection:
            changed = connection.execute(
                job_workers.update()
                .where(job_workers.c.id == self.worker)
                .values(beat=job_workers.c.beat + 1, seen=self.database.now())
            )
            return changed.rowcount == 1

    def take_over(self) -> int:
        """Look at the peers' beats; free the jobs of those that stood still for a lease. How many died."""
        now = self.database.clock.monotonic()
        with self.database.read() as connection:
            peers = connection.execute(
                sa.select(job_workers.c.id, job_workers.c.beat, job_workers.c.process).where(
                    job_workers.c.id != self.worker
                )
            ).all()
        known, self._peers = self._peers, {}
        died = 0
        for worker, beat, process in peers:
            seen = known.get(worker)
            if processes.surely_gone(process):
                died += self._declare_dead(worker, beat)
            elif seen is None or seen.beat != beat:
                self._peers[worker] = _Seen(beat, now)
            elif now - seen.since < self.lease_seconds:
                self._peers[worker] = seen
            else:
                died += self._declare_dead(worker, beat)
        return died

    def take(self, limit: int, stop: threading.Event) -> list[Hold]:
        """At most `limit` jobs that are due, those that have waited longest first, each under a new epoch."""
        if limit <= 0 or not self.kinds:
            return []
        now = self.database.now()
        due = (
            sa.select(jobs.c.id, jobs.c.epoch, jobs.c.revision)
            .where(jobs.c.worker.is_(None), jobs.c.ready <= now, jobs.c.kind.in_(self.kinds))
            .where(jobs.c.state.in_(_LIVE))
            .order_by(jobs.c.ready, jobs.c.id)
            .limit(limit)
        )
        with self.database.read() as connection:  # an idle worker takes no writer's turn
            if connection.execute(due.limit(1)).first() is None:
                return []
        with self.database.write(alone=False) as connection:
            rows = connection.execute(due.with_for_update(skip_locked=True)).all()
            ids = [row.id for row in rows]
            connection.execute(
                jobs.update()
                .where(jobs.c.id.in_(ids))
                .values(
                    worker=self.worker,
                    epoch=jobs.c.epoch + 1,
                    woken=0,
                    state=sa.case(
                        (jobs.c.state == JobState.NOT_STARTED.value, JobState.IN_PROGRESS.value),
                        else_=jobs.c.state,
                    ),
                    started=sa.func.coalesce(jobs.c.started, now),
                    changed=now,
                )
            )
        return [
            Hold(
                self.database,
                stop,
                job=row.id,
                worker=self.worker,
                epoch=row.epoch + 1,
                revision=row.revision,
            )
            for row in rows
        ]

    def give_back(self, hold: Hold, why: str) -> None:
        """Let go of a job this worker cannot go on with; it is due again in a minute."""
        at = self.database.clock.utc()
        with self.database.write(alone=False) as connection:
            mine = connection.execute(
                jobs.update()
                .where(jobs.c.id == hold.job, jobs.c.worker == hold.worker, jobs.c.epoch == hold.epoch)
                .values(
                    worker=None, woken=0, ready=moment(at + timedelta(seconds=GIVEN_BACK_SECONDS)), note=why
                )
            )
            if mine.rowcount:
                add_log(connection, hold.job, moment(at), why, level="error")

    def let_go(self, carried: Collection[tuple[str, int]]) -> int:
        """Free what this worker has by the database and does not carry out. How many that were.

        carried: jobs it carries out, each with the epoch under which it does.

        The database may have kept a taking, or not kept a giving back, whose answer was lost with the
        connection: as long as this worker lives no peer would ever free that.
        """
        now = self.database.now()
        mine = sa.select(jobs.c.id, jobs.c.epoch).where(jobs.c.worker == self.worker).order_by(jobs.c.id)
        with self.database.read() as connection:  # nearly always there is nothing
            if all((row.id, row.epoch) in carried for row in connection.execute(mine)):
                return 0
        with self.database.write(alone=False) as connection:
            held = connection.execute(mine.with_for_update()).all()
            strays = [row.id for row in held if (row.id, row.epoch) not in carried]
            for job in strays:
                connection.execute(
                    jobs.update().where(jobs.c.id == job).values(worker=None, ready=now, woken=0, changed=now)
                )
                add_log(connection, job, now, "its worker did not learn that it had it", level="warning")
        return len(strays)

    def name_strangers(self) -> None:
        """Say on due jobs of kinds this program does not know that they wait for a server that does."""
        note = "no server that looked knows this kind of job: update the servers, or cancel it"
        with self.database.write(alone=False) as connection:
            connection.execute(
                jobs.update()
                .where(jobs.c.worker.is_(None), jobs.c.ready <= self.database.now())
                .where(jobs.c.kind.not_in(self.kinds), jobs.c.state.in_(_LIVE), jobs.c.note.is_(None))
                .values(note=note)
            )

    def _declare_dead(self, worker: str, beat: int) -> int:
        # A claim the dead one commits in between keeps its row from being deleted: then all is as it was, and
        # the next look does it.
        with contextlib.suppress(IntegrityError), self.database.write(alone=False) as connection:
            still = connection.execute(
                job_workers.update()
                .where(job_workers.c.id == worker, job_workers.c.beat == beat)
                .values(
                    beat=beat
                )  # nothing new: it locks the row, so that the dead one cannot beat meanwhile
            )
            if still.rowcount:
                self._bury(connection, worker, "its worker showed no sign of life; taken over")
                return 1
        return 0

    def _bury(self, connection: Connection, worker: str, why: str) -> None:
        now = self.database.now()
        held = connection.execute(
            sa.select(jobs.c.id).where(jobs.c.worker == worker).order_by(jobs.c.id).with_for_update()
        ).scalars()
        for job in list(held):
            running = sa.select(jobs.c.step).where(jobs.c.id == job).scalar_subquery()
            connection.execute(
                job_steps.update()
                .where(job_steps.c.job == job, job_steps.c.number == running)
                .values(lost=job_steps.c.lost + 1)
            )
            connection.execute(
                jobs.update().where(jobs.c.id == job).values(worker=None, ready=now, woken=0, changed=now)
            )
            add_log(connection, job, now, why, level="warning")
        connection.execute(job_workers.delete().where(job_workers.c.id == worker))
