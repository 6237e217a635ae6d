"""The revisions make exactly the tables the code knows, once, in one piece."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from secondsite.base.clock import SystemClock
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.errors import SchemaUnknown
from secondsite.server.database.migrations import config, current, head, require_current, upgrade
from secondsite.server.database.tables import METADATA
from support.databases import KINDS, Databases


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    with databases.empty(request.param) as url:
        yield url


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = open_database(empty_url, SystemClock())
    yield database
    database.close()


def test_revisions_make_the_tables_of_the_code(empty: Database) -> None:
    upgrade(empty)
    with empty.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        names = set(sa.inspect(connection).get_table_names())
    assert names == {*METADATA.tables, "alembic_version"}


def test_revisions_are_one_line() -> None:
    script = ScriptDirectory.from_config(config())
    assert script.get_heads() == [head()]
    assert len(script.get_bases()) == 1
    numbers = [revision.revision for revision in script.walk_revisions()]
    assert numbers == sorted(numbers, reverse=True)


def test_an_empty_database_is_told(empty: Database) -> None:
    assert current(empty) is None
    with pytest.raises(SchemaUnknown, match="version none"):
        require_current(empty)
    upgrade(empty)
    require_current(empty)
    upgrade(empty)
    assert current(empty) == head()


def test_newer_tables_are_left_alone(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (upgrade, require_current):
        with pytest.raises(SchemaUnknown, match="9999"):
            call(database)


def test_two_servers_that_start_together(empty_url: str) -> None:
    failed: list[BaseException] = []

    def one() -> None:
        database = open_database(empty_url, SystemClock())
        try:
            upgrade(database)
            require_current(database)
        except BaseException as error:  # noqa: BLE001 - root of a thread: the test looks at it
            failed.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


def test_an_upgrade_that_is_cut_leaves_what_it_found(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last table cannot be made: the first ones are not there either."""
    with empty.write() as connection:
        connection.execute(sa.text("CREATE TABLE job_steps (planted INTEGER)"))
    with pytest.raises(sa.exc.DBAPIError):
        upgrade(empty)
    with empty.read() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {"job_steps"}
    with empty.write() as connection:
        connection.execute(sa.text("DROP TABLE job_steps"))
    upgrade(empty)
    require_current(empty)
