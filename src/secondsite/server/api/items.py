"""Routes of protected items: list, look inside, and ask for something. What is asked for answers 202."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.model.items import ItemOperation, ProtectedState, check_operation
from secondsite.server.api.access import TheActor, TheServices, requires, requires_somewhere, vault_in
from secondsite.server.api.desired import items_of
from secondsite.server.api.errors import InputRefused
from secondsite.server.api.inventory import inventories_of
from secondsite.server.api.itembodies import (
    CountsView,
    HealthName,
    ItemChangeBody,
    ItemDetail,
    ItemView,
    NewItemBody,
    StateName,
)
from secondsite.server.api.itemends import ends_of, is_here, reachable_of
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.pages import AskedPage, Page, PageRequest
from secondsite.server.api.schemas import VaultPath
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of, note
from secondsite.server.inventory.service import Kind
from secondsite.server.items.records import Item, job_input
from secondsite.server.items.search import Search, name_key
from secondsite.server.jobs.service import Jobs
from secondsite.server.operations.changing import CHANGE, PAUSE, RESUME, RESYNC, Change
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.finalise import FINALISE, ItemInput
from secondsite.server.operations.points import TAKE_POINT, TakePoint
from secondsite.server.operations.protect import PROTECT, Image, Protect
from secondsite.server.people.roles import Actor, Caller, Operation
from secondsite.transfer.desired import WantedMapping

router = APIRouter(prefix="/api/v1", tags=["items"])

AnyReader = Annotated[Caller, requires_somewhere(Operation.ITEM_READ)]
Reader = Annotated[Caller, requires(Operation.ITEM_READ)]
Writer = Annotated[Caller, requires(Operation.ITEM_WRITE)]
Operator = Annotated[Caller, requires(Operation.ITEM_OPERATE)]
Disabler = Annotated[Caller, requires(Operation.ITEM_DISABLE)]
ItemPath = Annotated[
    str,
    Path(
        alias="item",
        min_length=1,
        max_length=255,
        pattern=r"^[^\u0000-\u001f\u007f]*$",
        description="Its id, its machine's id, or its name where no other has it.",
    ),
]
_Text = Query(max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$")
PATH_ITEMS = "/vaults/{vault}/replicationProtectedItems"


def _search(
    state: Annotated[list[StateName] | None, Query(max_length=28)] = None,
    health: Annotated[list[HealthName] | None, Query(max_length=3)] = None,
    provider: Annotated[
        str | None, Query(max_length=200, pattern=r"^[a-z0-9.-]+$", description="At either end.")
    ] = None,
    policy: Annotated[str | None, Query(max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")] = None,
    name: Annotated[str, _Text] = "",
) -> Search:
    return Search(
        states=[ProtectedState(one) for one in state or ()],
        health=list(health or ()),
        gateway=provider,
        policy=policy,
        name_contains=name,
    )


AskedSearch = Annotated[Search, Depends(_search)]


@router.get("/replicationProtectedItems", response_model=Page[ItemView])
def list_all_items(asked: AskedPage, only: AskedSearch, caller: AnyReader, services: TheServices) -> Response:
    """The protected items of every vault I may see, by name."""
    allowed = caller.vaults(Operation.ITEM_READ)
    return _page(services, asked, only, allowed)


@router.get(PATH_ITEMS, response_model=Page[ItemView])
def list_items(  # noqa: PLR0917 - called by name, by the framework
    vault: VaultPath,
    asked: AskedPage,
    only: AskedSearch,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
    request: Request,
) -> Response:
    """A vault's protected items, by name; those that were ended only when asked for by their state."""
    return _page(services, asked, only, frozenset({vault_in(request, vault)}))


