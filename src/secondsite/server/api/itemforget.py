"""The route to give an item up by force."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from secondsite.model import confirmations
from secondsite.model.items import ItemOperation
from secondsite.server.api.access import TheActor, TheServices
from secondsite.server.api.itemends import reachable_of
from secondsite.server.api.items import PATH_ITEMS, Disabler, ThePlace, checked, start_job
from secondsite.server.api.jobs import ACCEPTED, JobView
from secondsite.server.api.schemas import Model
from secondsite.server.items.records import job_input
from secondsite.server.operations.forget import FORGET, Forget
from secondsite.server.people.roles import Operation

router = APIRouter(prefix="/api/v1", tags=["items"])
UNKNOWN_THERE = (
    "It was taken over, and neither of its gateways can be asked: where it runs, and whether at both sites, "
    "nobody can know. Nothing is changed at them; one that returns is shown with what it has."
)


class ForgetBody(Model):
    """What a person says to it."""

    confirm: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=r"^[^\u0000]*$",
            description="What cannot be excluded, word for word; a refusal says what.",
        ),
    ] = ""


@router.post(PATH_ITEMS + "/{item}/forget", status_code=202, responses=ACCEPTED)
def forget_item(  # noqa: PLR0917 - called by name, by the framework
    caller: Disabler,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ForgetBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Give up an item whose failover stands and whose gateways are gone for good; they are asked nothing."""
    found = place.read(services)
    confirmations.require(found.name, body.confirm, confirmations.forgotten(found.name), UNKNOWN_THERE)
    given = Forget(**job_input(found, actor.name), confirm=body.confirm)
    reachable = bool(reachable_of(services, [found]))
    check = checked(services, place, ItemOperation.FORGET, reachable=reachable)
    return start_job(services, actor, response, FORGET, given, Operation.ITEM_DISABLE, check)
