"""The rows of a database as lines of JSON, the same for SQLite and PostgreSQL.

The first line is an object (`Contents`), the last one too (`Closing`); every line between them is one row: an
array of its columns' values, table after table in the order and in the number the first line says. A value is
null, a number, a text, or an object `{"b64": ...}` for bytes. All of it is one picture of one moment.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import BinaryIO

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite import __version__
from secondsite.base.files import created_file
from secondsite.server.database.engine import Database
from secondsite.server.database.migrations import head, require_current
from secondsite.server.database.tables import METADATA
from secondsite.server.database.tables_survival import EXCLUDED
from secondsite.server.database.values import from_moment
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.survival.container import BackupWriter, new_head
from secondsite.server.survival.incarnation import read_incarnation

CONTENTS_VERSION = 1
ROWS_AT_ONCE = 500


class TableRows(msgspec.Struct, frozen=True):
    """One table in a backup."""

    name: str
    columns: tuple[str, ...]
    rows: int


class Contents(msgspec.Struct, frozen=True, rename="camel"):
    """The first line. revision: of the tables (`database.migrations`)."""

    version: int
    program: str
    revision: str
    made_at: str
    tables: tuple[TableRows, ...]


class Closing(msgspec.Struct, frozen=True):
    """The last line: how many rows came."""

    end: int


class Dumped(msgspec.Struct, frozen=True, rename="camel"):
    """A backup that was written."""

    id: str
    made_at: str
    incarnation: int
    size: int
    sha256: str
    rows: int


def dump(database: Database, master: MasterKey, file: BinaryIO) -> Dumped:
    """Write a backup of everything to `file`. Raises SchemaUnknown, DatabaseUnavailable, OSError."""
    require_current(database)
    with database.read() as connection:
        known = read_incarnation(connection)
        made_at = database.now()
        made = int(from_moment(made_at).timestamp() * 1_000_000)
        begun = new_head(master, made_at=made, incarnation=known.number, server=known.server)
        writer = BackupWriter(file, begun, master)
        tables = [table for table in METADATA.sorted_tables if table.name not in EXCLUDED]
        listed = tuple(_listed(connection, table) for table in tables)
        contents = Contents(CONTENTS_VERSION, __version__, head(), made_at, listed)
        writer.line(msgspec.json.encode(contents))
        rows = sum(_rows(connection, table, writer) for table in tables)
    writer.line(msgspec.json.encode(Closing(rows)))
    size, digest = writer.close()
    return Dumped(begun.id, made_at, known.number, size, digest, rows)


def dump_to(database: Database, master: MasterKey, path: Path) -> Dumped:
    """`dump` into a file that is there whole or not at all. Raises as `dump`, and FileExistsError."""
    with created_file(path) as file:
        return dump(database, master, file)


def _listed(connection: Connection, table: sa.Table) -> TableRows:
    count = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    # SQLAlchemy's names are texts of a kind of their own
    return TableRows(str(table.name), tuple(str(column.name) for column in table.columns), count)


def _rows(connection: Connection, table: sa.Table, writer: BackupWriter) -> int:
    query = sa.select(table).order_by(*table.primary_key.columns).execution_options(yield_per=ROWS_AT_ONCE)
    # what refers to a table that is left out refers to nothing
    gone = {
        number
        for number, column in enumerate(table.columns)
        if any(key.column.table.name in EXCLUDED for key in column.foreign_keys)
    }
    written = 0
    for row in connection.execute(query):
        plain = [None if number in gone else _plain(value) for number, value in enumerate(row)]
        writer.line(msgspec.json.encode(plain))
        written += 1
    return written


def _plain(value: object) -> object:
    if isinstance(value, bytes | memoryview):
        return {"b64": base64.b64encode(bytes(value)).decode()}
    assert value is None or isinstance(value, str | int | float), f"no backup holds {type(value)}"
    return value
