"""Routes of events: listings by cursor, how much is kept, and what gateways tell of what happened there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from secondsite.model.events import Severity
from secondsite.server.api.access import TheServices, requires_somewhere
from secondsite.server.api.enrolment import TheGateway
from secondsite.server.api.errors import InputRefused, NotReady
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import View
from secondsite.server.api.services import Services
from secondsite.server.events.service import Search, StoredEvent
from secondsite.server.people.roles import Caller, Operation
from secondsite.server.telling import Telling
from secondsite.transfer.reports import PATH_EVENTS, EventAnswer, EventBatch

router = APIRouter(tags=["events"])

Reader = Annotated[Caller, requires_somewhere(Operation.EVENT_READ)]
SeverityName = Literal["Information", "Warning", "Critical"]
_Id = Annotated[str | None, Query(max_length=255, pattern=r"^[^\u0000-\u001f\u007f]*$")]


class EventView(View):
    """Something that happened."""

    number: int
    at: datetime = Field(description="When the server wrote it, by its clock.")
    told_at: datetime | None = Field(
        description="When it happened, by the clock of the gateway that told it."
    )
    severity: SeverityName
    code: str
    text: str
    vault: str = Field(description="A vault's id; empty: of the server itself.")
    gateway: str = Field(description="A gateway's name; like the next ones empty where there is none.")
    item: str
    machine: str

    @classmethod
    def of(cls, event: StoredEvent) -> EventView:
        """As it goes out."""
        return cls(
            number=event.number,
            at=event.at,
            told_at=event.told_at,
            severity=event.severity.value,
            code=event.code,
            text=event.text,
            vault=event.vault,
            gateway=event.gateway,
            item=event.item,
            machine=event.machine,
        )


class EventsKept(View):
    """How many events there are."""

    newest: int = Field(description="The number of the newest one.")
    kept: int
    dropped: int = Field(description="Older ones that were dropped, so far: by age, or as too many.")


def _search(  # noqa: PLR0917 - called by name, by the framework
    caller: Reader,
    services: TheServices,
    vault: Annotated[
        str | None, Query(min_length=1, max_length=100, description="A vault's id or name.")
    ] = None,
    severity: Annotated[SeverityName, Query(description="At least.")] = "Information",
    code: Annotated[
        list[Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9.-]*\*?$")]] | None,
        Query(max_length=20, description="Any of these; `replicate.*` for all that begin so."),
    ] = None,
    gateway: _Id = None,
    machine: _Id = None,
    item: _Id = None,
    since: Annotated[datetime | None, Query(description="Written then or later.")] = None,
) -> Search:
    if since is not None and since.tzinfo is None:
        raise InputRefused(where="the parameter since", why="it names no time zone; add Z for UTC")
    allowed = caller.vaults(Operation.EVENT_READ)
    if vault is not None:
        named = services.vault_id(vault)
        allowed = frozenset({named}) if allowed is None or named in allowed else frozenset()
    return Search(
        vaults=allowed,
        at_least=Severity(severity),
        codes=tuple(code or ()),
        gateway=gateway,
        machine=machine,
        item=item,
        since=since,
    )


@router.get("/api/v1/events")
def list_events(
    page: AskedPage,
    search: Annotated[Search, Depends(_search)],
    services: TheServices,
    order: Literal["newest", "oldest"] = "newest",
    above: Annotated[
        int | None, Query(ge=0, lt=2**63, description="With order=oldest: only those with a higher number.")
    ] = None,
) -> Page[EventView]:
    """What happened, youngest first. To follow: order=oldest, above= the highest number seen."""
    after, limit = page.after_number(), page.limit
    if order == "newest":
        found = services.events.newest(search, before=after, limit=limit)
    else:
        found = services.events.after(search, max(after or 0, above or 0), limit=limit)
    link = page.link(found[-1].number) if len(found) == limit else None
    return Page(value=[EventView.of(event) for event in found], next_link=link)


@router.get("/api/v1/events/kept")
def events_kept(caller: Reader, services: TheServices) -> EventsKept:  # noqa: ARG001
    """How many events there are, and how many are gone."""
    return EventsKept.model_validate(services.events.kept())


def telling_of(services: Services) -> Telling:
    """What the server does about what happens. Raises NotReady."""
    if services.telling is None:
        raise NotReady(why="it takes no events")
    return services.telling


@router.post(PATH_EVENTS)
def take_events(body: EventBatch, who: TheGateway, services: TheServices) -> EventAnswer:
    """What happened at a gateway; the answer says how far the server has its log. Each event counts once."""
    return telling_of(services).intake.take(who, body)
