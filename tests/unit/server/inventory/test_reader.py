"""When sites are read by themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secondsite.base.clock import SystemClock
from secondsite.server.database.engine import Database, open_database
from secondsite.server.inventory.reader import LOOK_SECONDS, InventoryReader
from secondsite.server.inventory.service import Inventories
from secondsite.transfer.calls import Answer
from support.databases import Databases
from support.until import until

CLOCK = SystemClock()


class Asked:
    """In place of the calls: every gateway has an empty site."""

    def __init__(self) -> None:
        self.gateways: list[str] = []

    def ask_now(self, gateway: str, path: str, *, seconds_max: float) -> Answer:
        assert (path, seconds_max > 0) == ("/v1/inventory", True)
        self.gateways.append(gateway)
        return Answer(id="1", status=200, body="{}")

    def tidy(self) -> int:
        return 0


@pytest.fixture
def database(databases: Databases) -> Iterator[Database]:
    with databases.ready("sqlite") as url:
        opened = open_database(url, CLOCK)
        yield opened
        opened.close()


def test_a_gateway_that_asks_for_work_the_first_time_is_read_at_once(database: Database) -> None:
    asked, connected, looks = Asked(), list[str](), list[float]()

    def there() -> list[str]:
        looks.append(CLOCK.monotonic())
        return list(connected)

    reader = InventoryReader(asked, Inventories(database), there, CLOCK)
    reader.start()
    until(lambda: len(looks) == 1, "the first look")
    connected.append("g")
    reader.here("g")
    until(lambda: asked.gateways == ["g"], "the site is read")
    assert looks[1] - looks[0] < LOOK_SECONDS / 2
    reader.here("g")  # again and again, with each of its questions
    assert not reader._wake.is_set()
    reader.close()
