"""Start and steer jobs, each call in the caller's own transaction: its audit entry stands or falls with it.

Rows are locked children before parent and keys in their order, so that PostgreSQL finds no two of our
transactions waiting for each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.server.database.tables_jobs import job_locks, job_log, job_steps, jobs
from secondsite.server.database.values import fresh_id, moment, to_json
from secondsite.server.jobs import records
from secondsite.server.jobs.definitions import Definition, Registry
from secondsite.server.jobs.errors import ApprovalNeeded, JobNotFound, LockHeld
from secondsite.server.jobs.states import (
    ENDED,
    LIVE,
    Action,
    JobEvent,
    JobIllegal,
    JobState,
    StepState,
    after,
)

# What one transaction of the housekeeping deletes: it must not hold the writers up.
DELETE_ROWS_MAX = 200
_ENDED = [state.value for state in ENDED]
_LIVE = [state.value for state in LIVE]
# What of a parent's children a cancel reaches: one that finishes can no more be taken back.
_CANCELLABLE = [state.value for state in LIVE - {JobState.FINISHING}]


@dataclass(frozen=True)
class ApprovalAsked:
    """A job asks for an approval. asked_by: who started it; needed: of how many others."""

    job: str
    vault: str | None
    operation: str
    subject: str
    asked_by: str
    needed: int
    expires_at: str


def _unheard(_connection: Connection, _asked: ApprovalAsked) -> None:
    """Nobody listens."""


class Jobs:
    """The jobs of one database as those see them who ask for them."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self.registry = registry
        self.clock = clock
        # told in the transaction in which a job asks for an approval: the audit log and the events
        self.on_approval: Callable[[Connection, ApprovalAsked], None] = _unheard

    def start(
        self,
        connection: Connection,
        kind: str,
        given: msgspec.Struct,
        actor: str,
        *,
        vault: str | None = None,
        parent: str | None = None,
        child_key: str | None = None,
        parent_retries: int = 0,
        restart_of: str | None = None,
        refused: SecondsiteError | None = None,
    ) -> str:
        """A new job, due at once; its id. Raises JobKindUnknown, LockHeld naming who is in the way.

        vault: the id of the vault whose roles say who sees and steers it; None: what the definition says,
        else the server itself. refused: why it could not begin: it stands there as failed, for a retry.
        """
        definition = self.registry.get(kind)
        assert isinstance(given, definition.input), f"{kind} takes {definition.input.__name__}"
        job, now = fresh_id(self.clock), moment(self.clock.utc())
        connection.execute(
            jobs.insert().values(
                id=job,
                kind=kind,
                version=definition.version,
                title=definition.title(given),
                actor=actor,
                vault=vault or definition.vault(given),
                parent=parent,
                child_key=child_key,
                restart_of=restart_of,
                input=to_json(given),
                parent_retries=parent_retries,
                state=(JobState.NOT_STARTED if refused is None else JobState.FAILED).value,
                step=0,
                action=Action.DO.value,
                error=None if refused is None else to_json(records.problem_of(refused)),
                warnings=0,
                progress=0.0,
                progress_text="",
                retries=0,
                ready=now if refused is None else None,
                ended=None if refused is None else now,
                woken=0,
                epoch=0,
                revision=0,
                created=now,
                changed=now,
            )
        )
        connection.execute(job_steps.insert(), step_rows(job, definition))
        add_log(connection, job, now, f"asked for by {actor}")
        if refused is None:
            take_locks(connection, job, definition.locks(given))
        else:
            add_log(connection, job, now, f"could not begin: {refused.sentences()[0]}", level="error")
        return job

    def cancel(self, connection: Connection, job: str, actor: str) -> None:
        """Have it taken back, once the running step has finished. Raises JobIllegal."""
        after(records.get(connection, job).state, JobEvent.CANCEL, job)
        for child in _live_children(connection, job):
            with contextlib.suppress(JobIllegal):  # it has just ended: its end is the parent's to judge
                self.cancel(connection, child, actor)
        found = self.locked(connection, job)
        state = after(found.state, JobEvent.CANCEL, job)
        if not found.live:  # what a failure left is taken back now, which needs the machine to itself
            self._take_locks_again(connection, found)
        now = moment(self.clock.utc())
        values: dict[str, object] = {
            "state": state.value,
            "cancel_asked": found.cancel_asked or now,
            "cancel_actor": actor,
            "question": None,
            "changed": now,
        }
        if found.state is JobState.NOT_STARTED:
            values |= {"ended": now, "ready": None, "progress_text": ""}
        elif found.worker is None:
            values |= {"ready": now, "note": None, "ended": None}
        if found.state is JobState.FAILED:
            values |= _last_step(connection, job)
        connection.execute(jobs.update().where(jobs.c.id == job).values(**values))
        add_log(connection, job, now, f"cancel asked for by {actor}")
        if found.state is JobState.NOT_STARTED:
            release(connection, job, found.parent, now)

    def resume(
        self, connection: Connection, job: str, answer: str, actor: str, *, decided: bool = False
    ) -> None:
        """Answer a suspended job's question; the step that asked is called again.

        decided: it is an approval's end, which no plain answer can give. Raises JobIllegal, ApprovalNeeded.
        """
        found = self.locked(connection, job)
        state = after(found.state, JobEvent.RESUME, job)
        if found.question is not None and found.question.approval and not decided:
            raise ApprovalNeeded(job=job, operation=found.question.approval)
        now = moment(self.clock.utc())
        connection.execute(
            jobs.update()
            .where(jobs.c.id == job)
            .values(state=state.value, answer=answer, question=None, note=None, ready=now, changed=now)
        )
        add_log(connection, job, now, f"{actor} answered: {answer}")

    def retry(self, connection: Connection, job: str, actor: str) -> None:
        """Go on with the step that failed, or from the first where all was taken back.

        Raises JobIllegal, LockHeld.
        """
        found = self.locked(connection, job)
        state = after(found.state, JobEvent.RETRY, job)
        self._take_locks_again(connection, found)
        now = moment(self.clock.utc())
        values: dict[str, object] = {
            "state": state.value,
            "error": None,
            "note": None,
            "retries": jobs.c.retries + 1,
            "retry_actor": actor,
            "ended": None,
            "ready": now,
            "changed": now,
        }
        undone = connection.execute(
            sa.select(sa.func.count()).where(
                job_steps.c.job == job, job_steps.c.state == StepState.UNDONE.value
            )
        ).scalar_one()
        if state is JobState.IN_PROGRESS and undone:
            values |= {"step": 0, "action": Action.DO.value, "progress": 0.0}
            connection.execute(
                job_steps.update()
                .where(job_steps.c.job == job)
                .values(state=StepState.NOT_STARTED.value, attempt=0, output=None, error=None)
            )
        connection.execute(job_steps.update().where(job_steps.c.job == job).values(failures=0, lost=0))
        connection.execute(jobs.update().where(jobs.c.id == job).values(**values))
        add_log(connection, job, now, f"retry asked for by {actor}")

    def in_the_way(self, connection: Connection, job: str) -> LockHeld | None:
        """Who else has what the job would have to have to go on; None: nobody."""
        found = records.get(connection, job)
        definition = self.registry.get(found.kind)
        keys = definition.locks(msgspec.json.decode(found.input, type=definition.input))
        held = (
            sa.select(job_locks.c.key, jobs.c.id, jobs.c.title)
            .join(jobs, jobs.c.id == job_locks.c.job)
            .where(job_locks.c.key.in_(keys), job_locks.c.job != job)
            .limit(1)
        )
        holder = connection.execute(held).one_or_none()
        return None if holder is None else LockHeld(key=holder.key, job=holder.id, title=holder.title)

    def restart(self, connection: Connection, job: str, actor: str) -> str:
        """The same again as a new job, with this program's steps; its id. Raises JobIllegal, LockHeld."""
        found = records.get(connection, job)
        after(found.state, JobEvent.RESTART, job)
        definition = self.registry.get(found.kind)
        given = msgspec.json.decode(found.input, type=definition.input)
        return self.start(connection, found.kind, given, actor, vault=found.vault, restart_of=job)

    def wake(self, connection: Connection, job: str) -> None:
        """Something a waiting job waits for may have happened: have it look again."""
        wake(connection, job, moment(self.clock.utc()))

    def delete_ended(self, connection: Connection, before: str) -> int:
        """Delete jobs that ended before a moment, with their children, some at a time; how many."""
        old = (
            sa.select(jobs.c.id)
            .where(jobs.c.ended < before, jobs.c.parent.is_(None), jobs.c.state.in_(_ENDED))
            .order_by(jobs.c.ended)
            .limit(DELETE_ROWS_MAX)
        )
        ids = list(connection.execute(old).scalars())
        connection.execute(jobs.delete().where(jobs.c.id.in_(ids), jobs.c.state.in_(_ENDED)))
        return len(ids)

    def locked(self, connection: Connection, job: str) -> records.Job:
        """The job, its row ours until the transaction ends."""
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job).with_for_update()).one_or_none()
        if row is None:
            raise JobNotFound(job=job)
        return records.job_of(row)

    def _take_locks_again(self, connection: Connection, job: records.Job) -> None:
        definition = self.registry.get(job.kind)
        given = msgspec.json.decode(job.input, type=definition.input)
        take_locks(connection, job.id, definition.locks(given))


