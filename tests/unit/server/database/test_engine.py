"""Transactions: one picture for readers, one writer at a time, and errors that say what is wrong."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.server.database import engine as engine_module
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.errors import (
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseUnavailable,
    DatabaseUrlRefused,
)
from secondsite.server.database.migrations import upgrade
from secondsite.server.database.postgresql import QUIET_SECONDS_MAX
from secondsite.server.database.tables_jobs import job_locks, job_log, job_workers
from support.databases import PostgreSQL

WORKER = {"name": "n", "process": "p", "started": "s", "seen": "s"}


def add(database: Database, key: str, beat: int = 0) -> None:
    with database.write() as connection:
        connection.execute(job_workers.insert().values(id=key, beat=beat, **WORKER))


def beat(database: Database, key: str) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(job_workers.c.beat).where(job_workers.c.id == key)).scalar_one()


def test_a_write_is_kept_and_one_that_raises_is_not(database: Database) -> None:
    add(database, "a", 1)
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        assert connection.execute(job_workers.update().values(beat=2)).rowcount // 0
    assert beat(database, "a") == 1


def test_a_reader_sees_one_picture_while_a_writer_writes(database: Database) -> None:
    add(database, "a", 1)
    with database.read() as connection:
        seen = connection.execute(sa.select(job_workers.c.beat)).scalar_one()
        thread = threading.Thread(target=_add_one, args=(database, 1))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert connection.execute(sa.select(job_workers.c.beat)).scalar_one() == seen == 1
    assert beat(database, "a") == 2


def _add_one(database: Database, times: int) -> None:
    for _ in range(times):
        with database.write() as connection:
            now = connection.execute(sa.select(job_workers.c.beat)).scalar_one()
            connection.execute(job_workers.update().values(beat=now + 1))


def test_what_a_lone_writer_read_stays_true(database: Database) -> None:
    """Read, then write: of eight writers at once none undoes another's count."""
    add(database, "a")
    threads = [threading.Thread(target=_add_one, args=(database, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert beat(database, "a") == 80


def test_lone_writers_of_two_servers_wait_for_each_other(database: Database, database_url: str) -> None:
    other = open_database(database_url, SystemClock())
    add(database, "a")
    threads = [threading.Thread(target=_add_one, args=(one, 20)) for one in (database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.close()
    assert beat(database, "a") == 40


def test_references_are_kept(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(job_locks.insert().values(key="k", job="nobody"))
    add(database, "a")
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(job_workers.insert().values(id="a", beat=0, **WORKER))
    assert beat(database, "a") == 0


def test_a_writer_inside_a_writer_is_told_at_once(database: Database) -> None:
    with database.write(), pytest.raises(AssertionError, match="wait for itself"), database.write():
        pass
    add(database, "a")


def test_a_writer_waits_only_so_long(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "WAIT_SECONDS_MAX", 1)
    one, other = (open_database(database_url, SystemClock()) for _ in range(2))
    with one.write(), pytest.raises(DatabaseBusy) as caught, other.write():
        pass
    assert "busy" in caught.value.sentences()[0]
    add(other, "a")
    one.close()
    other.close()


def test_run_tries_again_where_another_was_in_the_way(database: Database) -> None:
    tries = []

    def work(connection: sa.Connection) -> str:
        tries.append(connection)
        if len(tries) < 3:
            raise DatabaseBusy(where="here", why="a planted one")
        return "kept"

    assert database.run(work) == "kept"
    assert len(tries) == 3


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nothing", "not an address"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://x:secret@host/name", "neither sqlite nor postgresql"),
    ],
)
def test_an_address_that_cannot_be_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises(DatabaseUrlRefused, match=why) as caught:
        open_database(url, SystemClock())
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(os.urandom(8192))
    database = open_database(f"sqlite:///{tmp_path}/x.db", SystemClock())
    with pytest.raises(DatabaseDamaged), database.read() as connection:
        connection.execute(sa.text("SELECT 1 FROM sqlite_master"))
    database.close()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/none/x.db", SystemClock())
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        upgrade(database)
    database.close()


def test_nobody_listens() -> None:
    database = open_database("postgresql://me:secret@/x?host=/nonexistent", SystemClock())
    with pytest.raises(DatabaseUnavailable) as caught, database.read():
        pass
    assert "secret" not in str(caught.value.as_dict())
    database.close()


def test_postgresql_stopped_and_started() -> None:
    cluster = PostgreSQL()
    try:
        cluster.start()
        database = open_database(cluster.url("postgres"), SystemClock())
        upgrade(database)
        add(database, "a", 1)
        with pytest.raises(DatabaseUnavailable):
            _cut_inside(cluster, database)
        with pytest.raises(DatabaseUnavailable), database.read():
            pass
        cluster.start()
        assert beat(database, "a") == 1
        database.close()
    finally:
        cluster.remove()


def _cut_inside(cluster: PostgreSQL, database: Database) -> None:
    with database.write() as connection:
        connection.execute(job_workers.update().values(beat=2))
        cluster.stop(signal.SIGQUIT)


def test_a_write_outlives_a_power_cut_by_settings(database: Database) -> None:
    with database.read() as connection:
        if database.is_sqlite:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"
    assert job_log.c.id.autoincrement


class Told:
    """What a PostgreSQL is told, as its own log says it."""

    def __init__(self, cluster: PostgreSQL) -> None:
        self._log = cluster.directory / "log"
        cluster.execute("ALTER SYSTEM SET log_statement = 'all'")
        cluster.execute("SELECT pg_reload_conf()")

    def __call__(self, work: Callable[[], object]) -> list[str]:
        begins = len(self._log.read_text())
        work()
        lines = self._log.read_text()[begins:].splitlines()
        said = [re.split(r"LOG:  (?:statement|execute [^:]*): ", line, maxsplit=1) for line in lines]
        return [words[1] for words in said if len(words) == 2]


def test_no_way_to_postgresql_is_made_twice() -> None:
    """A query alone goes there once, a reader three times; nobody asks whether a connection lives."""
    cluster = PostgreSQL()
    try:
        cluster.start()
        clock = FakeClock()
        database = open_database(cluster.url("postgres"), clock)
        upgrade(database)
        told = Told(cluster)
        query = sa.select(job_workers.c.beat)
        assert until(lambda: told(lambda: database.rows(query)) != [])  # it has taken its new setting
        assert len(told(lambda: database.rows(query))) == 1
        words = told(lambda: beats(database))
        assert [word.split()[0] for word in words] == ["BEGIN", "SELECT", "COMMIT"]
        assert "REPEATABLE READ READ ONLY" in words[0]
        words = told(lambda: add(database, "a"))
        assert [word.split()[0] for word in words] == ["BEGIN", "SELECT", "INSERT", "COMMIT"]
        clock.advance(QUIET_SECONDS_MAX)
        assert len(told(lambda: database.rows(query))) == 2  # something between may have forgotten it
        # all of them are cut: neither a query alone nor a writer sees an error
        for work in (lambda: database.rows(query), lambda: add(database, "b"), lambda: beats(database)):
            cluster.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE application_name = 'secondsite'"
            )
            work()
        database.close()
    finally:
        cluster.remove()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True


def beats(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(sa.select(job_workers.c.beat)).scalars())


def test_a_query_alone_sees_what_was_written_and_locks_nothing(database: Database) -> None:
    add(database, "a", 1)
    assert [row.beat for row in database.rows(sa.select(job_workers.c.beat))] == [1]
    with database.write() as connection:
        connection.execute(job_workers.update().values(beat=2))
        other = threading.Thread(target=lambda: database.rows(sa.select(job_workers.c.beat)))
        other.start()
        other.join(30)
        assert not other.is_alive()
    assert [row.beat for row in database.rows(sa.select(job_workers.c.beat))] == [2]
