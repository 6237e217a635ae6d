"""Four eyes: what a vault's settings demand happens only when other people than who asked for it approve.

A job's step asks with `ask_approval`; the job is suspended until enough others have approved, somebody has
rejected it, or the time is over. What counts is in the tables alone, never the answer a job is resumed with.
An approval holds for one job and `HOLDS` from the moment it was given: tried again much later, it asks anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_jobs import jobs as job_table
from secondsite.server.database.tables_logins import approval_votes, approvals
from secondsite.server.database.values import from_moment
from secondsite.server.jobs import records
from secondsite.server.jobs.service import ApprovalAsked, Jobs
from secondsite.server.jobs.states import JobIllegal, JobState
from secondsite.server.people.approval_errors import ApprovalExpired, ApprovalNone, FourEyes
from secondsite.server.people.asking import ApprovalState, Verdict, demanded
from secondsite.server.people.audit import REFUSED, SUCCEEDED, Audit
from secondsite.server.people.roles import THE_SERVER, Actor

# Of one run of the housekeeping: the rest waits for the next.
EXPIRE_ROWS_MAX = 100
_S = ApprovalState


@dataclass(frozen=True)
class Vote:
    """What one person said."""

    voter: str
    verdict: Verdict
    comment: str
    at: str


@dataclass(frozen=True)
class Approval:
    """A job that asked, and what came of it. asked_by: who started the job."""

    id: str
    job: str
    operation: str
    vault: str | None
    subject: str
    asked_by: str
    urged_by: str | None
    needed: int
    state: ApprovalState
    asked_at: str
    expires_at: str
    votes: tuple[Vote, ...]


# connection, vault (empty: the server itself), severity, code, text
Tell = Callable[[Connection, str, Severity, str, str], object]


def _untold(_connection: Connection, _vault: str, _severity: Severity, _code: str, _text: str) -> None:
    """Nobody is told."""


class Approvals:
    """What people say to jobs that ask, and when nobody does."""

    def __init__(self, database: Database, audit: Audit, jobs: Jobs, tell: Tell = _untold) -> None:
        self._database = database
        self._audit = audit
        self._jobs = jobs
        self._tell = tell

    def asked(self, connection: Connection, asked: ApprovalAsked) -> None:
        """A job asks: into the audit log and the events, in its transaction. For `Jobs.on_approval`."""
        self._audit.append(
            connection,
            Actor(asked.asked_by, f"job:{asked.job}"),
            "approval.ask",
            asked.job,
            vault=asked.vault or "",
            detail={"operation": asked.operation, "subject": asked.subject, "needed": asked.needed},
        )
        text = (
            f"{asked.asked_by} asks for the approval of {asked.operation}: {asked.subject} (job {asked.job})"
        )
        self._tell(connection, asked.vault or "", Severity.WARNING, "approval.asked", text)

    def vote(self, actor: Actor, job: str, verdict: Verdict, comment: str) -> records.Job:
        """Approve or reject what a job asks; whether the caller has the role is checked before.

        Raises ApprovalNone, ApprovalExpired, FourEyes, JobIllegal or JobNotFound.
        """

        def work(connection: Connection) -> records.Job:
            self._jobs.locked(connection, job)
            found = _waiting(connection, job)
            if found is None:
                raise ApprovalNone(job=job)
            if from_moment(found.expires_at) <= self._database.clock.utc():
                raise ApprovalExpired(operation=found.operation, at=found.expires_at)
            votes = _votes(connection, [found.id]).get(found.id, [])
            if verdict is Verdict.APPROVED:
                _check_other(actor.name, found, votes)
            row = {"approval": found.id, "voter": actor.name, "verdict": verdict.value, "comment": comment}
            connection.execute(approval_votes.insert().values(**row, at=self._database.now()))
            self._audit.append(
                connection,
                actor,
                "approval.approve" if verdict is Verdict.APPROVED else "approval.reject",
                job,
                vault=found.vault or "",
                detail={"operation": found.operation, "askedBy": found.asked_by, "comment": comment},
            )
            self._decide(connection, found, len(votes) + 1, verdict, actor.name)
            return records.get(connection, job)

        try:
            return self._database.run(work)
        except FourEyes as refused:
            detail = {"why": str(refused.fields["why"])}
            self._audit.record(actor, "approval.approve", job, outcome=REFUSED, detail=detail)
            raise

    def _decide(
        self, connection: Connection, found: Row[Any], given: int, verdict: Verdict, who: str
    ) -> None:
        if verdict is Verdict.APPROVED and given < found.needed:
            note = f"{found.subject}: {given} of {found.needed} approvals given ({found.operation})"
            connection.execute(job_table.update().where(job_table.c.id == found.job).values(note=note))
            return
        state = _S.APPROVED if verdict is Verdict.APPROVED else _S.REJECTED
        self._end(connection, found, state)
        self._jobs.resume(connection, found.job, verdict.value, who, decided=True)
        severity = Severity.INFORMATION if state is _S.APPROVED else Severity.WARNING
        text = f"{who} {verdict.value} {found.operation}: {found.subject} (job {found.job})"
        self._tell(connection, found.vault or "", severity, f"approval.{verdict.value}", text)

    def expire(self) -> int:
        """End what nobody decided in time; the jobs that asked fail. Returns how many."""
        query = (
            sa.select(approvals.c.job)
            .where(approvals.c.state == _S.WAITING.value, approvals.c.expires_at <= self._database.now())
            .limit(EXPIRE_ROWS_MAX)
        )
        with self._database.read() as connection:
            found = list(connection.execute(query).scalars())
        return sum(self._database.run(partial(self._expire, job=job)) for job in found)

    def _expire(self, connection: Connection, *, job: str) -> bool:
        self._jobs.locked(connection, job)
        found = _waiting(connection, job)
        if found is None or from_moment(found.expires_at) > self._database.clock.utc():
            return False  # decided, or ended by another server, meanwhile
        self._end(connection, found, _S.EXPIRED)
        with contextlib.suppress(JobIllegal):  # cancelled meanwhile
            self._jobs.resume(connection, job, "expired", THE_SERVER.name, decided=True)
        self._audit.append(
            connection,
            THE_SERVER,
            "approval.expire",
            job,
            vault=found.vault or "",
            outcome=SUCCEEDED,
            detail={"operation": found.operation, "askedBy": found.asked_by},
        )
        text = f"nobody decided in time on {found.operation}: {found.subject} (job {job})"
        self._tell(connection, found.vault or "", Severity.WARNING, "approval.expired", text)
        return True

    def _end(self, connection: Connection, found: Row[Any], state: ApprovalState) -> None:
        connection.execute(
            approvals.update()
            .where(approvals.c.id == found.id)
            .values(state=state.value, decided_at=self._database.now())
        )

    def waiting(
        self, *, vaults: Collection[str] | None, before: str | None = None, limit: int = 100
    ) -> list[Approval]:
        """What waits to be decided, the youngest first. vaults: of these only; None: of all."""
        query = (
            sa.select(approvals)
            .join(job_table, job_table.c.id == approvals.c.job)
            .where(
                approvals.c.state == _S.WAITING.value,
                approvals.c.expires_at > self._database.now(),
                job_table.c.state == JobState.SUSPENDED.value,
            )
            .order_by(approvals.c.id.desc())
            .limit(limit)
        )
        if vaults is not None:
            query = query.where(approvals.c.vault.in_(vaults))
        if before is not None:
            query = query.where(approvals.c.id < before)
        with self._database.read() as connection:
            return _with_votes(connection, connection.execute(query).all())

    def of_job(self, job: str) -> list[Approval]:
        """What a job asked, the first first."""
        query = sa.select(approvals).where(approvals.c.job == job).order_by(approvals.c.id)
        with self._database.read() as connection:
            return _with_votes(connection, connection.execute(query).all())

    def demanded(self, vault: str) -> dict[str, int]:
        """What a vault's settings want approved."""
        with self._database.read() as connection:
            return demanded(connection, vault)


