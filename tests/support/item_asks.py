"""Every operation of an item asked for through its own route, to see whether it would begin: nothing does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

from starlette.responses import Response

from secondsite.model import confirmations, reversals
from secondsite.model.items import ItemOperation, OperationNotAllowed
from secondsite.server.api import helds, itemfailovers, itemforget, itemreturns, items, itemtests
from secondsite.server.api.itembodies import ItemChangeBody, ItemDetail, MappingBody
from secondsite.server.api.itemends import is_here
from secondsite.server.api.services import Services
from secondsite.server.items.records import Item
from secondsite.server.people.roles import Actor
from support.items import ItemPlace

_O = ItemOperation
_ROUTES = (helds, itemfailovers, itemforget, itemreturns, items, itemtests)
Given = dict[str, Any]


class _Begun(Exception):
    """It would be a job now."""


def shown(place: ItemPlace, item: Item) -> frozenset[str]:
    """What the API says may be asked of it."""
    services = _services(place)
    here = [is_here(services, name) for name in (item.source_name, item.target_name)]
    now = place.clock.utc()
    return frozenset(
        ItemDetail.detail(item, now, source_here=here[0], target_here=here[1]).allowed_operations
    )


def accepted(place: ItemPlace, item: Item) -> frozenset[str]:
    """What the API begins, of all that can be asked of it by a route, each with what a person has to say."""
    with _nothing_begins():
        return frozenset(what.value for what in _ASKED if _begins(place, item, what))


def asked_for() -> frozenset[str]:
    """The operations that are asked for here."""
    return frozenset(what.value for what in _ASKED)


def _services(place: ItemPlace) -> Services:
    parts: Any = mock.Mock(spec=[])
    parts.database, parts.identity, parts.items = place.database, place.identity, place.parts
    parts.clock, parts.jobs, parts.inventories = place.clock, place.worker.jobs, place.inventories
    return cast("Services", parts)


def _begins(place: ItemPlace, item: Item, what: ItemOperation) -> bool:
    route, more = _ASKED[what]
    given = {
        "caller": None,
        "place": items.Place(item.vault_id, item.id),
        "actor": Actor("ann", "token:1"),
        "services": _services(place),
        "response": Response(),
        **more(item),
    }
    try:
        route(**given)
    except _Begun:
        return True
    except OperationNotAllowed:
        return False
    raise AssertionError(f"the route of {what} came to no end")


@contextmanager
def _nothing_begins() -> Iterator[None]:
    """Routes come as far as the check, in a transaction that only reads."""

    def would(services: Services, *given: Any, **_more: Any) -> None:
        *_, check = given
        with services.database.read() as connection:
            check(connection)
        raise _Begun

    with ExitStack() as stack:
        for module in _ROUTES:
            stack.enter_context(mock.patch.object(module, "start_job", would))
        yield


def _nothing(_item: Item) -> Given:
    return {}


def _body(make: Callable[[Item], object]) -> Callable[[Item], Given]:
    return lambda item: {"body": make(item)}


def _discarded(item: Item) -> object:
    return helds.DiscardBody(confirm=confirmations.discarded(item.name))


def _released(item: Item) -> object:
    claimant = item.held.claimant if item.held is not None else ""
    return itemfailovers.ConfirmBody(confirm=confirmations.released(item.name, claimant))


def _failed_back(item: Item) -> object:
    said = confirmations.moved(item.name, item.source_name, item.target_name)
    return itemreturns.FailbackBody(old_machine=None, confirm=[said])


_LOST = _body(lambda item: itemfailovers.ConfirmBody(confirm=confirmations.lost(item.name)))
_ASKED: dict[ItemOperation, tuple[Callable[..., object], Callable[[Item], Given]]] = {
    _O.FINALIZE: (items.finalize_item, _nothing),
    _O.PAUSE: (items.pause_item, _nothing),
    _O.RESUME: (items.resume_item, _nothing),
    _O.RESYNC: (items.resync_item, _nothing),
    _O.CHANGE_DISKS: (items.change_item, _body(lambda _item: ItemChangeBody(all_disks=True))),
    _O.CHANGE_MAPPING: (items.change_item, _body(lambda _item: ItemChangeBody(mapping=MappingBody()))),
    _O.TAKE_POINT: (items.take_item_point, _nothing),
    _O.TEST_FAILOVER: (
        itemtests.boot_item_test,
        _body(lambda _item: itemtests.TestFailoverBody(network="none")),
    ),
    _O.TEST_FAILOVER_CLEANUP: (
        itemtests.clean_up_item_test,
        _body(lambda _item: itemtests.CleanupBody(notes="-")),
    ),
    _O.DISABLE: (items.disable_item, lambda _item: {"with_replica": False, "force": False}),
    _O.DISABLE_WITH_REPLICA: (items.disable_item, lambda _item: {"with_replica": True, "force": False}),
    _O.FORGET: (
        itemforget.forget_item,
        _body(lambda item: itemforget.ForgetBody(confirm=confirmations.forgotten(item.name))),
    ),
    _O.PLANNED_FAILOVER: (itemfailovers.move_item, _body(lambda _item: itemfailovers.PlannedBody())),
    _O.UNPLANNED_FAILOVER: (itemfailovers.fail_item_over, _body(lambda _item: itemfailovers.UnplannedBody())),
    _O.CHANGE_POINT: (
        itemfailovers.change_item_point,
        _body(
            lambda item: itemfailovers.ChangePointBody(
                recovery_point="1", confirm=confirmations.lost(item.name)
            )
        ),
    ),
    _O.COMMIT: (
        itemfailovers.commit_item_failover,
        _body(lambda item: itemfailovers.CommitBody(confirm=confirmations.kept(item.name))),
    ),
    _O.CANCEL_FAILOVER: (itemfailovers.cancel_item_failover, _LOST),
    _O.REPROTECT: (
        itemreturns.reprotect_item,
        _body(lambda item: itemreturns.ReprotectBody(confirm=reversals.reversed_onto(item.name))),
    ),
    _O.FAILBACK: (itemreturns.fail_item_back, _body(_failed_back)),
    _O.COMPLETE_MIGRATION: (
        itemreturns.complete_item_migration,
        _body(lambda item: itemreturns.MigrationBody(confirm=reversals.migrated(item.name))),
    ),
    _O.HELD_RELEASE: (helds.release_held_machine, _body(_released)),
    _O.HELD_DISCARD: (helds.discard_held_machine, _body(_discarded)),
}
