"""Bring a database's tables up to this program's version.

Revisions are `versions/NNNN_<area>.py`, one line of them. All that are missing run in one transaction on both
databases, so an upgrade that is cut leaves the version it found; servers that start together wait for the
first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.errors import SchemaUnknown, translated

_HERE = Path(__file__).parent


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings; `connection` is where a command works."""
    made = Config()
    made.set_main_option("script_location", str(_HERE / "environment"))
    made.set_main_option("version_locations", str(_HERE / "versions"))
    made.set_main_option("path_separator", "os")
    made.attributes["connection"] = connection
    return made


def head() -> str:
    """The newest revision this program knows."""
    newest = ScriptDirectory.from_config(config()).get_current_head()
    assert newest is not None
    return newest


def current(database: Database) -> str | None:
    """The revision a database has; None when it is empty."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database, to: str = "head") -> None:
    """Make or change the tables until they are this program's. Raises SchemaUnknown where they are newer."""
    if to == "head" and current(database) == head():
        return
    try:
        if database.is_sqlite:
            _upgrade_sqlite(database, to)
        else:
            with database.write() as connection:
                _run(connection, database, to)
    except exc.SQLAlchemyError as error:
        raise translated(error, database.where) or error from error


@contextlib.contextmanager
def one_transaction(database: Database) -> Iterator[Connection]:
    """A write in which tables are made, filled and changed: all of it is kept, or nothing.

    On SQLite foreign keys are checked at its end only, as in an upgrade.
    """
    try:
        if not database.is_sqlite:
            with database.write() as connection:
                yield connection
            return
        with _without_foreign_keys(database) as connection:
            yield connection
    except exc.SQLAlchemyError as error:
        raise translated(error, database.where) or error from error


def upgrade_inside(connection: Connection, database: Database, to: str = "head") -> None:
    """As `upgrade`, inside `one_transaction`. Raises SchemaUnknown where `to` or what is there is unknown."""
    known = {revision.revision for revision in ScriptDirectory.from_config(config()).walk_revisions()}
    if to != "head" and to not in known:
        raise SchemaUnknown(where=database.where, found=to, expected=head())
    _run(connection, database, to)


def require_current(database: Database) -> None:
    """Raise SchemaUnknown unless the tables are this program's."""
    found = current(database)
    if found != head():
        raise SchemaUnknown(where=database.where, found=found or "none", expected=head())


def _run(connection: Connection, database: Database, to: str) -> None:
    made = config(connection)
    known = {revision.revision for revision in ScriptDirectory.from_config(made).walk_revisions()}
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in known:
        raise SchemaUnknown(where=database.where, found=found, expected=head())
    command.upgrade(made, to)


def _upgrade_sqlite(database: Database, to: str) -> None:
    with _without_foreign_keys(database) as connection:
        _run(connection, database, to)


@contextlib.contextmanager
def _without_foreign_keys(database: Database) -> Iterator[Connection]:
    # SQLite changes a table by copying it and dropping the old one; with foreign keys on that would delete
    # the rows that point to it (sqlite.org/lang_altertable.html, section 7), and inside a transaction the
    # switch does nothing: so it is thrown before, and the references are checked by hand.
    with database.engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():  # no mode: begins as a writer
                yield connection
                dangling = connection.execute(sa.text("PRAGMA foreign_key_check")).all()
                assert not dangling, f"rows were left that refer to nothing: {dangling[:5]}"
        finally:
            raw.execute("PRAGMA foreign_keys = ON")
