"""Routes of jobs: list, look inside, and steer. What steers answers 202: the job does it when it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import Field
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.base.parse import JSON_ERRORS
from secondsite.server.api.access import TheActor, TheServices, requires_on_job, requires_somewhere
from secondsite.server.api.errors import NotReady
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.services import Services
from secondsite.server.jobs import records
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.states import SHOWN, JobState
from secondsite.server.people.roles import Actor, Caller, Operation

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

Lister = Annotated[Caller, requires_somewhere(Operation.JOB_READ)]
Reader = Annotated[Caller, requires_on_job(Operation.JOB_READ)]
Operator = Annotated[Caller, requires_on_job(Operation.JOB_OPERATE)]
Answerer = Annotated[Caller, requires_on_job(Operation.JOB_ANSWER)]
_ID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
JobPath = Annotated[str, Path(alias="job", pattern=_ID, description="A job's id.")]
ShownState = Literal["NotStarted", "InProgress", "Succeeded", "Failed", "Cancelled", "Suspended"]
_LOCATION = {"headers": {"Location": {"schema": {"type": "string"}, "description": "Where to follow it."}}}
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"description": "Noted: follow the job at Location", **_LOCATION}
}


class JobProblem(View):
    """Why a job or a step failed, in sentences."""

    code: str
    outcome: str
    happened: str
    cause: str
    action: str


class JobQuestion(View):
    """What a suspended job waits for; `choices` empty: any answer."""

    question: str
    choices: list[str]
    approval: str | None = Field(description="The operation a second person must approve instead.")


class JobView(View):
    """A job. progress: 0 to 1."""

    id: str
    kind: str
    title: str
    state: ShownState
    state_description: str
    allowed_operations: list[Literal["approve", "reject", "cancel", "resume", "retry", "restart"]]
    progress: float
    progress_text: str
    note: str | None = Field(description="What it waits for.")
    question: JobQuestion | None
    error: JobProblem | None
    warnings: int
    created_by: str
    vault_id: str | None = Field(description="Whose roles count for it; null: only those held everywhere.")
    parent: str | None
    restart_of: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    changed_at: str

    @classmethod
    def of(cls, job: records.Job) -> JobView:
        """As it goes out."""
        state, description = job.shown
        asked = job.question
        return cls.model_validate(
            {
                "id": job.id,
                "kind": job.kind,
                "title": job.title,
                "state": state,
                "state_description": description,
                "allowed_operations": list(job.allowed),
                "progress": job.progress,
                "progress_text": job.progress_text,
                "note": job.note,
                "question": asked
                and JobQuestion(
                    question=asked.question, choices=list(asked.choices), approval=asked.approval or None
                ),
                "error": _problem(job.error),
                "warnings": job.warnings,
                "created_by": job.actor,
                "vault_id": job.vault,
                "parent": job.parent,
                "restart_of": job.restart_of,
                "created_at": job.created,
                "started_at": job.started,
                "ended_at": job.ended,
                "changed_at": job.changed,
            }
        )


class StepView(View):
    """One step of a job. attempt: how often it was begun."""

    number: int
    name: str
    state: Literal["NotStarted", "InProgress", "Succeeded", "Failed", "Undone"]
    attempt: int
    error: JobProblem | None
    started_at: str | None
    ended_at: str | None

    @classmethod
    def of(cls, step: records.StepRecord) -> StepView:
        """As it goes out."""
        return cls(
            number=step.number,
            name=step.name,
            state=step.state.value,
            attempt=step.attempt,
            error=_problem(step.error),
            started_at=step.started,
            ended_at=step.ended,
        )


class JobDetail(JobView):
    """A job with its steps and its result, whose form follows from its kind."""

    steps: list[StepView]
    output: dict[str, object] | None


class JobLogLine(View):
    """One line of a job's log."""

    number: int
    at: str
    step: str
    level: str
    text: str


class JobAnswer(Model):
    """The answer to a suspended job's question."""

    answer: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\u0000]*$")]


@router.get("")
def list_jobs(  # noqa: PLR0917 - called by name, by the framework
    page: AskedPage,
    caller: Lister,
    services: TheServices,
    state: Annotated[list[ShownState] | None, Query(max_length=6)] = None,
    kind: Annotated[str | None, Query(max_length=100, pattern=r"^[a-z0-9.-]+$")] = None,
    parent: Annotated[str | None, Query(pattern=_ID, description="Its child jobs instead.")] = None,
) -> Page[JobView]:
    """The jobs I may see, youngest first."""
    wanted = [one for one in JobState if state and SHOWN[one][0] in state]
    with services.database.read() as connection:
        found = records.listed(
            connection,
            states=wanted,
            kind=kind,
            parent=parent,
            vaults=caller.vaults(Operation.JOB_READ),
            before=page.after_text(),
            limit=page.limit,
        )
    link = page.link(found[-1].id) if len(found) == page.limit else None
    return Page(value=[JobView.of(job) for job in found], next_link=link)


