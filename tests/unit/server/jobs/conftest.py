"""A database on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database, open_database


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed(database_url: str, clock: FakeClock) -> Iterator[Database]:
    opened = open_database(database_url, clock)
    yield opened
    opened.close()