def step_rows(job: str, definition: Definition[msgspec.Struct]) -> list[dict[str, object]]:
    """The rows of a job's steps, none begun."""
    state = StepState.NOT_STARTED.value
    blank = {"job": job, "state": state, "attempt": 0, "epoch": 0, "failures": 0, "lost": 0}
    return [{**blank, "number": number, "name": step.name} for number, step in enumerate(definition.steps)]


def take_locks(connection: Connection, job: str, keys: Sequence[str]) -> None:
    """Have the keys for the job, all or none. Raises LockHeld with the job that has one."""
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    for key in sorted(set(keys)):
        # what it returns tells whether it was made: the count of rows is unknown to some drivers
        insert = make(job_locks).values(key=key, job=job).on_conflict_do_nothing().returning(job_locks.c.key)
        if connection.execute(insert).first() is not None:
            continue
        holder = connection.execute(
            sa.select(jobs.c.id, jobs.c.title).join(job_locks).where(job_locks.c.key == key)
        ).one_or_none()
        if holder is None:  # it ended between our two statements
            raise LockHeld(key=key, job="that has just ended", title="try again")
        if holder.id != job:
            raise LockHeld(key=key, job=holder.id, title=holder.title)


def release(connection: Connection, job: str, parent: str | None, now: str) -> None:
    """What follows a job's end: its locks are free and its parent looks again."""
    connection.execute(job_locks.delete().where(job_locks.c.job == job))
    if parent is not None:
        wake(connection, parent, now)