@router.get("/vaults/{vault}/replicationProtectedItemCounts")
def count_items(
    vault: VaultPath,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> CountsView:
    """How many machines are protected now, by state and health, and since when."""
    found = items_of(services).counts([identity_of(services).vaults.get(vault).id])
    return CountsView.of(found, services.clock.utc())


@dataclass(frozen=True)
class Place:
    """A vault and what an item in it is called."""

    vault_id: str
    named: str

    def find(self, services: Services, connection: Connection) -> Item:
        """The item. Raises ItemUnknown, ItemAmbiguous."""
        return items_of(services).find(connection, self.vault_id, self.named)

    def read(self, services: Services) -> Item:
        """The item as it is now. Raises ItemUnknown, ItemAmbiguous."""
        with services.database.read() as connection:
            return self.find(services, connection)


def _in_vault(vault: VaultPath, item: ItemPath, request: Request) -> Place:
    return Place(vault_in(request, vault), item)


# stands behind the caller in a route's parameters: who may not see a vault learns nothing of what is in it
ThePlace = Annotated[Place, Depends(_in_vault)]


@router.get(PATH_ITEMS + "/{item}")
def show_item(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> ItemDetail:
    """One protected item, with what may be asked of it now and what is wrong with it."""
    found = place.read(services)
    now = services.clock.utc()
    here = {name: is_here(services, name) for name in {found.source_name, found.target_name}}
    return ItemDetail.detail(
        found, now, source_here=here[found.source_name], target_here=here[found.target_name]
    )


@router.post(PATH_ITEMS, status_code=202, responses=ACCEPTED)
def protect_machine(  # noqa: PLR0917 - called by name, by the framework
    vault: VaultPath,
    body: NewItemBody,
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Protect a machine: look whether it can be, copy it, finalise."""
    vault_id = identity_of(services).vaults.get(vault).id
    source, target = ends_of(services, vault_id, body)
    machine = inventories_of(services)[0].find(source.id, Kind.MACHINE, body.machine)
    images = {disk: Image(path=one.path, format=one.format) for disk, one in body.images.items()}
    given = Protect(
        vault=vault_id,
        machine=machine.id,
        name=machine.name,
        source=source.name,
        target=target.name,
        policy=_policy(services, vault_id, body.policy),
        disks=None if body.disks is None else tuple(body.disks),
        left_out=tuple(body.left_out),
        mapping=None if body.mapping is None else _mapping(body.mapping.model_dump()),
        images=images,
    )

    def check(connection: Connection) -> None:
        found = items_of(services).of_machine(connection, vault_id, machine.id)
        if found is not None:
            check_operation(found.name, found.state, found.facts, ItemOperation.PROTECT)

    return start_job(services, actor, response, PROTECT, given, Operation.ITEM_WRITE, check)


@router.patch(PATH_ITEMS + "/{item}", status_code=202, responses=ACCEPTED)
def change_item(  # noqa: PLR0917 - called by name, by the framework
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ItemChangeBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Give an item another policy, other disks, or another mapping."""
    asked: dict[ItemOperation, str] = {}
    if body.policy is not None:
        asked[ItemOperation.CHANGE_POLICY] = "the policy"
    if body.disks is not None or body.left_out is not None or body.all_disks:
        asked[ItemOperation.CHANGE_DISKS] = "the disks"
    if body.mapping is not None or body.pair_mapping:
        asked[ItemOperation.CHANGE_MAPPING] = "the mapping"
    if not asked:
        raise InputRefused(where="the body", why="it names nothing to change")
    values: dict[str, Any] = {
        "what": " and ".join(asked.values()),
        "policy": _policy(services, place.vault_id, body.policy),
        "disks": None if body.disks is None else tuple(body.disks),
        "all_disks": body.all_disks,
        "left_out": None if body.left_out is None else tuple(body.left_out),
        "mapping": None if body.mapping is None else _mapping(body.mapping.model_dump()),
        "pair_mapping": body.pair_mapping,
    }
    return _operate(services, actor, response, place, (CHANGE, *asked), Operation.ITEM_WRITE, values)


@router.post(PATH_ITEMS + "/{item}/finalize", status_code=202, responses=ACCEPTED)
def finalize_item(
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Finalise a protection whose first copy is there: only then it is ready for a failover."""
    found = place.read(services)
    given = ItemInput(**job_input(found))
    check = checked(services, place, ItemOperation.FINALIZE)
    return start_job(services, actor, response, FINALISE, given, Operation.ITEM_WRITE, check)


@router.post(PATH_ITEMS + "/{item}/pause", status_code=202, responses=ACCEPTED)
def pause_item(
    caller: Operator,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Stop capturing; changes go on being tracked at the host."""
    what = (PAUSE, ItemOperation.PAUSE)
    return _operate(services, actor, response, place, what, Operation.ITEM_OPERATE, {})


@router.post(PATH_ITEMS + "/{item}/resume", status_code=202, responses=ACCEPTED)
def resume_item(
    caller: Operator,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Go on capturing."""
    what = (RESUME, ItemOperation.RESUME)
    return _operate(services, actor, response, place, what, Operation.ITEM_OPERATE, {})


@router.post(PATH_ITEMS + "/{item}/resync", status_code=202, responses=ACCEPTED)
def resync_item(
    caller: Operator,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Compare everything with the replica, and send what differs; older points stay."""
    what = (RESYNC, ItemOperation.RESYNC)
    return _operate(services, actor, response, place, what, Operation.ITEM_OPERATE, {})


@router.post(PATH_ITEMS + "/{item}/recoveryPoints", status_code=202, responses=ACCEPTED)
def take_item_point(
    caller: Annotated[Caller, requires(Operation.POINT_TAKE)],  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Take a recovery point now, beside those its copy frequency gives."""
    given = pointed(place.read(services))
    check = checked(services, place, ItemOperation.TAKE_POINT)
    return start_job(
        services, actor, response, TAKE_POINT, given, Operation.POINT_TAKE, check, vault=place.vault_id
    )


@router.delete(PATH_ITEMS + "/{item}", status_code=202, responses=ACCEPTED)
def disable_item(  # noqa: PLR0917 - called by name, by the framework
    caller: Disabler,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    actor: TheActor,
    services: TheServices,
    response: Response,
    with_replica: Annotated[
        bool | None,
        Query(alias="withReplica", description="Delete the replica, too. Absent: as the policy says."),
    ] = None,
    force: Annotated[
        bool, Query(description="Leave behind what a gateway that is away cannot remove.")
    ] = False,
) -> JobView:
    """End a protection: everything of ours goes at the source; the replica stays, or goes with it."""
    given = disabled(place.read(services), with_replica=with_replica, force=force)
    check = checked(services, place, ending(given))
    return start_job(services, actor, response, DISABLE, given, Operation.ITEM_DISABLE, check)


# what jobs are given: of one item, or of each of a group


def pointed(item: Item) -> TakePoint:
    """To take a point of it at its source."""
    return TakePoint(
        gateway=item.source_id, gateway_name=item.source_name, machine=item.machine, machine_name=item.name
    )


def disabled(item: Item, *, with_replica: bool | None, force: bool) -> Disable:
    """To end its protection. with_replica None: as its policy says."""
    replica = item.policy.delete_replica_on_disable if with_replica is None else with_replica
    return Disable(**job_input(item), with_replica=replica, force=force)


def ending(given: Disable) -> ItemOperation:
    """What has to be possible for that."""
    return ItemOperation.DISABLE_WITH_REPLICA if given.with_replica else ItemOperation.DISABLE


# what the routes share


def _page(services: Services, asked: PageRequest, only: Search, vaults: frozenset[str] | None) -> Response:
    limited = replace(only, vaults=vaults)
    found = items_of(services).page(limited, after=_after(asked), limit=asked.limit + 1)
    shown = found[: asked.limit]
    more = len(found) > len(shown)
    now, reachable = services.clock.utc(), reachable_of(services, shown)
    page = Page[ItemView](
        value=[ItemView.of(item, now, reachable=item.id in reachable) for item in shown],
        next_link=asked.link(name_key(shown[-1].name), shown[-1].id) if more else None,
    )
    # written here: the framework would check and take apart a hundred views that were just put together
    return Response(page.model_dump_json(by_alias=True), media_type="application/json")


def _after(asked: PageRequest) -> tuple[str, str] | None:
    if asked.after is None:
        return None
    parts = [part for part in asked.after if isinstance(part, str)]
    if len(parts) != 2 or len(asked.after) != 2:
        raise InputRefused(where="after", why="it is not a cursor of this listing")
    return parts[0], parts[1]


def _policy(services: Services, vault_id: str, named: str | None) -> str | None:
    """A policy's id by its id or name. Raises PolicyUnknown."""
    if named is None:
        return None
    return items_of(services).seams.policies.named(vault_id, named)


def _mapping(body: dict[str, Any]) -> str:
    return WantedMapping.model_validate(body).model_dump_json(by_alias=True)


def checked(
    services: Services, place: Place, *operations: ItemOperation, reachable: bool = False
) -> Callable[[Connection], None]:
    """Refuses what the item's state does not allow, naming what it does. reachable: see `ItemFacts`."""

    def check(connection: Connection) -> None:
        found = place.find(services, connection)
        facts = replace(found.facts, reachable=reachable)
        for operation in operations:
            check_operation(found.name, found.state, facts, operation)

    return check


def _operate(  # noqa: PLR0917 - each from the route that calls it
    services: Services,
    actor: Actor,
    response: Response,
    place: Place,
    what: tuple[str, *tuple[ItemOperation, ...]],
    needs: Operation,
    values: dict[str, Any],
) -> JobView:
    found = place.read(services)
    kind, *operations = what
    given = Change(**job_input(found), **values)
    check = checked(services, place, *operations)
    return start_job(services, actor, response, kind, given, needs, check)


def start_job(  # noqa: PLR0917 - each from the route that calls it
    services: Services,
    actor: Actor,
    response: Response,
    kind: str,
    given: msgspec.Struct,
    needs: Operation,
    check: Callable[[Connection], None],
    *,
    vault: str | None = None,
) -> JobView:
    """A new job with its row in the audit log, in one transaction; the worker is told."""
    in_vault = str(vault or getattr(given, "vault", ""))
    name = str(getattr(given, "name", "") or getattr(given, "machine_name", ""))

    def start(jobs: Jobs, connection: Connection) -> str:
        check(connection)
        identity = jobs.start(connection, kind, given, actor.name, vault=in_vault)
        note(services, actor, needs, job=identity, kind=kind)(connection, in_vault, name)
        return identity

    return accepted(services, response, start)