@router.get("/{job}")
def show_job(job: JobPath, caller: Reader, services: TheServices) -> JobDetail:  # noqa: ARG001
    """One job with its steps."""
    with services.database.read() as connection:
        found = records.get(connection, job)
        steps = [StepView.of(step) for step in records.steps(connection, job)]
    view = JobView.of(found).model_dump(by_alias=False)
    return JobDetail(**view, steps=steps, output=_json(found.output))


@router.get("/{job}/log")
def list_job_log(
    job: JobPath,
    page: AskedPage,
    caller: Reader,  # noqa: ARG001
    services: TheServices,
) -> Page[JobLogLine]:
    """What a job did, oldest first."""
    with services.database.read() as connection:
        records.get(connection, job)
        found = records.log(connection, job, after=page.after_number() or 0, limit=page.limit)
    link = page.link(found[-1].id) if len(found) == page.limit else None
    lines = [
        JobLogLine(number=line.id, at=line.at, step=line.step, level=line.level, text=line.text)
        for line in found
    ]
    return Page(value=lines, next_link=link)


@router.post("/{job}/cancel", status_code=202, responses=ACCEPTED)
def cancel_job(
    job: JobPath,
    caller: Operator,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Let the running step finish, then take back what was done."""
    return _steer(
        services,
        actor,
        "cancel",
        job,
        response,
        lambda jobs, connection: jobs.cancel(connection, job, actor.name),
    )


@router.post("/{job}/retry", status_code=202, responses=ACCEPTED)
def retry_job(
    job: JobPath,
    caller: Operator,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Go on with the step that failed."""
    return _steer(
        services,
        actor,
        "retry",
        job,
        response,
        lambda jobs, connection: jobs.retry(connection, job, actor.name),
    )


@router.post("/{job}/resume", status_code=202, responses=ACCEPTED)
def resume_job(  # noqa: PLR0917 - called by name, by the framework
    job: JobPath,
    body: JobAnswer,
    caller: Answerer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Answer a suspended job's question."""
    return _steer(
        services,
        actor,
        "resume",
        job,
        response,
        lambda jobs, connection: jobs.resume(connection, job, body.answer, actor.name),
        detail={"answer": body.answer},
    )


@router.post("/{job}/restart", status_code=202, responses=ACCEPTED)
def restart_job(
    job: JobPath,
    caller: Operator,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Do the same again as a new job, which is in the answer."""
    return _steer(
        services,
        actor,
        "restart",
        job,
        response,
        lambda jobs, connection: jobs.restart(connection, job, actor.name),
    )


def _steer(  # noqa: PLR0917 - each from the route that calls it
    services: Services,
    actor: Actor,
    what: str,
    job: str,
    response: Response,
    call: Callable[[Jobs, Connection], str | None],
    *,
    detail: Mapping[str, str | int | bool | None] | None = None,
) -> JobView:
    """Do it with its row in the audit log, tell the worker, and answer with the job as it is now."""

    def steer(jobs: Jobs, connection: Connection) -> str:
        made = call(jobs, connection) or job
        vault = records.get(connection, made).vault or ""
        told = dict(detail or {}) | ({"new": made} if made != job else {})
        services.audit.append(connection, actor, f"job.{what}", job, vault=vault, detail=told)
        return made

    return accepted(services, response, steer)


def accepted(services: Services, response: Response, begin: Callable[[Jobs, Connection], str]) -> JobView:
    """Answer with the job `begin` names, as it is at the end of begin's transaction; the worker is told.

    Raises NotReady, and what `begin` raises: then nothing was begun.
    """
    jobs = services.jobs
    if jobs is None:
        raise NotReady(why="it runs no jobs")
    found = services.database.run(lambda connection: records.get(connection, begin(jobs, connection)))
    return followed(services, response, found)


def followed(services: Services, response: Response, job: records.Job) -> JobView:
    """Answer with a job that was changed: where to follow it; the worker is told."""
    services.nudge_jobs()
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobView.of(job)


def _problem(error: records.Problem | None) -> JobProblem | None:
    return None if error is None else JobProblem(**msgspec.structs.asdict(error))


def _json(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except JSON_ERRORS:
        return None
