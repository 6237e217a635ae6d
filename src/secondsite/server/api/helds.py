"""Routes of machines that are held at their sources since they run elsewhere: which, and what is decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from msgspec import structs
from pydantic import Field
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.model.items import DISCARDABLE, ItemOperation
from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.itembodies import HeldView, held_view
from secondsite.server.api.itemfailovers import ConfirmBody, FailsOver
from secondsite.server.api.items import PATH_ITEMS, Place, ThePlace, checked, start_job
from secondsite.server.api.jobs import ACCEPTED, JobView
from secondsite.server.api.pages import Page
from secondsite.server.api.schemas import VaultPath
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import GatewayName, identity_of
from secondsite.server.items.errors import NotHeld
from secondsite.server.items.failovers import held_at, held_machines
from secondsite.server.items.records import job_input
from secondsite.server.operations.held import DISCARD, RELEASE, Decide, confirm_decision
from secondsite.server.people.roles import Actor, Caller, Operation
from secondsite.transfer.reports import HeldReport

router = APIRouter(prefix="/api/v1", tags=["items"])

Reader = Annotated[Caller, requires(Operation.ITEM_READ)]


class DiscardBody(ConfirmBody):
    """What is given up, and what goes with it."""

    remove: Annotated[
        Literal["nothing", "machine", "machine-and-disks"],
        Field(description="Of the held machine, from its host."),
    ] = "nothing"
    provider: GatewayName | None = Field(
        default=None,
        description="Which gateway's copy, as the list of held machines says; null: the source's.",
    )


@router.get("/vaults/{vault}/heldMachines")
def list_held_machines(
    vault: VaultPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
    everything: Annotated[bool, Query(description="Also those that were decided.")] = False,
) -> Page[HeldView]:
    """Machines that are isolated at their sources because they run elsewhere, by name."""
    vault_id = identity_of(services).vaults.get(vault).id
    with services.database.read() as connection:
        found = held_machines(connection, vault_id, everything=everything)
    return Page(value=[held_view(name, told) for name, told in found])


@router.post(PATH_ITEMS + "/{item}/heldRelease", status_code=202, responses=ACCEPTED)
def release_held_machine(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ConfirmBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Let a held machine run again at its source, although another site is its authority."""
    given, held = _given(services, place, actor, body)
    check = checked(services, place, ItemOperation.HELD_RELEASE)
    return _decide(services, actor, response, RELEASE, given, held, check)


@router.post(PATH_ITEMS + "/{item}/heldDiscard", status_code=202, responses=ACCEPTED)
def discard_held_machine(  # noqa: PLR0917 - called by name, by the framework
    caller: FailsOver,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: DiscardBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Shut a held machine off for good: what it wrote after its last point is not needed."""
    given, held = _given(services, place, actor, body, gateway=body.provider or "")
    given = structs.replace(given, remove=body.remove)
    check = _checked_there(given) if given.gateway else checked(services, place, ItemOperation.HELD_DISCARD)
    return _decide(services, actor, response, DISCARD, given, held, check)


def _given(
    services: Services, place: Place, actor: Actor, body: ConfirmBody, gateway: str = ""
) -> tuple[Decide, HeldReport | None]:
    """What the job is given, and what is held: at the item's source, or at a gateway. Raises NotHeld."""
    with services.database.read() as connection:
        found = place.find(services, connection)
        held = held_at(connection, place.vault_id, gateway, found.machine) if gateway else found.held
    if gateway and held is None:
        raise NotHeld(name=found.name, gateway=gateway)
    epoch = held.epoch if held is not None else 0
    asked = job_input(found, actor.name)
    return Decide(**asked, epoch=epoch, confirm=body.confirm, gateway=gateway), held


def _checked_there(given: Decide) -> Callable[[Connection], None]:
    """Refuses what was decided there already, and what another claim holds by now."""

    def check(connection: Connection) -> None:
        told = held_at(connection, given.vault, given.gateway, given.machine)
        if told is None or told.state not in DISCARDABLE or told.epoch != given.epoch:
            raise NotHeld(name=given.name, gateway=given.gateway)

    return check


def _decide(  # noqa: PLR0917 - each from the route that calls it
    services: Services,
    actor: Actor,
    response: Response,
    kind: str,
    given: Decide,
    held: HeldReport | None,
    check: Callable[[Connection], None],
) -> JobView:
    if held is not None:
        confirm_decision(given, held, kind)
    return start_job(services, actor, response, kind, given, Operation.ITEM_FAILOVER, check)
