"""Pages of items, whatever they are limited to: each item once, in order, none that does not belong."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from secondsite.model.items import ProtectedState
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.items.records import Item
from secondsite.server.items.search import Search, name_key
from support.items import ItemPlace, a_machine

NAMES = ("shop", "Shop", "Éclair", "zoo", "desk 7", "東京")
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
