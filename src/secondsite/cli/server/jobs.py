"""``secondsite job``: what the server does, step by step; follow it, and steer it."""

from __future__ import annotations

import sys
import threading
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.cli.common.following import goes_on
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.server.childjobs import ChildLines, has_children, print_children

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.messages import Job, JobDetail

StateName = Literal["NotStarted", "InProgress", "Succeeded", "Failed", "Cancelled", "Suspended"]
# How often a followed job is asked for: people see no difference below a second.
FOLLOW_SECONDS = 0.5
# A server is restarted, or another takes its place, within this; the job goes on there meanwhile.
AWAY_SECONDS_MAX = 300.0
NoWait = Annotated[bool, Parameter(negative="")]


def list_jobs(
    *,
    state: list[StateName] | None = None,
    kind: str | None = None,
    parent: str | None = None,
    limit: int = 100,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List jobs, youngest first.

    For example:

        secondsite job list

        secondsite job list --state Failed --state Suspended

        secondsite job list --parent 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    state
        Only those in this state; may be given several times.
    kind
        Only those of this kind.
    parent
        The child jobs of this one instead.
    limit
        At most so many.
    """
    with reach.open() as server:
        found = list(islice(server.jobs(states=state or (), kind=kind, parent=parent), limit))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["ID", "TITLE", "STATE", "DONE>", "BY", "BEGAN", "ENDED"],
        (
            (
                job.id,
                job.title,
                _state(job),
                f"{job.progress:.0%}",
                job.created_by,
                short_time(job.started_at) if job.started_at else "",
                short_time(job.ended_at) if job.ended_at else "",
            )
            for job in found
        ),
        empty="There are no jobs.",
    )


def show(job: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show a job: its steps, what went wrong, what may be asked of it.

    For example:

        secondsite job show 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        Its id, from `secondsite job list`.
    """
    with reach.open() as server:
        found = server.job(job)
        if listing.json:
            print_json(found)
        else:
            _tell(found, server)


def log(job: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show what a job did, line by line.

    For example:

        secondsite job log 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        Its id.
    """
    with reach.open() as server:
        found = list(server.job_log(job))
    if listing.json:
        print_json(found)
        return
    for line in found:
        print(f"{short_time(line.at)} {line.level:8} {line.step or '-'}: {line.text}")


def follow(job: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> int:
    """Follow a job until it has ended or waits for a person. Exit code 0 only when it succeeded.

    For example:

        secondsite job follow 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        Its id.
    """
    with reach.open() as server:
        return follow_job(server, job, listing)


def cancel(
    job: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Have a job take back what it did, after the step that runs now. Exit code 130 when it did.

    For example:

        secondsite job cancel 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        Its id.
    no_wait
        Ask for it and return.
    """
    with reach.open() as server:
        return started(server, server.cancel_job(job), listing, no_wait=no_wait)


def retry(
    job: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Have a failed job go on with the step that failed.

    For example:

        secondsite job retry 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        Its id.
    no_wait
        Ask for it and return.
    """
    with reach.open() as server:
        return started(server, server.retry_job(job), listing, no_wait=no_wait)


def resume(
    job: str,
    answer: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Answer the question a job waits with.

    For example:

        secondsite job resume 019a2b3c-0000-7000-8000-000000000000 yes

    Parameters
    ----------
    job
        Its id.
    answer
        One of its choices, where it names some (`secondsite job show`).
    no_wait
        Answer and return.
    """
    with reach.open() as server:
        return started(server, server.resume_job(job, answer), listing, no_wait=no_wait)


def restart(
    job: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Do what an ended job did again, as a new job.

    For example:

        secondsite job restart 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        Its id.
    no_wait
        Start it and return.
    """
    with reach.open() as server:
        return started(server, server.restart_job(job), listing, no_wait=no_wait)


def follow_job(server: ServerClient, job: str, listing: Listing) -> int:
    """Wait for a job with its progress on standard error; what it came to on standard output.

    A server that goes away meanwhile is waited for. Raises what its client raises.
    """
    with goes_on("the job", f"secondsite job show {job}"):
        return _follow_job(server, job, listing)


def _follow_job(server: ServerClient, job: str, listing: Listing) -> int:
    from secondsite.base.clock import SystemClock

    clock, never, said, away = SystemClock(), threading.Event(), "", None
    children = ChildLines(server, job)
    while True:
        try:
            found = server.job(job)
            if has_children(found) and not listing.json:
                children.tell()
            away, line = None, f"{found.title}: {found.progress:.0%} {_doing(found)}".rstrip()
        except SecondsiteError as error:
            away = away or clock.monotonic()
            if not error.retryable or clock.monotonic() - away > AWAY_SECONDS_MAX:
                raise
            found, line = None, f"{error.sentences()[0]} Looking again; the job does not need this command."
        if line != said and not listing.json:
            print(line, file=sys.stderr)
            said = line
        if found is not None and (found.ended or found.state == "Suspended"):
            break
        clock.wait(never, FOLLOW_SECONDS)
    if listing.json:
        print_json(found)
    else:
        _tell(found, server)
    return _exit_code(found)


def started(server: ServerClient, job: Job, listing: Listing, *, no_wait: bool) -> int:
    """Follow a job that was begun, or say how to; the command's exit code."""
    if not no_wait:
        return follow_job(server, job.id, listing)
    if listing.json:
        print_json(job)
    else:
        print(f"{job.id}: {_state(job)}; follow it with `secondsite job follow {job.id}`")
    return int(Outcome.OK)


def _exit_code(job: Job) -> int:
    if job.state == "Failed":
        named = job.error.outcome.upper() if job.error else ""
        return int(Outcome.__members__.get(named, Outcome.FAILED)) or int(Outcome.FAILED)
    return int({"Succeeded": Outcome.OK, "Cancelled": Outcome.CANCELLED}.get(job.state, Outcome.UNAVAILABLE))


def _state(job: Job) -> str:
    return job.state if job.state_description in (job.state, "Completed") else job.state_description


def _doing(job: Job) -> str:
    return job.progress_text or job.note or _state(job)


def _tell(job: JobDetail, server: ServerClient) -> None:
    print(f"{job.title}: {_state(job)}, {job.progress:.0%}, by {job.created_by}")
    print_table(
        ["STEP", "STATE", "TRIES>", "BEGAN", "ENDED"],
        (
            (
                step.name,
                step.state,
                step.attempt,
                short_time(step.started_at) if step.started_at else "",
                short_time(step.ended_at) if step.ended_at else "",
            )
            for step in job.steps
        ),
        empty="It has no steps.",
    )
    if has_children(job):
        print_children(server, job.id)
    if job.note and not job.ended:
        print(f"waits: {job.note}")
    if job.question is not None:
        choices = f" ({', '.join(job.question.choices)})" if job.question.choices else ""
        how = "approve" if job.question.approval else "resume"
        answer = "" if job.question.approval else " ANSWER"
        print(f"asks: {job.question.question}{choices}; `secondsite job {how} {job.id}{answer}`")
    if job.error is not None:
        error = job.error
        print(f"failed: {error.happened}\n  cause:  {error.cause}\n  action: {error.action}")
        print(f"  code:   {error.code}")
    if job.allowed_operations:
        print(f"possible now: {', '.join(job.allowed_operations)}")
