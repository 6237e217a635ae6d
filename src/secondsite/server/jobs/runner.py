"""Carry out a held job: call what is due, write what came of it, until it waits, ends or has had its turn.

One write a step: the result of one and the beginning of the next stand in one transaction.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.server.database.tables_jobs import job_steps, jobs
from secondsite.server.database.values import moment
from secondsite.server.jobs.advance import Failure, StepWork, Work, apply, begin, settle
from secondsite.server.jobs.compatible import made_ours
from secondsite.server.jobs.definitions import Definition, Result
from secondsite.server.jobs.errors import LeaseLost, StepBroken
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.service import Jobs, add_log, release
from secondsite.server.jobs.states import ENDED, LIVE, Action, JobState, StepState

BEGUN = mark("jobs.begun")
CALLED = mark("jobs.called")
NOTED = mark("jobs.noted")

# A job keeps its thread for short steps in a row; after that it goes to the end of the queue.
TURN_SECONDS = 1.0
_LIVE = [state.value for state in LIVE]

log = logging.getLogger(__name__)


class Runner:
    """Carries out jobs, one a call; shared by a worker's threads."""

    def __init__(self, jobs: Jobs, stopping: threading.Event, turn_seconds: float = TURN_SECONDS) -> None:
        self._jobs = jobs
        self._turn_seconds = turn_seconds
        self._clock = jobs.clock
        self._stopping = stopping

    def run(self, hold: Hold) -> None:
        """Give the job its turn. Raises LeaseLost when another worker has it."""
        began = self._clock.monotonic()
        first = hold.write(lambda connection, row: self._first(hold, connection, row))
        if first is None:
            return
        definition, given, due = first
        while due is not None:
            work = due
            within = f"{definition.kind}/{definition.steps[work.step].name}/{work.action.value}"
            crash_point(BEGUN, within)
            result = self._call(hold, work, definition, given)
            crash_point(CALLED, f"{within}/{type(result).__name__}")
            last = self._stopping.is_set() or self._clock.monotonic() - began >= self._turn_seconds
            due = hold.write(self._noting(hold, work, definition, result, last=last))
            crash_point(NOTED, within)

    def _first(
        self, hold: Hold, connection: Connection, row: Row[Any]
    ) -> tuple[dict[str, object], tuple[Definition[Any], msgspec.Struct, Work | None] | None]:
        """Read the job and begin what is due; None where this program cannot carry it out."""
        values, loaded = self._load(connection, row)
        if loaded is None:
            return values, None
        work, definition, given = loaded
        more, due = self._noting(hold, work, definition, None, last=False)(connection, row)
        return {**values, **more}, (definition, given, due)

    def _load(
        self, connection: Connection, row: Row[Any]
    ) -> tuple[dict[str, object], tuple[Work, Definition[Any], msgspec.Struct] | None]:
        """The job as this program understands it; None where it does not, and the job was told so."""
        query = sa.select(job_steps).where(job_steps.c.job == row.id).order_by(job_steps.c.number)
        work = _work_of(row, list(connection.execute(query)))
        definition = self._jobs.registry.get(row.kind)
        values, given = made_ours(connection, work, row, definition, self._clock.utc())
        if given is None:
            if work.state in ENDED:
                release(connection, work.job, work.parent, moment(self._clock.utc()))
            return values, None
        return values, (work, definition, given)

    def _noting(
        self,
        hold: Hold,
        before: Work,
        definition: Definition[Any],
        result: Result | Failure | None,
        *,
        last: bool,
    ) -> Callable[[Connection, Row[Any]], tuple[dict[str, object], Work | None]]:
        """How to keep a result and find what is due: the work to go on with, None: the job is given back."""

        def write(connection: Connection, row: Row[Any]) -> tuple[dict[str, object], Work | None]:
            work, at = before.copy(), self._clock.utc()
            now = moment(at)
            work.cancel_asked = row.cancel_asked
            goes_on = True if result is None else apply(work, definition, result, at)
            due = goes_on and settle(work, definition, lambda: _live_children(connection, work.job), now)
            given_back = not due or last
            if due and last:
                work.ready = now
            elif due:
                begin(work, hold.epoch, now)
            if row.woken and work.state in LIVE and work.state is not JobState.SUSPENDED and not due:
                work.ready = now
            if work.action in {Action.DO, Action.VERIFY}:
                work.progress = max(row.progress, _fraction(definition, work.step, 0.0))
            values = _job_values(work, row, given_back=given_back)
            _write_steps(connection, before, work)
            for step, level, text in work.log:
                add_log(connection, work.job, now, text, step=step, level=level)
            if work.state in ENDED:
                add_log(connection, work.job, now, f"ended: {work.state.value}")
                release(connection, work.job, work.parent, now)
            work.log.clear()
            return values, None if given_back else work

        return write

    def _call(
        self, hold: Hold, work: Work, definition: Definition[Any], given: msgspec.Struct
    ) -> Result | Failure:
        step, row = definition.steps[work.step], work.steps[work.step]
        number = work.step
        run = StepRun(
            hold=hold,
            jobs=self._jobs,
            action=work.action,
            step=step.name,
            attempt=row.attempt,
            retries=work.retries,
            given=given,
            answer=work.answer,
            outputs={one.name: one.output for one in work.steps if one.output is not None},
            overall=lambda fraction: _fraction(definition, number, fraction),
        )
        function = step.function(work.action)
        assert function is not None
        return called(function, run, step.name)


