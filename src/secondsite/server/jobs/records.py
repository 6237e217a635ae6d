"""Jobs, their steps and their log as readers see them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.errors import SecondsiteError
from secondsite.server.database.tables_jobs import job_log, job_steps, jobs
from secondsite.server.jobs.errors import JobNotFound
from secondsite.server.jobs.states import LIVE, SHOWN, Action, JobState, StepState, allowed


class Problem(msgspec.Struct, frozen=True):
    """An error's sentences, as they are kept."""

    code: str
    happened: str
    cause: str
    action: str
    outcome: str = "failed"


class Question(msgspec.Struct, frozen=True):
    """What a suspended job wants to know."""

    question: str
    choices: tuple[str, ...] = ()
    approval: str = ""  # the operation a second person must approve


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job. Moments are UTC ISO text, inputs and outputs JSON text."""

    id: str
    kind: str
    version: int
    title: str
    actor: str
    vault: str | None  # an id; None: the server's own
    parent: str | None
    restart_of: str | None
    retries: int  # by people
    parent_retries: int  # of a child: those of its parent when it was begun last
    input: str
    output: str | None
    state: JobState
    step: int
    action: Action
    cancel_asked: str | None
    retry_actor: str | None
    question: Question | None
    error: Problem | None
    note: str | None
    warnings: int
    progress: float
    progress_text: str
    worker: str | None
    epoch: int
    created: str
    started: str | None
    ended: str | None
    changed: str

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.state in LIVE

    @property
    def shown(self) -> tuple[str, str]:
        """State and description as the field calls them; a cancel that was asked for shows in the second."""
        state, description = SHOWN[self.state]
        if self.live and self.cancel_asked is not None:
            return state, "Cancelling"
        if self.state is JobState.SUCCEEDED and self.warnings:
            return state, "CompletedWithInformation"
        return state, description

    @property
    def allowed(self) -> tuple[str, ...]:
        """What may be asked of it now."""
        found = allowed(self.state)
        if self.question is not None and self.question.approval:
            return ("approve", "reject", *(name for name in found if name != "resume"))
        return found


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a job."""

    number: int
    name: str
    state: StepState
    attempt: int
    epoch: int
    output: str | None
    error: Problem | None
    started: str | None
    ended: str | None


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a job's log."""

    id: int
    at: str
    step: str
    level: str
    text: str


def problem_of(error: SecondsiteError) -> Problem:
    """An error's sentences, to be kept."""
    found = error.as_dict()
    return Problem(**{key: str(found.get(key, "")) for key in Problem.__struct_fields__})


def _problem(text: str | None) -> Problem | None:
    return None if text is None else msgspec.json.decode(text, type=Problem)


def job_of(row: Row[Any]) -> Job:
    """A job from a row of `select(jobs)`."""
    values = {name: value for name, value in row._asdict().items() if name in Job.__struct_fields__}
    values["state"] = JobState(row.state)
    values["action"] = Action(row.action)
    values["error"] = _problem(row.error)
    values["question"] = None if row.question is None else msgspec.json.decode(row.question, type=Question)
    return Job(**values)


def get(connection: Connection, job: str) -> Job:
    """One job. Raises JobNotFound."""
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job)).one_or_none()
    if row is None:
        raise JobNotFound(job=job)
    return job_of(row)


def listed(
    connection: Connection,
    *,
    states: Sequence[JobState] = (),
    kind: str | None = None,
    parent: str | None = None,
    vaults: Collection[str] | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[Job]:
    """Jobs, youngest first; `before` is the last id of the page before. `parent`: its child jobs instead.

    vaults: those of these vaults only; None: of all, and the server's own.
    """
    query = sa.select(jobs).where(jobs.c.parent == parent)
    if vaults is not None:
        query = query.where(jobs.c.vault.in_(vaults))
    if states:
        query = query.where(jobs.c.state.in_([state.value for state in states]))
    if kind is not None:
        query = query.where(jobs.c.kind == kind)
    if before is not None:
        query = query.where(jobs.c.id < before)
    return [job_of(row) for row in connection.execute(query.order_by(jobs.c.id.desc()).limit(limit))]


def steps(connection: Connection, job: str) -> list[StepRecord]:
    """A job's steps in their order."""
    query = sa.select(job_steps).where(job_steps.c.job == job).order_by(job_steps.c.number)
    return [
        StepRecord(
            number=row.number,
            name=row.name,
            state=StepState(row.state),
            attempt=row.attempt,
            epoch=row.epoch,
            output=row.output,
            error=_problem(row.error),
            started=row.started,
            ended=row.ended,
        )
        for row in connection.execute(query)
    ]


def log(connection: Connection, job: str, *, after: int = 0, limit: int = 200) -> list[LogLine]:
    """Lines of a job's log, oldest first, those after the line `after`."""
    query = (
        sa.select(job_log)
        .where(job_log.c.job == job, job_log.c.id > after)
        .order_by(job_log.c.id)
        .limit(limit)
    )
    return [
        LogLine(id=row.id, at=row.at, step=row.step, level=row.level, text=row.text)
        for row in connection.execute(query)
    ]


def counts(connection: Connection) -> dict[JobState, int]:
    """How many jobs there are in each state."""
    query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
    found = {JobState(state): number for state, number in connection.execute(query)}
    return {state: found.get(state, 0) for state in JobState}
