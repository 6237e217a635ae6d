"""What a restored database must not go on with as it stands: everything a gateway may have seen grows ahead.

Between the backup and the restore the old server went on: it took jobs, raised epochs, revoked certificates.
None of that is in the backup, so what counts is put far above anything it can have reached, and what was
under way is left to a person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import authorities
from secondsite.server.database.tables_jobs import job_locks, job_steps, jobs
from secondsite.server.database.tables_survival import server_backup_parts, server_state
from secondsite.server.database.values import from_moment, to_json
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.jobs.records import Problem
from secondsite.server.jobs.service import add_log
from secondsite.server.jobs.states import JobState, StepState
from secondsite.server.people.audit import Audit
from secondsite.server.people.roles import THE_SERVER
from secondsite.server.survival.incarnation import next_number

# Above what a server reaches in one life: a job is taken again some times, certificates are revoked by hand.
AHEAD = 1_000_000

BACKUP_JOB = "server.backup"
# Where a job that lived in the backup's moment ends; a person retries it or has it taken back.
_ENDS = {
    JobState.NOT_STARTED: JobState.FAILED,
    JobState.IN_PROGRESS: JobState.FAILED,
    JobState.SUSPENDED: JobState.FAILED,
    JobState.UNDOING: JobState.UNDO_FAILED,
    # only clean-ups were left, which may be done twice: they are done
    JobState.FINISHING: JobState.FINISHING,
}


@dataclass(frozen=True)
class Aftermath:
    """What was changed beside what the backup says."""

    server: str
    incarnation: int
    jobs_for_a_person: int


@dataclass(frozen=True)
class NewLife:
    """A life that was chosen before: a standby's, claimed in the stores.

    handed_over: the state is the last one of a server that had stopped everything in order.
    also: done in the same transaction, at its end.
    """

    incarnation: int
    handed_over: bool = False
    also: Callable[[Connection], None] = lambda _: None


@dataclass(frozen=True)
class Origin:
    """What state it is that is gone on with."""

    server: str
    incarnation: int
    backup: str  # its id; empty: a database that was replicated
    made_at: str


def settle(
    connection: Connection, database: Database, master: MasterKey, origin: Origin, life: NewLife | None = None
) -> Aftermath:
    """Make the rows the next incarnation's, or a chosen one's."""
    now = database.now()
    number = life.incarnation if life else next_number(origin.incarnation, database.clock.utc())
    connection.execute(sa.delete(server_state))
    connection.execute(
        server_state.insert().values(
            id=1,
            server=origin.server,
            incarnation=number,
            restored_from=origin.backup,
            backup_at=origin.made_at,
            restored_at=now,
        )
    )
    connection.execute(sa.delete(server_backup_parts))
    revocations = authorities.c.revocation_number
    connection.execute(authorities.update().values(revocation_number=revocations + AHEAD))
    if life is not None and life.handed_over:
        left = 0
        _go_on_with_jobs(connection, now)
    else:
        left = _jobs(connection, origin.made_at, now)
    audit = Audit(database, master.derive("audit 1"))
    detail: dict[str, str | int | bool | None] = {
        "backup": origin.backup,
        "madeAt": origin.made_at,
        "incarnation": number,
        "jobs": left,
    }
    done = "server.restore" if life is None else "server.take-over"
    audit.append(connection, THE_SERVER, done, origin.server, detail=detail)
    if life is not None:
        life.also(connection)
    return Aftermath(origin.server, number, left)


def _go_on_with_jobs(connection: Connection, now: str) -> None:
    """The server before had stopped them between two tries of a step: a worker of this one takes them."""
    connection.execute(jobs.update().values(worker=None, woken=0, epoch=jobs.c.epoch + AHEAD))
    moving = [state.value for state in _ENDS if state is not JobState.SUSPENDED]
    due = jobs.c.state.in_(moving) & jobs.c.ready.is_not(None)
    connection.execute(jobs.update().where(due).values(ready=now, changed=now))


def _jobs(connection: Connection, made_at: str, now: str) -> int:
    connection.execute(jobs.update().values(worker=None, woken=0, epoch=jobs.c.epoch + AHEAD))
    problem = Problem(
        code="job.restored",
        happened=f"The server was restored from its backup of {from_moment(made_at):%Y-%m-%d %H:%M:%S} UTC.",
        cause="What this job did after that moment is not known here; it may have ended.",
        action="Look at the sites; then `secondsite job retry` goes on with it, `job cancel` takes it back.",
    )
    text = to_json(problem)
    live = sa.select(jobs.c.id, jobs.c.kind, jobs.c.state, jobs.c.step).where(
        jobs.c.state.in_([state.value for state in _ENDS])
    )
    found = connection.execute(live.order_by(jobs.c.id)).all()
    left = 0
    for row in found:
        ends = _ENDS[JobState(row.state)]
        here = jobs.update().where(jobs.c.id == row.id)
        if ends is JobState.FINISHING:
            connection.execute(here.values(ready=now, changed=now))
            continue
        if row.kind == BACKUP_JOB:  # the one this backup was made by: it served its purpose
            ends = JobState.CANCELLED
        left += ends is not JobState.CANCELLED
        values = {"state": ends.value, "error": text, "question": None, "note": None, "ready": None}
        connection.execute(here.values(**values, ended=now, changed=now))
        step = (job_steps.c.job == row.id) & (job_steps.c.number == row.step)
        begun = step & (job_steps.c.state == StepState.IN_PROGRESS.value)
        connection.execute(job_steps.update().where(begun).values(state=StepState.FAILED.value, error=text))
        connection.execute(job_locks.delete().where(job_locks.c.job == row.id))
        add_log(connection, row.id, now, problem.happened, level="error")
    return left