def called(function: Callable[[StepRun[Any]], Result], run: StepRun[Any], step: str) -> Result | Failure:
    """A step's result, whatever its function does. Raises LeaseLost."""
    try:
        return function(run)
    except LeaseLost:
        raise
    except SecondsiteError as error:
        return Failure(error)
    except Exception as error:  # root of a step: whatever it raises is the job's error, not the worker's
        log.exception("job %s: step %s ended unexpectedly", run.job, step)
        return Failure(StepBroken(step=step, error=f"{type(error).__name__}: {error}"))


def _work_of(row: Row[Any], steps: list[Row[Any]]) -> Work:
    return Work(
        job=row.id,
        parent=row.parent,
        state=JobState(row.state),
        step=row.step,
        action=Action(row.action),
        retries=row.retries,
        cancel_asked=row.cancel_asked,
        question=row.question,
        answer=row.answer,
        output=row.output,
        error=row.error,
        note=row.note,
        warnings=row.warnings,
        progress=row.progress,
        progress_text=row.progress_text,
        ready=row.ready,
        ended=row.ended,
        steps=[
            StepWork(
                number=step.number,
                name=step.name,
                state=StepState(step.state),
                attempt=step.attempt,
                epoch=step.epoch,
                failures=step.failures,
                lost=step.lost,
                output=step.output,
                error=step.error,
                started=step.started,
                ended=step.ended,
            )
            for step in steps
        ],
    )


def _job_values(work: Work, row: Row[Any], *, given_back: bool) -> dict[str, object]:
    values: dict[str, object] = {
        "state": work.state.value,
        "step": work.step,
        "action": work.action.value,
        "question": work.question,
        "answer": work.answer,
        "output": work.output,
        "error": work.error,
        "note": work.note,
        "warnings": work.warnings,
        "progress": work.progress,
        "ready": work.ready,
        "ended": work.ended,
        "woken": 0 if given_back else row.woken,
    }
    if work.state in ENDED or work.step != row.step:
        values["progress_text"] = ""
    if given_back:
        values["worker"] = None
    return values


def _write_steps(connection: Connection, before: Work, work: Work) -> None:
    for old, new in zip(before.steps, work.steps, strict=True):
        if old == new:
            continue
        values = {name: value for name, value in vars(new).items() if name not in {"number", "name"}}
        values["state"] = new.state.value
        connection.execute(
            job_steps.update()
            .where(job_steps.c.job == work.job, job_steps.c.number == new.number)
            .values(**values)
        )


def _fraction(definition: Definition[Any], step: int, within: float) -> float:
    weights = [one.weight for one in definition.steps]
    here = weights[step] * within if step < len(weights) else 0.0
    return min(1.0, (sum(weights[:step]) + here) / sum(weights))


def _live_children(connection: Connection, job: str) -> int:
    query = sa.select(sa.func.count()).where(jobs.c.parent == job, jobs.c.state.in_(_LIVE))
    return connection.execute(query).scalar_one()
