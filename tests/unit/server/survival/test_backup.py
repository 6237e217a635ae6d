"""A backup holds everything of a moment, and either database reads what the other wrote."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from secondsite.base.clock import SystemClock
from secondsite.server.config import ServerConfig
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import current, head
from secondsite.server.database.tables import METADATA
from secondsite.server.database.tables_jobs import job_log, jobs
from secondsite.server.database.tables_survival import EXCLUDED
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.jobs import records
from secondsite.server.jobs.states import LIVE, JobState
from secondsite.server.survival.aftermath import AHEAD
from secondsite.server.survival.container import BackupReader
from secondsite.server.survival.dump import dump
from secondsite.server.survival.errors import BackupForeign, DatabaseNotEmpty
from secondsite.server.survival.incarnation import ensure_incarnation, read_incarnation
from secondsite.server.survival.restore import restore
from support.databases import KINDS, Databases
from support.filled import contents, fill
from support.server import whole_server

MASTER = MasterKey(bytes(range(32)))
CLOCK = SystemClock()
# what a restore changes on purpose
SETTLED = frozenset({"server_state", "jobs", "job_steps", "job_log", "job_locks", "authorities", "audit"})


def backup_of(database: Database) -> io.BytesIO:
    file = io.BytesIO()
    dump(database, MASTER, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("to", KINDS)
def test_either_database_reads_what_the_other_wrote(
    database: Database, databases: Databases, to: str
) -> None:
    fill(database)
    with database.read() as connection:
        before = read_incarnation(connection)
    file = backup_of(database)
    with databases.empty(to) as url:
        other = open_database(url, CLOCK)
        try:
            found = restore(other, MASTER, file, "the backup")
            assert current(other) == head()
            left_out = SETTLED | EXCLUDED | {"audit_head", "job_workers"}
            was, now = contents(database, without=left_out), contents(other, without=left_out)
            for name, rows in was.items():
                assert rows, f"{name} was not filled: this test would not see it left out"
                assert now[name] == rows, name
            assert found.rows == sum(
                len(rows) for name, rows in contents(database).items() if name not in EXCLUDED
            )
            _check_settled(database, other, before.number)
        finally:
            other.close()


def _check_settled(old: Database, new: Database, incarnation: int) -> None:
    with old.read() as connection:
        was = {row.id: row for row in connection.execute(sa.select(jobs))}
    with new.read() as connection:
        now = {row.id: row for row in connection.execute(sa.select(jobs))}
        assert read_incarnation(connection).number > incarnation
        newest = connection.execute(sa.select(sa.func.max(job_log.c.id))).scalar_one()
    assert set(was) == set(now)
    live = {state.value for state in LIVE - {JobState.FINISHING}}
    for key, row in now.items():
        assert row.epoch == was[key].epoch + AHEAD
        assert row.worker is None
        assert row.parent == was[key].parent
        assert row.state not in live
        if was[key].state in live:
            with new.read() as connection:
                problem = records.get(connection, key).error
            assert problem is not None
            assert problem.code == "job.restored"
    with new.write() as connection:  # numbers go on after those that were brought back
        made = connection.execute(
            job_log.insert().values(job=next(iter(now)), at="t", step="", level="info", text="")
        )
        assert made.inserted_primary_key is not None
        assert made.inserted_primary_key[0] > newest


def test_every_table_is_in_a_backup_or_left_out_by_name(database: Database) -> None:
    reader = BackupReader(backup_of(database), MASTER, "it")
    first = next(reader.lines()).decode()
    for table in METADATA.sorted_tables:
        assert (f'"name":"{table.name}"' in first) == (table.name not in EXCLUDED), table.name


def test_what_is_not_empty_is_not_written_over(database: Database) -> None:
    file = backup_of(database)
    with pytest.raises(DatabaseNotEmpty):
        restore(database, MASTER, file, "it")


def test_another_master_key_is_told(database: Database, databases: Databases) -> None:
    file = backup_of(database)
    with databases.empty("sqlite") as url:
        other = open_database(url, CLOCK)
        with pytest.raises(BackupForeign):
            restore(other, MasterKey(os.urandom(32)), file, "it")
        with other.read() as connection:
            assert not sa.inspect(connection).get_table_names()
        other.close()


def test_a_restored_server_is_the_same_to_its_people(
    tmp_path: Path, database_url: str, databases: Databases
) -> None:
    """The authority and what it knows are the same; the audit log holds with the restore in it."""
    server = whole_server(database_url, tmp_path / "old")
    services = server.open()
    assert services.identity is not None
    authority = services.identity.authority.pem
    services.identity.vaults.create("North")
    with services.database.write() as connection:
        ensure_incarnation(connection, CLOCK.utc())
    file = io.BytesIO()
    master = services.identity.authority.master
    dump(services.database, master, file)
    server.stop()
    with databases.empty("sqlite") as url:
        other = open_database(url, CLOCK)
        file.seek(0)
        restore(other, master, file, "it")
        other.close()
        state = tmp_path / "new"
        state.mkdir()
        (state / "master.key").write_bytes((tmp_path / "old" / "master.key").read_bytes())
        (state / "master.key").chmod(0o600)
        again = whole_server(url, state)
        services = again.open()
        assert services.identity is not None
        assert services.identity.authority.pem == authority
        assert [vault.friendly_name for vault in services.identity.vaults.all()] == ["North"]
        assert services.audit.verify().entries >= 1
        again.stop()
    assert ServerConfig(state_dir=state).database_url().startswith("sqlite:///")