def wake(connection: Connection, job: str, now: str) -> None:
    """Make a waiting job due, or have the worker that has it look again before it waits."""
    waits = jobs.c.state.in_(_LIVE) & (jobs.c.state != JobState.SUSPENDED.value)
    connection.execute(
        jobs.update()
        .where(jobs.c.id == job, waits)
        .values(
            woken=sa.case((jobs.c.worker.is_(None), 0), else_=1),
            ready=sa.case((jobs.c.worker.is_(None), now), else_=jobs.c.ready),
        )
    )


def add_log(
    connection: Connection, job: str, at: str, text: str, *, step: str = "", level: str = "info"
) -> None:
    """One line more in a job's log."""
    connection.execute(job_log.insert().values(job=job, at=at, step=step, level=level, text=text[:4000]))


def _live_children(connection: Connection, job: str) -> list[str]:
    query = sa.select(jobs.c.id).where(jobs.c.parent == job, jobs.c.state.in_(_CANCELLABLE))
    return list(connection.execute(query.order_by(jobs.c.id)).scalars())


def _last_step(connection: Connection, job: str) -> dict[str, object]:
    """Where taking back begins: at the last step, those never begun are passed over."""
    count = connection.execute(sa.select(sa.func.count()).where(job_steps.c.job == job)).scalar_one()
    return {"step": count - 1, "action": Action.UNDO.value, "error": None}
