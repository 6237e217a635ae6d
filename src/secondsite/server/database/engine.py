"""Open a database by its address; short transactions that read, or write alone.

SQLite and PostgreSQL behave alike to their callers: a `read` sees one consistent picture, a `write` is the
only one of its kind at that moment, on all servers of one database, so that what it reads is true until it
ends (SQLite allows one writer by itself; on PostgreSQL a lock of the transaction does it). Where each
statement carries its own condition, as the jobs' do, `write(alone=False)` lets PostgreSQL run several.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import URL, Connection, Engine

from secondsite.base.clock import Clock
from secondsite.server.database.changes import Changes
from secondsite.server.database.errors import DatabaseBusy, DatabaseUrlRefused, translated
from secondsite.server.database.postgresql import MODE, Limits, postgresql_engine
from secondsite.server.database.turns import Turns
from secondsite.server.database.values import moment

T = TypeVar("T")

# How long a writer waits for the others: an answer that takes longer is worth an error.
WAIT_SECONDS_MAX = 30
# API threads, job threads and housekeeping of one server; PostgreSQL's own default limit is 100 for all.
CONNECTIONS_MAX = 24
RUN_TRIES_MAX = 8


class Database:
    """One database and its pool of connections; shared by all threads of a process."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.where = engine.url.render_as_string(hide_password=True)
        # SQLite waits by polling, up to 100 ms a time and without order; threads queue here instead
        self._writer = Turns()
        self._local = threading.local()
        self.changes = Changes(engine)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one picture of the data and writes nothing.

        Raises DatabaseUnavailable, DatabaseBusy or DatabaseDamaged.
        """
        with self._transaction("read") as connection:
            yield connection

    def rows(
        self, query: sa.Select[Any], values: Mapping[str, object] | None = None
    ) -> Sequence[sa.Row[Any]]:
        """All that one query finds, without a transaction around it: one statement sees one picture anyway.

        On PostgreSQL it goes there and back once, where `read` does three times: with other threads at work
        each way back waits for Python's lock. Raises what `read` does.
        """
        with self._transaction("alone") as connection:
            return connection.execute(query, values).all()

    @contextlib.contextmanager
    def write(self, *, alone: bool = True) -> Iterator[Connection]:
        """A transaction, kept when the block ends and undone when it raises.

        `alone`: no other such writer runs at the same time, here or on another server. An IntegrityError ends
        the transaction: let it leave the block. DatabaseUnavailable may leave open whether the transaction
        was kept. A writer must not open another one inside.
        """
        assert not getattr(self._local, "writing", False), (
            "a writer opened another one: it would wait for itself"
        )
        self._local.writing = True
        try:
            if not self.is_sqlite:
                with self._transaction("write alone" if alone else "write") as connection:
                    yield connection
                return
            if not self._writer.acquire(timeout=WAIT_SECONDS_MAX):
                raise DatabaseBusy(where=self.where, why="other threads of this server write")
            try:
                with self._transaction("write") as connection:
                    yield connection
            finally:
                self._writer.release()
        finally:
            self._local.writing = False
            self.changes.ended()

    def run(self, work: Callable[[Connection], T], *, alone: bool = True) -> T:
        """`work` in a `write`, again where another was in the way: it must only write to the connection."""
        for left in range(RUN_TRIES_MAX - 1, -1, -1):
            try:
                with self.write(alone=alone) as connection:
                    return work(connection)
            except DatabaseBusy:
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    def now(self) -> str:
        """This moment as a column holds it."""
        return moment(self.clock.utc())

    def close(self) -> None:
        """Close the pool's connections; those in use close when they are given back."""
        self.engine.dispose()

    @contextlib.contextmanager
    def _transaction(self, mode: str) -> Iterator[Connection]:
        try:
            with self.engine.connect() as plain:
                connection = plain.execution_options(**{MODE: mode})
                with connection.begin():
                    yield connection
        except exc.SQLAlchemyError as error:
            ours = translated(error, self.where)
            if ours is None:
                raise
            raise ours from error


def open_database(url: str, clock: Clock) -> Database:
    """A database by its address, `sqlite:////path` or `postgresql://user@host/name`; connects when used.

    Raises DatabaseUrlRefused. Its tables are made by `migrations.upgrade`.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return Database(_sqlite(parsed), clock)
    limits = Limits(connections=CONNECTIONS_MAX, wait_seconds=WAIT_SECONDS_MAX)
    return Database(postgresql_engine(parsed, clock, limits), clock)


def _parse(url: str) -> URL:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise DatabaseUrlRefused(url=url.rsplit("@", maxsplit=1)[-1], why="it is not an address") from None
    shown = parsed.render_as_string(hide_password=True)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise DatabaseUrlRefused(url=shown, why="it names no file, and what is only in memory is lost")
        return parsed
    if backend in {"postgresql", "postgres"}:
        try:
            import psycopg  # noqa: F401, PLC0415 - an extra: only who uses PostgreSQL has it
        except ImportError:
            raise DatabaseUrlRefused(url=shown, why="secondsite[postgresql] is not installed") from None
        return parsed.set(drivername="postgresql+psycopg")
    raise DatabaseUrlRefused(url=shown, why=f"{backend} is neither sqlite nor postgresql")


def _sqlite(url: URL) -> Engine:
    engine = sa.create_engine(
        url, pool_size=CONNECTIONS_MAX, max_overflow=0, connect_args={"timeout": WAIT_SECONDS_MAX}
    )

    @sa.event.listens_for(engine, "connect")
    def _connected(raw: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        raw.isolation_level = None  # we begin ourselves, see below
        cursor = raw.cursor()
        for setting in (
            f"busy_timeout = {WAIT_SECONDS_MAX * 1000}",
            "synchronous = FULL",  # what was answered outlives a power cut: in WAL mode NORMAL loses it
            "foreign_keys = ON",
            "journal_size_limit = 67108864",  # 64 MiB: a write-ahead log that once grew is cut again
        ):
            cursor.execute(f"PRAGMA {setting}")
        _write_ahead(cursor)
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A writer that begins as a reader and meets another one cannot wait: it must begin as a writer
        # (sqlite.org/lang_transaction.html, "BEGIN IMMEDIATE").
        mode = connection.get_execution_options().get(MODE)
        if mode != "alone":
            connection.exec_driver_sql("BEGIN" if mode == "read" else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(cursor: sa.engine.interfaces.DBAPICursor) -> None:
    """Have the file keep a write-ahead log. Its mode stays with the file, so it is changed once.

    Of several that change a new file's mode at once all but one are told "locked" without any waiting.
    """
    never = threading.Event()
    for _ in range(WAIT_SECONDS_MAX * 20):
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone() == ("wal",):
            return
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            never.wait(0.05)
    cursor.execute("PRAGMA journal_mode = WAL")  # with its own error
