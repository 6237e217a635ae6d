"""What a listing of items is limited to, as a query that an index answers."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from secondsite.model.items import ProtectedState
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.items.records import query_page

_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_ESCAPE = "/"


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


def page_of(
    search: Search, after: tuple[str, str] | None, limit: int
) -> tuple[sa.Select[Any], dict[str, object]]:
    """The query for the first items by name and id, and its values. after: as `Items.page` takes it."""
    given: dict[str, object] = {
        "vaults": None if search.vaults is None else list(search.vaults),
        "states": [state.value for state in search.states] or None,
        "health": list(search.health) or None,
        "gateway": search.gateway,
        "policy": search.policy,
        "part": _pattern(name_key(search.name_contains)) if search.name_contains else None,
        "after_name": None if after is None else after[0],
        "after_id": None if after is None else after[1],
    }
    values = {name: value for name, value in given.items() if value is not None}
    return _query(frozenset(values)), {**values, "limit": limit}


def _pattern(part: str) -> str:
    """For LIKE, where it may be anywhere and none of its characters means something."""
    return "%" + "".join(f"{_ESCAPE}{one}" if one in f"%_{_ESCAPE}" else one for one in part) + "%"


@functools.cache  # of what is asked for, not of the values: a page costs less than building its query
def _query(asked: frozenset[str]) -> sa.Select[Any]:
    where = _conditions(asked)
    if "gateway" in asked:
        where = [ITEMS.c.id.in_(_at_gateway(where))]
    found = sa.select(ITEMS).where(*where).order_by(ITEMS.c.name_key, ITEMS.c.id)
    return query_page(found.limit(_LIMIT))


def _conditions(asked: frozenset[str]) -> list[sa.ColumnElement[bool]]:
    conditions = {
        "vaults": ITEMS.c.vault_id.in_(sa.bindparam("vaults", expanding=True)),
        "states": ITEMS.c.state.in_(sa.bindparam("states", expanding=True)),
        "health": ITEMS.c.health.in_(sa.bindparam("health", expanding=True)),
        "policy": ITEMS.c.policy_id == sa.bindparam("policy"),
        "part": ITEMS.c.name_key.like(sa.bindparam("part"), escape=_ESCAPE),
        "after_id": sa.tuple_(ITEMS.c.name_key, ITEMS.c.id)
        > sa.tuple_(sa.bindparam("after_name", type_=sa.Text), sa.bindparam("after_id", type_=sa.Text)),
    }
    found = [condition for name, condition in conditions.items() if name in asked]
    return found if "states" in asked else [*found, ITEMS.c.state != ProtectedState.UNPROTECTED.value]


def _at_gateway(where: Sequence[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    """The ids of the first items, by name, that have the gateway at either end.

    One look along each end's index: with an OR a database walks all names until it has met enough.
    """
    ends = []
    for end in (ITEMS.c.source_name, ITEMS.c.target_name):
        some = sa.select(ITEMS.c.name_key, ITEMS.c.id).where(end == sa.bindparam("gateway"), *where)
        part = some.order_by(ITEMS.c.name_key, ITEMS.c.id).limit(_LIMIT).subquery()
        ends.append(sa.select(part.c.name_key, part.c.id))
    both = sa.union(*ends)
    found = both.order_by(both.selected_columns.name_key, both.selected_columns.id).limit(_LIMIT).subquery()
    return sa.select(found.c.id)
