"""Routes by which gateways fetch what is wanted of them, and report how far they are."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from secondsite.server.api.access import TheServices
from secondsite.server.api.enrolment import TheGateway
from secondsite.server.api.errors import NotReady
from secondsite.server.api.services import Services
from secondsite.server.items.service import Items
from secondsite.server.items.together import ItemParts
from secondsite.transfer.desired import PATH_DESIRED, Desired
from secondsite.transfer.reports import PATH_REPORTS, Report, ReportAnswer

router = APIRouter(tags=["desired"])

_NOTHING_NEW: dict[int | str, dict[str, Any]] = {204: {"description": "Nothing newer is wanted"}}


def parts_of(services: Services) -> ItemParts:
    """What protected items are made of. Raises NotReady."""
    if services.items is None:
        raise NotReady(why="it protects nothing")
    return services.items


def items_of(services: Services) -> Items:
    """The server's protected items. Raises NotReady."""
    return parts_of(services).items


@router.get(PATH_DESIRED, responses=_NOTHING_NEW, response_model=Desired)
def desired(
    who: TheGateway,
    services: TheServices,
    after: Annotated[int, Query(ge=-1, le=2**53, description="The generation the gateway has.")] = -1,
) -> Response | Desired:
    """Everything that is wanted of the gateway, when it is newer than `after`."""
    found = parts_of(services).wanted.of(who.id, who.vault_id, after=after)
    if found is None:
        return Response(status_code=204)
    return Response(found.model_dump_json(by_alias=True), media_type="application/json")


@router.post(PATH_REPORTS)
def report(body: Report, who: TheGateway, services: TheServices) -> ReportAnswer:
    """What the gateway protects and keeps; the answer says what it is to fetch, and to tell."""
    return parts_of(services).reports.heard(who, body)
