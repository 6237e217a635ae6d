"""A job that another version began: go on with it, leave it to a newer server, or refuse it, saying why."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.server.database.tables_jobs import job_steps
from secondsite.server.database.values import moment, to_json
from secondsite.server.jobs.advance import Failure, StepWork, Work
from secondsite.server.jobs.definitions import Definition, Upgrade
from secondsite.server.jobs.errors import DefinitionChanged
from secondsite.server.jobs.service import add_log
from secondsite.server.jobs.states import Action, JobEvent, JobState, StepState, after

# How long a job of a newer program is left to a newer server before this one looks at it again.
NEWER_SECONDS = 30.0


def made_ours(
    connection: Connection, work: Work, row: Row[Any], definition: Definition[Any], at: datetime
) -> tuple[dict[str, object], msgspec.Struct | None]:
    """What to set in the job's row, and its input; None instead where this program cannot carry it out.

    Changes `work` and the step rows where an upgrade leads from the job's version to the definition's.
    """
    now = moment(at)
    if row.version > definition.version:
        note = f"needs a server with version {row.version} of {row.kind}; this one has {definition.version}"
        return {"worker": None, "ready": moment(at + timedelta(seconds=NEWER_SECONDS)), "note": note}, None
    try:
        if row.version < definition.version:
            return _upgraded(connection, work, row, definition, now)
        if [step.name for step in work.steps] != [step.name for step in definition.steps]:
            raise _changed(row, definition, "its steps have other names, under the same version")
        return {}, _decoded(row, definition)
    except DefinitionChanged as error:
        return _refused(connection, work, error, now), None


def _decoded(row: Row[Any], definition: Definition[Any]) -> msgspec.Struct:
    try:
        given: msgspec.Struct = msgspec.json.decode(row.input, type=definition.input)
    except msgspec.DecodeError as error:
        raise _changed(row, definition, f"its input has another form ({error})") from error
    return given


def _changed(row: Row[Any], definition: Definition[Any], why: str) -> DefinitionChanged:
    return DefinitionChanged(found=row.version, kind=row.kind, here=definition.version, why=why)


def _refused(connection: Connection, work: Work, error: DefinitionChanged, now: str) -> dict[str, object]:
    problem = Failure(error).problem
    event = {JobState.UNDOING: JobEvent.UNDO_FAILED, JobState.FINISHING: JobEvent.FINISHED}.get(
        work.state, JobEvent.FAILED
    )
    work.state = after(work.state, event, work.job)
    add_log(connection, work.job, now, problem.happened, level="error")
    return {
        "state": work.state.value,
        "error": to_json(problem),
        "worker": None,
        "ready": None,
        "note": None,
        "ended": now,
        "woken": 0,
        # what was left to be cleaned up stays, and the log says so
        "warnings": work.warnings + (work.state is JobState.SUCCEEDED),
    }


def _upgraded(
    connection: Connection, work: Work, row: Row[Any], definition: Definition[Any], now: str
) -> tuple[dict[str, object], msgspec.Struct]:
    upgrade: Upgrade[Any] | None = definition.upgrades.get(row.version)
    if upgrade is None:
        raise _changed(row, definition, "nothing leads from there to here")
    try:
        given: msgspec.Struct = upgrade.input(row.input.encode())
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise _changed(row, definition, f"its input cannot be carried over ({error})") from error
    steps, due = _mapped(work, row, definition, upgrade)
    connection.execute(job_steps.delete().where(job_steps.c.job == work.job))
    connection.execute(
        sa.insert(job_steps),
        [{"job": work.job, **vars(step), "state": step.state.value} for step in steps],
    )
    add_log(connection, work.job, now, f"goes on with version {definition.version} of {row.kind}")
    # a verify becomes a do again: it comes to the same end
    action = Action.DO if work.state is JobState.IN_PROGRESS else work.action
    work.steps, work.step, work.action = steps, due, action
    values = {"version": definition.version, "input": to_json(given), "step": due, "action": action.value}
    return values, given


def _mapped(
    work: Work, row: Row[Any], definition: Definition[Any], upgrade: Upgrade[Any]
) -> tuple[list[StepWork], int]:
    """The new list of steps with what was done of the old ones, and the step that is due."""
    place = {step.name: number for number, step in enumerate(definition.steps)}
    steps = [
        StepWork(number, step.name, StepState.NOT_STARTED, 0, 0, 0, 0, None, None, None, None)
        for number, step in enumerate(definition.steps)
    ]
    for old in work.steps:
        if old.state is StepState.NOT_STARTED:
            continue
        name = upgrade.steps.get(old.name)
        if name is None or name not in place:
            raise _changed(row, definition, f"nothing stands for the step {old.name}, which was begun")
        new = place[name]
        steps[new] = StepWork(**{**vars(old), "number": new, "name": name})
    if work.state is JobState.FINISHING:
        return steps, 0  # clean-ups are repeated from the first: they come to the same end
    begun = [step.number for step in steps if step.state is not StepState.NOT_STARTED]
    if work.state is JobState.UNDOING or work.cancel_asked is not None:
        return steps, max(begun, default=-1)
    due = next((step.number for step in steps if step.state is not StepState.SUCCEEDED), len(steps))
    if any(number > due for number in begun):
        raise _changed(row, definition, f"{steps[due].name} would come before what is done already")
    return steps, due
