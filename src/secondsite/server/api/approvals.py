"""Routes of approvals by a second person: what waits, who decides, and what of a vault needs one."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.server.api.access import (
    TheActor,
    TheServices,
    requires,
    requires_on_job,
    requires_somewhere,
)
from secondsite.server.api.errors import NotReady
from secondsite.server.api.jobs import ACCEPTED, JobPath, JobView, accepted, followed
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model, VaultPath, View
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of, note
from secondsite.server.jobs.service import Jobs
from secondsite.server.operations.approvals import CHANGE_APPROVALS, ChangeApprovals, said
from secondsite.server.people.approval_errors import ApprovalUnknown
from secondsite.server.people.approvals import Approval, Approvals
from secondsite.server.people.asking import Verdict
from secondsite.server.people.roles import Actor, Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["approvals"])

Lister = Annotated[Caller, requires_somewhere(Operation.JOB_READ)]
JobReader = Annotated[Caller, requires_on_job(Operation.JOB_READ)]
Approver = Annotated[Caller, requires_on_job(Operation.APPROVAL_GIVE)]
SettingReader = Annotated[Caller, requires(Operation.VAULT_READ)]
SettingWriter = Annotated[Caller, requires(Operation.APPROVAL_WRITE)]
_Comment = Annotated[str, Field(max_length=300, pattern=r"^[^\u0000-\u001f\u007f]*$")]
_Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[a-z0-9.-]+$")]
PEOPLE_MAX = 5


class VoteView(View):
    """What one person said."""

    voter: str
    verdict: Literal["approved", "rejected"]
    comment: str
    at: str


class ApprovalView(View):
    """What a job asks to be approved. needed: of how many people besides `askedBy` (and `urgedBy`)."""

    id: str
    job: str
    operation: str
    vault_id: str | None
    subject: str
    asked_by: str
    urged_by: str | None
    needed: int
    state: Literal["Waiting", "Approved", "Rejected", "Expired"]
    asked_at: str
    expires_at: str
    votes: list[VoteView]

    @classmethod
    def of(cls, found: Approval) -> ApprovalView:
        """As it goes out."""
        return cls.model_validate(
            {
                **{
                    name: getattr(found, name)
                    for name in cls.model_fields
                    if name not in ("vault_id", "votes")
                },
                "vault_id": found.vault,
                "state": found.state.value,
                "votes": [
                    {"voter": v.voter, "verdict": v.verdict.value, "comment": v.comment, "at": v.at}
                    for v in found.votes
                ],
            }
        )


class Opinion(Model):
    """Why; who asked reads it."""

    comment: _Comment = ""


class Demand(Model):
    """An operation that needs an approval. people: of how many besides who asks."""

    operation: _Name
    people: Annotated[int, Field(ge=1, le=PEOPLE_MAX)] = 1


class Demands(Model):
    """What needs an approval from now on; what is left out needs none."""

    demands: Annotated[list[Demand], Field(max_length=50)]


class DemandView(View):
    """An operation that needs an approval."""

    operation: str
    people: int


class DemandsView(View):
    """What of a vault needs an approval, and what could."""

    demands: list[DemandView]
    known: list[str]


def approvals_of(services: Services) -> Approvals:
    """The server's approvals. Raises NotReady."""
    if services.approvals is None:
        raise NotReady(why="it runs no jobs")
    return services.approvals


@router.get("/approvals")
def list_approvals(page: AskedPage, caller: Lister, services: TheServices) -> Page[ApprovalView]:
    """What waits for an approval in the vaults I may see, the youngest first."""
    found = approvals_of(services).waiting(
        vaults=caller.vaults(Operation.JOB_READ), before=page.after_text(), limit=page.limit
    )
    link = page.link(found[-1].id) if len(found) == page.limit else None
    return Page(value=[ApprovalView.of(one) for one in found], next_link=link)


@router.get("/jobs/{job}/approvals")
def list_job_approvals(job: JobPath, caller: JobReader, services: TheServices) -> Page[ApprovalView]:  # noqa: ARG001
    """What a job asked to be approved, and who said what; the first first."""
    return Page(value=[ApprovalView.of(one) for one in approvals_of(services).of_job(job)])


@router.post("/jobs/{job}/approve", status_code=202, responses=ACCEPTED)
def approve_job(  # noqa: PLR0917 - called by name, by the framework
    job: JobPath,
    body: Opinion,
    caller: Approver,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Approve what a job asks, as another person than who started it."""
    return _vote(services, actor, job, Verdict.APPROVED, body.comment, response)


@router.post("/jobs/{job}/reject", status_code=202, responses=ACCEPTED)
def reject_job(  # noqa: PLR0917 - called by name, by the framework
    job: JobPath,
    body: Opinion,
    caller: Approver,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Reject what a job asks: it fails, and takes back what it did."""
    return _vote(services, actor, job, Verdict.REJECTED, body.comment, response)


def _vote(  # noqa: PLR0917 - each from the route that calls it
    services: Services, actor: Actor, job: str, verdict: Verdict, comment: str, response: Response
) -> JobView:
    found = approvals_of(services).vote(actor, job, verdict, comment)
    return followed(services, response, found)


@router.get("/vaults/{vault}/approvals")
def show_vault_approvals(
    vault: VaultPath,
    caller: SettingReader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> DemandsView:
    """What of a vault needs the approval of a second person."""
    found = approvals_of(services).demanded(services.vault_id(vault))
    return DemandsView(
        demands=[DemandView(operation=name, people=number) for name, number in sorted(found.items())],
        known=sorted(_known(services)),
    )


@router.put("/vaults/{vault}/approvals", status_code=202, responses=ACCEPTED)
def change_vault_approvals(  # noqa: PLR0917 - called by name, by the framework
    vault: VaultPath,
    body: Demands,
    caller: SettingWriter,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Change what of a vault needs an approval; to less than before needs one itself."""
    found = identity_of(services).vaults.get(vault)
    wanted = {demand.operation: demand.people for demand in body.demands}
    known = _known(services)
    for operation in wanted:
        if operation not in known:
            raise ApprovalUnknown(operation=operation, known=", ".join(sorted(known)) or "none yet")
    given = ChangeApprovals(vault=found.id, vault_name=found.friendly_name, wanted=wanted, actor=caller.name)
    written = note(services, actor, Operation.APPROVAL_WRITE, wanted=said(wanted), asked=True)

    def start(jobs: Jobs, connection: Connection) -> str:
        made = jobs.start(connection, CHANGE_APPROVALS, given, actor.name)
        written(connection, found.id, found.friendly_name)
        return made

    return accepted(services, response, start)


def _known(services: Services) -> frozenset[str]:
    return services.jobs.registry.approvals if services.jobs else frozenset()
