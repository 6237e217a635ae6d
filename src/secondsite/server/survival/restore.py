"""Bring a backup into an empty database: one transaction, so a restore that is cut leaves it empty.

The rows go into tables of the revision they were written with, which are then brought up to this program's:
an old backup needs no old program. What must not go back goes ahead afterwards (`aftermath`).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import InvalidInput
from secondsite.base.parse import JSON_ERRORS
from secondsite.server.database.engine import Database
from secondsite.server.database.migrations import head, one_transaction, upgrade_inside
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.survival.aftermath import Aftermath, NewLife, Origin, settle
from secondsite.server.survival.container import BackupReader, Head
from secondsite.server.survival.dump import CONTENTS_VERSION, Closing, Contents, TableRows
from secondsite.server.survival.errors import BackupDamaged, BackupTooNew, DatabaseNotEmpty

RESTORE_BEGUN = mark("restore.begun")
RESTORE_LOADED = mark("restore.loaded")
RESTORE_SETTLED = mark("restore.settled")
RESTORE_KEPT = mark("restore.kept")

ROWS_AT_ONCE = 500
TABLES_MAX = 500
COLUMNS_MAX = 500

Value = str | int | float | bytes | None


@dataclass(frozen=True)
class Restored:
    """What was brought back."""

    head: Head
    contents: Contents
    rows: int
    aftermath: Aftermath


def restore(
    database: Database, master: MasterKey, file: BinaryIO, what: str, life: NewLife | None = None
) -> Restored:
    """Bring the backup in `file` into `database`, which must be empty; as the next life, or a chosen one.

    Raises:
        DatabaseNotEmpty, BackupDamaged, BackupTooNew, BackupForeign, DatabaseUnavailable: nothing changed.
    """
    reader = BackupReader(file, master, what)
    with one_transaction(database) as connection:
        require_empty(connection, database)
        crash_point(RESTORE_BEGUN)
        lines = reader.lines()
        contents = read_contents(lines, what)
        upgrade_inside(connection, database, contents.revision)
        rows = _load_all(connection, contents, lines, what)
        crash_point(RESTORE_LOADED)
        upgrade_inside(connection, database)
        head_of = reader.head
        origin = Origin(head_of.server, head_of.incarnation, head_of.id, contents.made_at)
        found = settle(connection, database, master, origin, life)
        crash_point(RESTORE_SETTLED)
    crash_point(RESTORE_KEPT)
    return Restored(reader.head, contents, rows, found)


def restore_from(database: Database, master: MasterKey, path: Path, life: NewLife | None = None) -> Restored:
    """`restore` of a file."""
    try:
        with path.open("rb") as file:
            return restore(database, master, file, str(path), life)
    except FileNotFoundError:
        raise InvalidInput(what=f"the backup {path}", why="there is no such file") from None


def require_empty(connection: Connection, database: Database) -> None:
    """Raise DatabaseNotEmpty when there is any table."""
    found = sorted(sa.inspect(connection).get_table_names())
    if found:
        raise DatabaseNotEmpty(where=database.where, table=found[0])


def read_contents(lines: Iterator[bytes], what: str) -> Contents:
    """The first line. Raises BackupDamaged, BackupTooNew."""
    try:
        contents = msgspec.json.decode(next(lines, b""), type=Contents)
    except JSON_ERRORS as error:
        raise BackupDamaged(what=what, why=f"its contents do not parse: {error}") from None
    if contents.version > CONTENTS_VERSION:
        raise BackupTooNew(what=what, found=contents.version, known=CONTENTS_VERSION)
    if contents.revision > head():  # revisions are numbers of four digits
        raise BackupTooNew(what=what, found=contents.revision, known=head())
    names = [table.name for table in contents.tables]
    columns = max((len(table.columns) for table in contents.tables), default=0)
    if len(set(names)) != len(names) or len(names) > TABLES_MAX or columns > COLUMNS_MAX:
        raise BackupDamaged(what=what, why="its list of tables cannot be right")
    return contents


def _load_all(connection: Connection, contents: Contents, lines: Iterator[bytes], what: str) -> int:
    known = sa.MetaData()
    known.reflect(connection)
    order = {table.name: number for number, table in enumerate(known.sorted_tables)}
    # a table is written whole before the tables that refer to it: so the lines come in an order that fits,
    # unless an older program had another one; PostgreSQL would refuse the rows then, and nothing is kept
    rows = 0
    for listed in contents.tables:
        if listed.name not in order:
            raise BackupDamaged(what=what, why=f"it has a table {listed.name!r} of no version")
        rows += _load(connection, known.tables[listed.name], listed, lines, what)
    try:
        closing = msgspec.json.decode(next(lines, b""), type=Closing)
    except JSON_ERRORS:
        raise BackupDamaged(what=what, why="its last line is missing") from None
    if closing.end != rows or next(lines, None) is not None:
        raise BackupDamaged(what=what, why="it has another number of rows than it says")
    return rows


def _load(
    connection: Connection, table: sa.Table, listed: TableRows, lines: Iterator[bytes], what: str
) -> int:
    strange = [name for name in listed.columns if name not in table.columns]
    if strange or not listed.columns:
        raise BackupDamaged(what=what, why=f"its table {table.name} has columns of no version: {strange}")
    # rows that refer to rows of their own table: first without, then the reference
    own = [
        key.parent.name
        for key in table.foreign_keys
        if key.column.table is table and key.parent.name in listed.columns
    ]
    later: list[dict[str, Value]] = []
    batch: list[dict[str, Value]] = []
    for _ in range(listed.rows):
        row = _row(next(lines, b""), listed, what)
        batch.append(row | dict.fromkeys(own))
        if any(row[name] is not None for name in own):
            keys = {f"key_{column.name}": row[column.name] for column in table.primary_key.columns}
            later.append(keys | {name: row[name] for name in own})
        if len(batch) >= ROWS_AT_ONCE:
            _insert(connection, table, batch, what)
            batch = []
    if batch:
        _insert(connection, table, batch, what)
    if later:
        keyed = [column == sa.bindparam(f"key_{column.name}") for column in table.primary_key.columns]
        values: dict[str, sa.BindParameter[Value]] = {name: sa.bindparam(name) for name in own}
        connection.execute(table.update().where(*keyed).values(**values), later)
    _count_on(connection, table)
    return listed.rows


def _row(line: bytes, listed: TableRows, what: str) -> dict[str, Value]:
    try:
        values = msgspec.json.decode(line, type=list[str | int | float | dict[str, str] | None])
        if len(values) != len(listed.columns):
            raise BackupDamaged(what=what, why=f"a row of {listed.name} has {len(values)} values")
        return dict(zip(listed.columns, map(_value, values), strict=True))
    except (*JSON_ERRORS, binascii.Error, ValueError) as error:
        raise BackupDamaged(what=what, why=f"a row of {listed.name} does not parse: {error}") from None


def _value(value: str | float | dict[str, str] | None) -> Value:
    if isinstance(value, dict):
        if set(value) != {"b64"}:
            raise ValueError("an object that is no bytes")
        return base64.b64decode(value["b64"], validate=True)
    return value


def _insert(connection: Connection, table: sa.Table, batch: list[dict[str, Value]], what: str) -> None:
    try:
        connection.execute(table.insert(), batch)
    except (exc.IntegrityError, exc.DataError, exc.ProgrammingError, exc.StatementError) as error:
        if isinstance(error, exc.OperationalError):
            raise
        why = f"rows of {table.name} do not fit: {str(error.__cause__ or error)[:200]}"
        raise BackupDamaged(what=what, why=why) from None


def _count_on(connection: Connection, table: sa.Table) -> None:
    """Have PostgreSQL number new rows after those that came with their numbers; SQLite does by itself."""
    if connection.dialect.name == "sqlite":
        return
    for column in table.primary_key.columns:
        with contextlib.suppress(NotImplementedError):
            if column.type.python_type is not int:
                continue
        name = sa.func.pg_get_serial_sequence(table.name, column.name)
        sequence = connection.execute(sa.select(name)).scalar_one()
        if sequence is not None:
            newest = sa.select(sa.func.max(column)).scalar_subquery()
            known = newest.is_not(None)
            connection.execute(sa.select(sa.func.setval(sequence, sa.func.coalesce(newest, 1), known)))
