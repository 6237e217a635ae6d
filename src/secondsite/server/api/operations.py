"""Routes that begin operations on machines. Each answers 202 with the job to follow."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.inventory import inventories_of
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.providers import ThePlace
from secondsite.server.api.vaults import note
from secondsite.server.inventory.service import Kind
from secondsite.server.jobs.service import Jobs
from secondsite.server.operations.points import TAKE_POINT, TakePoint
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["operations"])

Taker = Annotated[Caller, requires(Operation.POINT_TAKE)]
MachinePath = Annotated[
    str, Path(alias="machine", pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description="Its id.")
]
_SITE = "/vaults/{vault}/recoveryServicesProviders/{provider}"


@router.post(_SITE + "/machines/{machine}/recoveryPoints", status_code=202, responses=ACCEPTED)
def take_recovery_point(  # noqa: PLR0917 - called by name, by the framework
    caller: Taker,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    machine: MachinePath,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Take a recovery point of a protected machine now, beside those its copy frequency gives."""
    gateway = place.gateways.get(place.name)
    found = inventories_of(services)[0].find(gateway.id, Kind.MACHINE, machine)
    given = TakePoint(
        gateway=gateway.id, gateway_name=gateway.name, machine=found.id, machine_name=found.name
    )
    written = note(services, actor, Operation.POINT_TAKE, machine=found.name)

    def start(jobs: Jobs, connection: Connection) -> str:
        identity = jobs.start(connection, TAKE_POINT, given, actor.name, vault=gateway.vault_id)
        written(connection, gateway.vault_id, gateway.name)
        return identity

    return accepted(services, response, start)
