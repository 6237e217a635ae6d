"""A server becomes a standby: a new one, or one that another has taken the place of.

What the former active server knows stays: its database is put aside under another name, never deleted. It may
hold what the new one does not (what was done after the state it took over with), and a person may look there.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import fsync_directory
from secondsite.server.config import ServerConfig
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import current
from secondsite.server.identity.authority import load_authorities
from secondsite.server.standby.errors import NotSuperseded, StandbyNotSet
from secondsite.server.standby.files import Role, StandbyFiles
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.replica import replica_of
from secondsite.server.survival.incarnation import read_incarnation
from secondsite.transfer.serverclaims import read_claims

ROLE_SET = mark("become.role-set")
ASIDE = mark("become.aside")


class NotNew(SecondsiteError):
    """There is a server already."""

    code = "standby.not-new"
    outcome = Outcome.REFUSED
    happened = "The database {where} is a server's already: it cannot begin as a standby."
    cause = "This machine was the active server, or still is."
    action = "Where another has taken its place: `secondsite server become-standby`. Nothing was changed."


@dataclass(frozen=True)
class Became:
    """aside: where what it knew lies now; empty: it was a standby before, or knew nothing."""

    aside: str
    incarnation: int
    superseded_by: int


def begin_standby(config: ServerConfig, clock: Clock | None = None) -> None:
    """This new machine is a standby from now on; again is fine.

    Raises StandbyNotSet, MasterKeyMissing, NotNew.
    """
    files = StandbyFiles(config.state_dir)
    if files.role() is Role.STANDBY:
        return
    Follower(config, clock or SystemClock())  # what it needs is there
    database = open_database(config.database_url(), clock or SystemClock())
    try:
        if _exists(database) and replica_of(database) is None and current(database) is not None:
            raise NotNew(where=database.where)
    finally:
        database.close()
    files.set_role(Role.STANDBY)


def become_standby(config: ServerConfig, clock: Clock | None = None) -> Became:
    """Put this server's database aside and make it a standby; run again where it was cut.

    Raises ServerRuns, NotSuperseded, StandbyNotSet, and what database and store raise; nothing was changed.
    """
    clock = clock or SystemClock()
    files = StandbyFiles(config.state_dir)
    if config.standby is None or config.standby.store is None:
        raise StandbyNotSet(why="[standby] names no store")
    with files.running():
        follower = Follower(config, clock)
        database = open_database(config.database_url(), clock)
        aside, mine, newer = "", 0, 0
        try:
            if _exists(database) and replica_of(database) is None and current(database) is not None:
                mine, newer = _superseded(database, follower)
                for name in ("takeover.json", "status.json"):  # of the time before it was active
                    files.remove(name)
                # the role first: without its database an active server would begin as another, new one
                files.set_role(Role.STANDBY)
                crash_point(ROLE_SET)
                aside = _put_aside(database, mine)
        finally:
            database.close()
        crash_point(ASIDE)
        files.set_role(Role.STANDBY)
    return Became(aside, mine, newer)


def _exists(database: Database) -> bool:
    path = _file(database)
    return path is None or path.exists()


def _file(database: Database) -> Path | None:
    return Path(database.engine.url.database or "") if database.is_sqlite else None


def _superseded(database: Database, follower: Follower) -> tuple[int, int]:
    """Which life this was, and which one has taken its place. Raises NotSuperseded."""
    with database.read() as connection:
        mine = read_incarnation(connection)
    if mine.superseded_by is not None and mine.superseded_by > mine.number:
        return mine.number, mine.superseded_by
    certificates = [one.signer.certificate for one in load_authorities(database, follower.master)]
    store = follower.open_store()
    try:
        for claim in reversed(read_claims(store, mine.server)):
            if claim.incarnation > mine.number and claim.signed_by_one(certificates):
                return mine.number, claim.incarnation
        raise NotSuperseded(incarnation=mine.number, store=store.url)
    finally:
        store.close()


def _put_aside(database: Database, incarnation: int) -> str:
    path = _file(database)
    if path is None:
        schema = f"superseded_{incarnation}"
        database.run(lambda connection: _rename_schema(connection, schema))
        return f"the schema {schema} of {database.where}"
    with contextlib.closing(database.engine.raw_connection()) as raw:
        cursor = raw.cursor()
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it is in the one file then
        cursor.close()
    database.close()
    aside = path.with_name(f"{path.name}.superseded-{incarnation}")
    path.rename(aside)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    fsync_directory(path.parent)
    return str(aside)


def _rename_schema(connection: Connection, schema: str) -> None:
    found = str(connection.execute(sa.text("SELECT current_schema()")).scalar_one())
    quoted = connection.dialect.identifier_preparer.quote_identifier(found)
    connection.exec_driver_sql(f"ALTER SCHEMA {quoted} RENAME TO {schema}")
    connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")
