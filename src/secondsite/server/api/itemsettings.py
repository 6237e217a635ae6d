"""Routes to see and set what an item's recovered machine is to be, in each direction."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path
from sqlalchemy.engine import Connection

from secondsite.model.recovered import UNCHANGED, Direction, RecoveredSettings, left_behind
from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.items import PATH_ITEMS, Reader, ThePlace
from secondsite.server.api.settingsbodies import DirectionView, Settings, SettingsView
from secondsite.server.api.vaults import note
from secondsite.server.items import recovered
from secondsite.server.items.records import Item
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["items"])

Writer = Annotated[Caller, requires(Operation.ITEM_WRITE)]
PATH = PATH_ITEMS + "/{item}/recoveredMachine"
Way = Annotated[Direction, Path(description="forward, or reverse: the way back.")]


@router.get(PATH)
def show_item_settings(
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> SettingsView:
    """What the recovered machine is to be, in both directions."""
    with services.database.read() as connection:
        return _view(connection, place.find(services, connection))


@router.put(PATH + "/{direction}")
def set_item_settings(  # noqa: PLR0917 - called by name, by the framework
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    direction: Way,
    body: Annotated[Settings, Body()],
    actor: TheActor,
    services: TheServices,
) -> SettingsView:
    """Set all of it for one direction. It counts from the next test failover or failover on."""
    with services.database.write() as connection:
        found = place.find(services, connection)
        recovered.keep(connection, found, direction, body, by=actor.name, at=services.clock.utc().isoformat())
        told = note(services, actor, Operation.ITEM_WRITE, settings=direction.value, **_told(body))
        told(connection, found.vault_id, found.name)
        return _view(connection, found)


@router.delete(PATH + "/{direction}")
def clear_item_settings(
    caller: Writer,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    direction: Way,
    actor: TheActor,
    services: TheServices,
) -> SettingsView:
    """Set nothing for one direction any more; may be asked again."""
    with services.database.write() as connection:
        found = place.find(services, connection)
        if recovered.clear(connection, found, direction):
            told = note(services, actor, Operation.ITEM_WRITE, settings=direction.value, cleared=True)
            told(connection, found.vault_id, found.name)
        return _view(connection, found)


def _told(settings: RecoveredSettings) -> dict[str, str | int]:
    """What an audit log says of it: which settings, not their values, which may be many."""
    return {"set": ", ".join(sorted(_names(settings)))[:200]}


def _names(settings: RecoveredSettings) -> list[str]:
    return [
        name
        for name in RecoveredSettings.__struct_fields__
        if getattr(settings, name) != getattr(UNCHANGED, name)
    ]


def _view(connection: Connection, item: Item) -> SettingsView:
    kept = {one.direction: one for one in recovered.all_of(connection, item)}
    forward, reverse = kept.get(Direction.FORWARD), kept.get(Direction.REVERSE)
    return SettingsView(
        forward=None if forward is None else DirectionView.model_validate(forward),
        reverse=None if reverse is None else DirectionView.model_validate(reverse),
        left_behind=left_behind(
            None if forward is None else forward.settings, None if reverse is None else reverse.settings
        ),
    )
