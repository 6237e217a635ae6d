"""A database of every earlier version, with rows in all of its tables, is brought up to this one and served.

``server-rows-NNNN.json`` holds every table of a real server at revision NNNN: a machine protected by a job,
gateways, people, and a made-up row where such a server has none. Made once, by hand; never changed. An
earlier revision gets what it knew of them: revisions only add tables and columns.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from secondsite.base.clock import SystemClock
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import config, current, head, upgrade
from secondsite.server.database.tables import METADATA
from support.databases import KINDS, Databases
from support.server import owner, running_api, whole_server

DATA = Path(__file__).parents[3] / "golden" / "data"
GOLDEN = json.loads((DATA / "server-rows-0016.json").read_text())
REVISIONS = sorted(each.revision for each in ScriptDirectory.from_config(config()).walk_revisions())
PEOPLE, IDENTITY, ITEMS = "0003", "0004", "0006"
EARLIER = [revision for revision in REVISIONS if revision <= GOLDEN["revision"]]
FULL = os.environ.get("SECONDSITE_MATRIX") == "full"  # ./run upgrades
# In every run on PostgreSQL those before a table with rows in it is changed; and the first.
CHANGED = ("0001", "0011", "0012", "0014", "0015")
PAIRS = [(kind, each) for kind in KINDS for each in EARLIER if FULL or kind == "sqlite" or each in CHANGED]

Rows = dict[str, list[dict[str, Any]]]


def put_in(database: Database) -> Rows:
    """What the database's own revision knows of the rows; as they are read again."""
    put: Rows = {}
    with database.write() as connection:
        there = sa.MetaData()
        there.reflect(connection)
        for known in METADATA.sorted_tables:
            table = there.tables.get(known.name)
            if table is None:
                continue
            put[known.name] = [
                {name: _value(value) for name, value in row.items() if name in table.columns}
                for row in GOLDEN["tables"][known.name]
            ]
            for row in put[known.name]:
                connection.execute(table.insert().values(row))
    return put


def _value(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def kept(database: Database, put: Rows) -> None:
    with database.read() as connection:
        for name, rows in put.items():
            table = METADATA.tables[name]
            found = [dict(row._mapping) for row in connection.execute(sa.select(table))]
            assert len(found) == len(rows), name
            for row in rows:
                assert any(row.items() <= one.items() for one in found), f"{name}: {row} is not as it was"


def test_a_server_of_this_version_has_rows_for_every_table() -> None:
    missing = [table.name for table in METADATA.sorted_tables if not GOLDEN["tables"].get(table.name)]
    assert GOLDEN["revision"] <= head()
    assert not missing or GOLDEN["revision"] < head(), "tables of a later revision have no rows yet"


@pytest.mark.parametrize(("kind", "revision"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_rows_of_an_earlier_version_are_kept_and_served(
    kind: str, revision: str, databases: Databases, tmp_path: Path
) -> None:
    with databases.empty(kind) as url:
        database = open_database(url, SystemClock())
        try:
            upgrade(database, revision)
            put = put_in(database)
            upgrade(database)
            assert current(database) == head()
            kept(database, put)
        finally:
            database.close()
        for name, data in GOLDEN["state"].items() if revision >= IDENTITY else ():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(base64.b64decode(data))
            (tmp_path / name).chmod(0o600)
        server = whole_server(url, tmp_path)
        try:
            services = server.open()
            with running_api(services) as api:
                call = api.call.as_(owner(services, "eve"))
                vaults = [one["friendlyName"] for one in call("GET", "/api/v1/vaults").json()["value"]]
                assert ("North" in vaults) == (revision >= IDENTITY)
                if revision >= ITEMS:
                    items = call("GET", "/api/v1/vaults/North/replicationProtectedItems").json()["value"]
                    assert [one["name"] for one in items] == ["shop"]
        finally:
            server.stop()
