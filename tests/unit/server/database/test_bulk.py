"""Rows by the hundred in one statement: kept as they are, newer over older, whatever is in them."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.bulk import upsert
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_items import REPLICAS

NOTES = ("", 'it\'s "quoted" \\ and $.odd', "東京 \U0001f5fc", "two\nlines\t%s :given", "null")


def row(machine: str, sent_at: str = "2", **values: object) -> dict[str, object]:
    plain = {column.name: "" for column in REPLICAS.c} | {"epoch": 0, "revision": 2**53, "points": 7}
    return {**plain, "newest": None, "newest_at": None, "gateway": "g", "machine": machine} | {
        "sent_at": sent_at,
        **values,
    }


def kept(database: Database) -> dict[str, dict[str, object]]:
    with database.read() as connection:
        return {found.machine: dict(found._mapping) for found in connection.execute(sa.select(REPLICAS))}


def test_rows_are_kept_as_they_are_and_newer_ones_win(database: Database) -> None:
    first = [row(f"m{number}", note=note, newest=number or None) for number, note in enumerate(NOTES)]
    with database.write() as connection:
        upsert(connection, REPLICAS, first, newer="sent_at")
        upsert(connection, REPLICAS, [], newer="sent_at")
    assert kept(database) == {str(one["machine"]): one for one in first}
    again = [row("m0", "1", points=8), row("m1", "2", points=9), row("m2", "3", points=10), row("m9")]
    with database.write() as connection:
        upsert(connection, REPLICAS, again, newer="sent_at")
    points = {machine: found["points"] for machine, found in kept(database).items()}
    assert points == {"m0": 7, "m1": 9, "m2": 10, "m3": 7, "m4": 7, "m9": 7}
    with database.write() as connection:  # a gateway that names a machine twice: its last word counts
        upsert(connection, REPLICAS, [row("m0", points=1), row("m0", points=2)], newer="sent_at")
    assert kept(database)["m0"]["points"] == 2
