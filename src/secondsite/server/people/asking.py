"""How a job asks for the approval of a second person, and what a vault demands one for.

What counts is in the tables alone, never the answer a job is resumed with.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.server.database.tables_logins import approval_votes, approvals, vault_approvals
from secondsite.server.database.values import fresh_id, from_moment, moment
from secondsite.server.jobs import records
from secondsite.server.jobs.definitions import DONE, Ask, Result
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.service import ApprovalAsked
from secondsite.server.people.approval_errors import ApprovalExpired, ApprovalRejected

# Over a weekend somebody may be asked; a question older than that is asked about something else by now.
ASKED_FOR = timedelta(hours=72)
HOLDS = timedelta(hours=24)
# To change what needs an approval to less than before.
WEAKEN = "approvals-weaken"


class ApprovalState(enum.StrEnum):
    """Where the asking stands."""

    WAITING = "Waiting"
    APPROVED = "Approved"
    REJECTED = "Rejected"
    EXPIRED = "Expired"


class Verdict(enum.StrEnum):
    """What somebody says to it."""

    APPROVED = "approved"
    REJECTED = "rejected"


_S = ApprovalState
_REFUSALS = {_S.REJECTED.value, _S.EXPIRED.value}


def demanded(connection: Connection, vault: str | None) -> dict[str, int]:
    """What a vault's settings want approved: operation -> of how many people besides who asks."""
    query = sa.select(vault_approvals.c.operation, vault_approvals.c.needed).where(
        vault_approvals.c.vault == vault
    )
    return {row.operation: row.needed for row in connection.execute(query)}


def weaker(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Whether anything needs fewer people afterwards."""
    return any(after.get(operation, 0) < needed for operation, needed in before.items())


def ask_approval(run: StepRun[Any], *operations: str, subject: str = "", needed: int | None = None) -> Result:
    """What a step returns that may begin only with an approval: Done where none is needed, or it was given.

    operations: of the definition's `approvals`; what is several of them needs what the strictest demand says.
    subject: for people; the job's title otherwise.
    needed: of how many people; None: what the settings of the job's vault say.
    Raises ApprovalRejected or ApprovalExpired; a job tried again after that asks anew.
    """

    def work(connection: Connection) -> Result | ApprovalRejected | ApprovalExpired:
        job = records.get(connection, run.job)
        demands = demanded(connection, job.vault) if needed is None else dict.fromkeys(operations, needed)
        operation = max(operations, key=lambda one: demands.get(one, 0))
        wanted = demands.get(operation, 0)
        found = connection.execute(
            sa.select(approvals)
            .where(approvals.c.job == run.job, approvals.c.step == run.step)
            .order_by(approvals.c.round.desc())
            .limit(1)
        ).one_or_none()
        if found is not None and found.state == _S.WAITING.value:
            return _question(found.operation, found.subject, found.needed)
        if found is not None and found.state in _REFUSALS and not found.told:
            connection.execute(approvals.update().where(approvals.c.id == found.id).values(told=1))
            return _refusal(connection, found)
        if wanted < 1 or _still_holds(found, wanted, run.clock.utc()):
            return DONE
        return _ask(
            connection,
            run,
            job,
            ApprovalAsked(
                run.job,
                job.vault,
                operation,
                subject or job.title,
                job.actor,
                wanted,
                moment(run.clock.utc() + ASKED_FOR),
            ),
            1 if found is None else found.round + 1,
        )

    result = run.write(work)
    if isinstance(result, ApprovalRejected | ApprovalExpired):
        raise result
    return result


def _still_holds(found: Row[Any] | None, wanted: int, now: datetime) -> bool:
    """Whether it was approved, not long ago, by as many as are wanted by now."""
    if found is None or found.state != _S.APPROVED.value or found.needed < wanted:
        return False
    return now - from_moment(found.decided_at) < HOLDS


def _ask(
    connection: Connection, run: StepRun[Any], job: records.Job, asked: ApprovalAsked, number: int
) -> Ask:
    row = {
        "id": fresh_id(run.clock),
        "job": job.id,
        "step": run.step,
        "round": number,
        "operation": asked.operation,
        "vault": job.vault,
        "subject": asked.subject,
        "asked_by": job.actor,
        "urged_by": job.retry_actor,
        "needed": asked.needed,
        "state": _S.WAITING.value,
        "asked_at": moment(run.clock.utc()),
        "expires_at": asked.expires_at,
        "told": 0,
    }
    connection.execute(approvals.insert().values(row))
    run.tell_approval(connection, asked)
    return _question(asked.operation, asked.subject, asked.needed)


def _question(operation: str, subject: str, needed: int) -> Ask:
    of = "another person" if needed == 1 else f"{needed} other people"
    return Ask(f"{subject}: waits for the approval of {of} ({operation})", approval=operation)


def _refusal(connection: Connection, found: Row[Any]) -> ApprovalRejected | ApprovalExpired:
    if found.state == _S.EXPIRED.value:
        return ApprovalExpired(operation=found.operation, at=found.expires_at)
    vote = connection.execute(
        sa.select(approval_votes).where(
            approval_votes.c.approval == found.id, approval_votes.c.verdict == Verdict.REJECTED.value
        )
    ).one()
    why = vote.comment or "no reason was given"
    return ApprovalRejected(operation=found.operation, who=vote.voter, why=why)


def set_demanded(connection: Connection, vault: str, wanted: Mapping[str, int]) -> None:
    """Replace a vault's settings."""
    connection.execute(vault_approvals.delete().where(vault_approvals.c.vault == vault))
    for operation, needed in sorted(wanted.items()):
        connection.execute(vault_approvals.insert().values(vault=vault, operation=operation, needed=needed))
