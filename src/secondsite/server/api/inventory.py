"""Routes of what the sites have: machines, hosts, networks and pools, as their gateways last told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import Field

from secondsite.server.api.access import TheServices, requires, requires_somewhere
from secondsite.server.api.errors import InputRefused, NotReady
from secondsite.server.api.pages import AskedPage, Page, PageRequest
from secondsite.server.api.providers import ThePlace
from secondsite.server.api.schemas import View
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of
from secondsite.server.identity.gateways import Gateway
from secondsite.server.inventory.reader import InventoryReader
from secondsite.server.inventory.service import Entry, Inventories, Kind, Search, sort_key_of
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["inventory"])

AnyReader = Annotated[Caller, requires_somewhere(Operation.PROVIDER_READ)]
Reader = Annotated[Caller, requires(Operation.PROVIDER_READ)]
Refresher = Annotated[Caller, requires(Operation.INVENTORY_REFRESH)]
GATEWAYS_MAX = 500

Provider = Annotated[
    str | None, Query(max_length=200, pattern=r"^[a-z0-9.-]+$", description="Only this gateway's site.")
]
Name = Annotated[
    str,
    Query(max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$", description="Only names with this in them."),
]
Gone = Annotated[bool, Query(description="Also what is not there any more; kept for 30 days.")]


@dataclass(frozen=True)
class Filter:
    """What a listing is limited to."""

    provider: str | None
    name: str
    gone: bool


def _filter(provider: Provider = None, name: Name = "", gone: Gone = False) -> Filter:
    return Filter(provider, name, gone)


AskedFilter = Annotated[Filter, Depends(_filter)]


class ThingView(View):
    """Something a site has."""

    id: str
    name: str
    provider: str = Field(description="The name of the gateway that told of it.")
    site: str
    seen_first: datetime
    gone_since: datetime | None
    properties: dict[str, Any] = Field(description="As the gateway told it.")


class ReadView(View):
    """A site was read."""

    appeared: int
    changed: int
    gone: int


class SiteView(View):
    """When a site was read."""

    provider: str
    site: str
    read_at: datetime | None = Field(description="The last time it told what it has.")
    tried_at: datetime | None
    problem: dict[str, Any] | None = Field(description="Why the last try failed; null when it did not.")


def inventories_of(services: Services) -> tuple[Inventories, InventoryReader]:
    """The server's inventories and what reads them. Raises NotReady."""
    if services.inventories is None or services.inventory_reader is None:
        raise NotReady(why="it reads no sites")
    return services.inventories, services.inventory_reader


@router.get("/machines")
def list_machines(
    asked: AskedPage, only: AskedFilter, caller: AnyReader, services: TheServices
) -> Page[ThingView]:
    """The machines of every site I may see, by name; protected or not."""
    return _list(services, caller, asked, (Kind.MACHINE, only))


@router.get("/hosts")
def list_hosts(
    asked: AskedPage, only: AskedFilter, caller: AnyReader, services: TheServices
) -> Page[ThingView]:
    """The hypervisor hosts, by name."""
    return _list(services, caller, asked, (Kind.HOST, only))


@router.get("/networks")
def list_networks(
    asked: AskedPage, only: AskedFilter, caller: AnyReader, services: TheServices
) -> Page[ThingView]:
    """The networks, by name."""
    return _list(services, caller, asked, (Kind.NETWORK, only))


@router.get("/storageClassifications")
def list_storage(
    asked: AskedPage, only: AskedFilter, caller: AnyReader, services: TheServices
) -> Page[ThingView]:
    """The storage pools, by name."""
    return _list(services, caller, asked, (Kind.POOL, only))


@router.get("/vaults/{vault}/recoveryServicesProviders/{provider}/inventory")
def show_site(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> SiteView:
    """When a gateway's site was read, and why not."""
    gateway = place.gateways.get(place.name)
    last = inventories_of(services)[0].last_read(gateway.id)
    return SiteView(
        provider=gateway.name,
        site=gateway.site,
        read_at=last.read_at if last else None,
        tried_at=last.begun_at if last else None,
        problem=last.problem if last else None,
    )


@router.post("/vaults/{vault}/recoveryServicesProviders/{provider}/inventory")
def read_site(
    caller: Refresher,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> ReadView:
    """Read a gateway's site now, and say what changed."""
    changes = inventories_of(services)[1].read(place.gateways.get(place.name).id)
    return ReadView(appeared=changes.appeared, changed=changes.changed, gone=changes.gone)


def _list(
    services: Services, caller: Caller, asked: PageRequest, what: tuple[Kind, Filter]
) -> Page[ThingView]:
    seen = _visible(services, caller)
    kind, only = what
    gateways = [key for key, gateway in seen.items() if only.provider in (None, gateway.name)]
    limited = Search(kind, gateways, only.name, only.gone)
    found = inventories_of(services)[0].list(limited, after=_after(asked), limit=asked.limit + 1)
    shown, rest = found[: asked.limit], found[asked.limit :]
    last = shown[-1] if shown and rest else None
    return Page[ThingView](
        value=[_view(entry, seen[entry.gateway]) for entry in shown],
        next_link=asked.link(sort_key_of(last.name), last.gateway, last.id) if last else None,
    )


def _visible(services: Services, caller: Caller) -> dict[str, Gateway]:
    """The gateways of the vaults the caller may see, by id."""
    allowed = caller.vaults(Operation.PROVIDER_READ)
    gateways = identity_of(services).gateways
    found: dict[str, Gateway] = {}
    after = ""
    while page := gateways.page(vault_ids=allowed, after=after, limit=GATEWAYS_MAX):
        found.update({gateway.id: gateway for gateway in page})
        after = page[-1].name
    return found


def _after(asked: PageRequest) -> tuple[str, str, str] | None:
    if asked.after is None:
        return None
    parts = [part for part in asked.after if isinstance(part, str)]
    if len(parts) != 3 or len(asked.after) != 3:
        raise InputRefused(where="after", why="it is not a cursor of this listing")
    return parts[0], parts[1], parts[2]


def _view(entry: Entry, gateway: Gateway) -> ThingView:
    return ThingView(
        id=entry.id,
        name=entry.name,
        provider=gateway.name,
        site=gateway.site,
        seen_first=entry.seen_first,
        gone_since=entry.gone_since,
        properties=msgspec.json.decode(entry.detail, type=dict[str, Any]),
    )