def _check_other(name: str, found: Row[Any], votes: Collection[Vote]) -> None:
    why = ""
    if name == found.asked_by:
        why = "they started the job"
    elif name == found.urged_by:
        why = "they had the job tried again"
    elif any(vote.voter == name for vote in votes):
        why = "they approved it already"
    if why:
        raise FourEyes(who=name, job=found.job, why=why)


def _waiting(connection: Connection, job: str) -> Row[Any] | None:
    query = sa.select(approvals).where(approvals.c.job == job, approvals.c.state == _S.WAITING.value)
    return connection.execute(query.order_by(approvals.c.round.desc()).limit(1)).one_or_none()


def _votes(connection: Connection, ids: Collection[str]) -> dict[str, list[Vote]]:
    found: dict[str, list[Vote]] = {}
    query = sa.select(approval_votes).where(approval_votes.c.approval.in_(ids)).order_by(approval_votes.c.at)
    for row in connection.execute(query):
        found.setdefault(row.approval, []).append(Vote(row.voter, Verdict(row.verdict), row.comment, row.at))
    return found


def _with_votes(connection: Connection, rows: Collection[Row[Any]]) -> list[Approval]:
    votes = _votes(connection, [row.id for row in rows])
    return [
        Approval(
            id=row.id,
            job=row.job,
            operation=row.operation,
            vault=row.vault,
            subject=row.subject,
            asked_by=row.asked_by,
            urged_by=row.urged_by,
            needed=row.needed,
            state=ApprovalState(row.state),
            asked_at=row.asked_at,
            expires_at=row.expires_at,
            votes=tuple(votes.get(row.id, ())),
        )
        for row in rows
    ]
