"""PostgreSQL by psycopg, with as few ways there and back as can be: each waits for Python's lock again.

A reader's BEGIN carries its isolation; a query alone has no transaction around it; a pooled connection is
asked whether it lives only where something says that it may not.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import URL, Connection, Engine

from secondsite.base.clock import Clock

if TYPE_CHECKING:
    import psycopg

CONNECT_SECONDS_MAX = 5
# After so long without a word something between may have forgotten the connection: it is asked first.
QUIET_SECONDS_MAX = 30.0
# Any number, the same on every server: ours in the space of 64 bits that PostgreSQL's advisory locks have.
WRITER_LOCK = 0x5EC0_2D51_7E00_0001

# execution option: how this transaction begins. "read", "alone" (one query), "write", "write alone"
MODE = "secondsite_mode"
_QUIET_SINCE = "secondsite_quiet_since"  # of a pooled connection: when it was given back, monotonic


@dataclass(frozen=True)
class Limits:
    """connections: of this server; wait_seconds: for one of them, or for a lock."""

    connections: int
    wait_seconds: int


def postgresql_engine(url: URL, clock: Clock, limits: Limits) -> Engine:
    """An engine whose transactions begin as their `MODE` says; connects when used."""
    from psycopg import IsolationLevel  # noqa: PLC0415 - an extra: only who uses PostgreSQL has it

    engine = sa.create_engine(
        url,
        pool_size=limits.connections,
        max_overflow=0,
        pool_timeout=limits.wait_seconds,
        pool_use_lifo=True,  # few connections at work: each has statements prepared, of its own
        connect_args={
            "connect_timeout": CONNECT_SECONDS_MAX,
            "tcp_user_timeout": 15_000,  # a server that vanished without a word is given up after 15 s
            "application_name": "secondsite",
            # a server of ours that stalls inside a transaction must not hold the others for long
            "options": f"-c lock_timeout={limits.wait_seconds}s -c idle_in_transaction_session_timeout=60s",
        },
    )

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        mode = connection.get_execution_options().get(MODE)
        # told to the driver, which says it with its BEGIN: a statement of its own would be one more way
        raw = cast("psycopg.Connection[Any]", connection.connection.dbapi_connection)
        wanted = (IsolationLevel.REPEATABLE_READ, True) if mode == "read" else (None, None)
        if (raw.isolation_level, raw.read_only) != wanted:
            raw.isolation_level, raw.read_only = wanted
        if raw.autocommit != (mode == "alone"):
            raw.autocommit = mode == "alone"
        if mode == "write alone":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    _looked_after(engine, clock)
    return engine


def _looked_after(engine: Engine, clock: Clock) -> None:
    """After a restart of PostgreSQL the pool is made anew, and nobody sees an error.

    SQLAlchemy's own pre-ping asks before each use, which is a way there and back. A connection that was cut
    says so by itself: there is something to read where nothing was asked.
    """

    @sa.event.listens_for(engine, "checkin")
    def _given_back(_raw: object, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info[_QUIET_SINCE] = clock.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def _taken(
        raw: sa.engine.interfaces.DBAPIConnection, record: sa.pool.ConnectionPoolEntry, _by: object
    ) -> None:
        since = record.info.get(_QUIET_SINCE)
        if since is None:
            return  # it was made just now
        connection = cast("psycopg.Connection[Any]", raw)
        if not connection.closed and clock.monotonic() - since < QUIET_SECONDS_MAX:
            poll = select.poll()  # not select.select: it takes no descriptor above 1023
            poll.register(connection.fileno(), select.POLLIN)
            if not poll.poll(0):
                return
        try:
            engine.dialect.do_ping(raw)
        except engine.dialect.loaded_dbapi.Error as error:
            raise exc.InvalidatePoolError from error
