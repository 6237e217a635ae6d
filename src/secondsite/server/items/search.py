"""What a listing of items is limited to, as a query that an index answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from secondsite.model.items import ProtectedState
from secondsite.server.database.tables_items import ITEMS


@dataclass(frozen=True)
class Search:
    """What a listing is limited to; None: whatever it is."""

    vaults: Collection[str] | None = None
    states: Sequence[ProtectedState] = ()  # none: all but Unprotected
    health: Sequence[str] = ()
    gateway: str | None = None  # a name, at either end
    policy: str | None = None
    name_contains: str = ""


def name_key(name: str) -> str:
    """What names are sorted and searched by."""
    return name.casefold()


def first(search: Search, after: tuple[str, str] | None, limit: int) -> sa.Select[Any]:
    """The rows of the first items by name and id. after: as `Items.page` takes it."""
    where = _conditions(search)
    if after is not None:
        place = sa.tuple_(*(sa.literal(part) for part in after))
        where.append(sa.tuple_(ITEMS.c.name_key, ITEMS.c.id) > place)
    if search.gateway is not None:
        where = [ITEMS.c.id.in_(_at_gateway(search.gateway, where, limit))]
    return sa.select(ITEMS).where(*where).order_by(ITEMS.c.name_key, ITEMS.c.id).limit(limit)


def _conditions(search: Search) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if search.vaults is not None:
        found.append(ITEMS.c.vault_id.in_(search.vaults))
    if search.states:
        found.append(ITEMS.c.state.in_([state.value for state in search.states]))
    else:
        found.append(ITEMS.c.state != ProtectedState.UNPROTECTED.value)
    if search.health:
        found.append(ITEMS.c.health.in_(search.health))
    if search.policy is not None:
        found.append(ITEMS.c.policy_id == search.policy)
    if search.name_contains:
        found.append(ITEMS.c.name_key.contains(name_key(search.name_contains), autoescape=True))
    return found


def _at_gateway(gateway: str, where: Sequence[sa.ColumnElement[bool]], limit: int) -> sa.Select[Any]:
    """The ids of the first items, by name, that have the gateway at either end.

    One look along each end's index: with an OR a database walks all names until it has met enough.
    """
    ends = []
    for end in (ITEMS.c.source_name, ITEMS.c.target_name):
        some = sa.select(ITEMS.c.name_key, ITEMS.c.id).where(end == gateway, *where)
        part = some.order_by(ITEMS.c.name_key, ITEMS.c.id).limit(limit).subquery()
        ends.append(sa.select(part.c.name_key, part.c.id))
    both = sa.union(*ends)
    found = both.order_by(both.selected_columns.name_key, both.selected_columns.id).limit(limit).subquery()
    return sa.select(found.c.id)
