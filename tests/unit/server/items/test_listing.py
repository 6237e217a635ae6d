"""Pages of items, whatever they are limited to: each item once, in order, none that does not belong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from secondsite.model.items import ProtectedState
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.items.records import Item
from secondsite.server.items.search import Search, name_key
from support.items import ItemPlace, a_machine

NAMES = ("shop", "Shop", "Éclair", "zoo", "desk 7", "東京", "50 %", "a_b/c")
STATES = (ProtectedState.PROTECTED, ProtectedState.PAUSED, ProtectedState.UNPROTECTED)


def copies(place: ItemPlace, chance: random.Random, count: int) -> list[Item]:
    """Many items, as rows: what is looked at is how they are listed."""
    place.run(place.protect(a_machine().id))
    database = place.database
    with database.write() as connection:
        row = dict(connection.execute(sa.select(ITEMS)).one()._mapping)
        rows = []
        for number in range(count):
            name = f"{chance.choice(NAMES)} {chance.randrange(9)}"
            ends = chance.sample(["gateway-a", "gateway-b", "gateway-c", "gateway-d"], 2)
            rows.append(
                row
                | {"id": f"item-{chance.randrange(10**9)}-{number}", "machine": f"machine-{number}"}
                | {"name": name, "name_key": name_key(name), "state": chance.choice(STATES).value}
                | {"source_name": ends[0], "target_name": ends[1]}
                | {"health": chance.choice(["Normal", "Critical"])}
            )
        connection.execute(sa.delete(ITEMS))
        connection.execute(sa.insert(ITEMS), rows)
    return place.parts.items.page(Search(states=STATES), after=None, limit=count + 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_pages_are_what_a_walk_over_all_finds(each_place: ItemPlace, seed: int) -> None:
    chance = random.Random(seed)
    there = copies(each_place, chance, 120)
    assert len(there) == 120
    vaults = {there[0].vault_id}
    kinds: list[tuple[Search, Callable[[Item], bool]]] = [
        (Search(vaults=vaults), lambda _item: True),
        (Search(gateway="gateway-b"), lambda item: "gateway-b" in (item.source_name, item.target_name)),
        (
            Search(vaults=vaults, gateway="gateway-c", health=["Critical"], name_contains="O"),
            lambda item: (
                "gateway-c" in (item.source_name, item.target_name)
                and item.health == "Critical"
                and "o" in name_key(item.name)
            ),
        ),
        (Search(name_contains="%"), lambda item: "%" in item.name),
        (Search(name_contains="_b/"), lambda item: "_b/" in item.name),
        (Search(vaults=set()), lambda _item: False),
        (Search(gateway="gateway-e"), lambda _item: False),
        (Search(vaults={"another"}, gateway="gateway-b"), lambda _item: False),
    ]
    for search, belongs in kinds:
        expected = [
            item.id for item in there if item.state is not ProtectedState.UNPROTECTED and belongs(item)
        ]
        limit, found, after = chance.choice([1, 3, 7]), list[Item](), None
        while page := each_place.parts.items.page(search, after=after, limit=limit):
            assert len(page) <= limit
            found += page
            after = (name_key(page[-1].name), page[-1].id)
        assert [item.id for item in found] == expected, search


@pytest.mark.parametrize("search", [Search(), Search(gateway="gateway-b")], ids=["all", "gateway"])
def test_a_page_joins_nothing_to_items_that_are_not_on_it(
    postgresql_place: ItemPlace, search: Search
) -> None:
    """Also while PostgreSQL counts none: the first minute after many items came."""
    there = copies(postgresql_place, random.Random(1), 400)
    given: list[tuple[str, Any]] = []
    engine, limit = postgresql_place.database.engine, 5

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _asked(_on: object, _cursor: object, asked: str, parameters: Any, *_others: object) -> None:
        given.append((asked, parameters))

    after = (name_key(there[100].name), there[100].id)
    assert len(postgresql_place.parts.items.page(search, after=after, limit=limit)) == limit
    sa.event.remove(engine, "before_cursor_execute", _asked)
    [(asked, parameters)] = given
    with postgresql_place.database.read() as connection:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {asked}"
        [(plans,)] = connection.exec_driver_sql(explain, parameters).all()
    joins = [step for step in steps(plans[0]["Plan"]) if "Join Type" in step]
    assert len(joins) >= 5
    assert {step["Actual Rows"] * step["Actual Loops"] for step in joins} == {limit}


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All of a plan of PostgreSQL's."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from steps(part)
