"""Rows by the hundred in one statement: they travel as one JSON text, which the database takes apart.

An `executemany` costs a server's processor some 20 µs a row, with its lock on all Python threads held; this
costs it 2 µs, and the rest is the database's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection


def upsert(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, object]], newer: str) -> None:
    """Insert rows, or update those that are there, unless what is there has a higher value of `newer`.

    Each row names every column, once; of a key that comes twice the last counts.
    """
    if not rows:
        return
    keys = [column.name for column in table.primary_key]
    statement = _insert(connection, table, rows)
    new = statement.excluded
    changed = {column.name: new[column.name] for column in table.c if column.name not in keys}
    connection.execute(
        statement.on_conflict_do_update(index_elements=keys, set_=changed, where=new[newer] >= table.c[newer])
    )


def add(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows; what is there already stays. Each row names every column, once."""
    if rows:
        connection.execute(_insert(connection, table, rows).on_conflict_do_nothing())


def _insert(
    connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]
) -> postgresql.Insert | sqlite.Insert:
    keys = [column.name for column in table.primary_key]
    distinct = {tuple(row[key] for key in keys): row for row in rows}
    given = sa.bindparam("given", msgspec.json.encode(list(distinct.values())).decode(), sa.Text)
    names = [column.name for column in table.c]
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table).from_select(names, _rows(connection, table, given))


def _rows(connection: Connection, table: sa.Table, given: sa.BindParameter[str]) -> sa.Select[tuple[object]]:
    columns = [sa.column(column.name, column.type) for column in table.c]
    if connection.dialect.name == "postgresql":
        taken = sa.func.json_to_recordset(sa.cast(given, postgresql.JSON)).table_valued(
            *columns, name="given_rows"
        )
        return sa.select(*taken.render_derived(with_types=True).c)
    value = sa.func.json_each(given).table_valued("value", name="given_rows").c.value
    parts = [sa.func.json_extract(value, f"$.{column.name}").label(column.name) for column in table.c]
    # without a WHERE the parser takes ON CONFLICT for the ON of a join (sqlite.org/lang_upsert.html, 2.2)
    return sa.select(*parts).where(sa.true())
