"""A server's items and two made-up gateways, on a clock that the test moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import open_database
from support.databases import Databases
from support.items import ItemPlace, item_place


@contextlib.contextmanager
def _place(url: str, directory: Path) -> Iterator[ItemPlace]:
    database = open_database(url, FakeClock())
    try:
        yield item_place(database, directory)
    finally:
        database.close()


@pytest.fixture
def place(databases: Databases, tmp_path: Path) -> Iterator[ItemPlace]:
    """On SQLite: what happens does not depend on the database."""
    with databases.ready("sqlite") as url, _place(url, tmp_path) as made:
        yield made


@pytest.fixture
def each_place(database_url: str, tmp_path: Path) -> Iterator[ItemPlace]:
    """On each database: where the SQL is the question."""
    with _place(database_url, tmp_path) as made:
        yield made


@pytest.fixture
def postgresql_place(databases: Databases, tmp_path: Path) -> Iterator[ItemPlace]:
    """On PostgreSQL alone: where its own ways are the question."""
    with databases.ready("postgresql") as url, _place(url, tmp_path) as made:
        yield made
