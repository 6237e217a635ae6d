"""Rows in every table of the server, whatever tables there are: for what must not leave one out."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables import METADATA
from secondsite.server.database.values import moment
from secondsite.server.jobs.states import JobState, StepState

ROWS = 7
TEXTS = ("", "plain", "日本語 ü", 'quo"te\\', "line\nbreak", "\u2028", "x" * 3000)
AT = moment(datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))

# where a column's text is a word of a table of ours
WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("jobs", "state"): tuple(state.value for state in JobState),
    ("job_steps", "state"): tuple(state.value for state in StepState),
    ("job_steps", "output"): ("{}",),
    ("jobs", "action"): ("do", "verify", "undo", "clean-up"),
}


def fill(database: Database, *, rows: int = ROWS) -> None:
    """Put `rows` rows into every table that is empty; those of one row get one."""
    with database.write() as connection:
        for table in METADATA.sorted_tables:
            if connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one():
                continue
            alone = any(column.constraints for column in table.columns)  # CHECK (id = 1)
            for number in range(1 if alone else rows):
                connection.execute(table.insert().values(_row(connection, table, number)))


def contents(
    database: Database, *, without: frozenset[str] = frozenset()
) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, in the order of their keys."""
    with database.read() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for table in METADATA.sorted_tables
            if table.name not in without
        }


def _row(connection: Connection, table: sa.Table, number: int) -> dict[str, object]:
    return {
        column.name: _value(connection, table, column, number)
        for column in table.columns
        if not (column.autoincrement is True and column.primary_key)
    }


def _value(connection: Connection, table: sa.Table, column: sa.Column[object], number: int) -> object:
    for key in column.foreign_keys:
        parents = list(connection.execute(sa.select(key.column).order_by(key.column)).scalars())
        if column.nullable and (not parents or number % 3 == 0):
            return None
        return parents[(number - 1 if key.column.table is table else number) % len(parents)]
    words = WORDS.get((table.name, column.name))
    if words is not None:
        return words[number % len(words)]
    unique = column.primary_key or any(
        column.name in one.columns
        for one in (*table.constraints, *(index for index in table.indexes if index.unique))
        if isinstance(one, sa.UniqueConstraint | sa.Index)
    )
    if column.nullable and not unique and number % 4 == 3:
        return None
    kind = column.type.python_type
    if kind is bytes:
        return bytes(range(256)) * number
    if kind is int:
        big = isinstance(column.type, sa.BigInteger) and not unique
        return number + 1 + ((1 << 53) if big else 0)
    if kind is float:
        return number / 3
    if column.name.endswith("_at") or column.name in {"at", "valid_from", "valid_until", "state_since"}:
        return AT
    return f"{table.name}-{column.name}-{number}" if unique else TEXTS[number % len(TEXTS)]
