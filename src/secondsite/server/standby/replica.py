"""A database that PostgreSQL replicates: read-only until it is promoted, which is its operator's to do.

With one, the state a takeover goes on with is the replica's, which is newer than any copy; copies and claims
in the store are what they are without: how it is known that this server may act, and who else may not.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database


class DatabaseIsReplica(SecondsiteError):
    """Read-only."""

    code = "database.replica"
    outcome = Outcome.REFUSED
    happened = "The database {where} is a read-only replica."
    cause = "PostgreSQL replicates it from another server's, which may be at work."
    action = (
        "Start this server with --standby. To take over: promote the replica (`SELECT pg_promote()` there, "
        "once the primary is stopped or lost), then `secondsite server take-over`."
    )


class ReplicaBehind(SecondsiteError):
    """The copy in the store has more."""

    code = "standby.replica-behind"
    outcome = Outcome.REFUSED
    happened = (
        "The replica {where} is complete up to {at}; the copy in the store is of {made}, which is newer."
    )
    cause = "Replication had stopped before the primary was lost."
    action = "Name an empty database in the configuration and take over with the copy; keep the replica."


@dataclass(frozen=True)
class Replica:
    """How far a replica is. replayed_at: of the newest change in it; None: none was seen yet."""

    replayed_at: dt.datetime | None
    caught_up: bool  # all that was received is in it, and it is connected to the primary


def replica_of(database: Database) -> Replica | None:
    """What it is; None: it is no replica. Raises what the database raises."""
    if database.is_sqlite:
        return None
    query = sa.text(
        "SELECT pg_is_in_recovery() AS replica, pg_last_xact_replay_timestamp() AS at,"
        " pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AS all_in,"
        " EXISTS (SELECT 1 FROM pg_stat_wal_receiver) AS connected"
    )
    with database.read() as connection:
        row = connection.execute(query).one()
    if not row.replica:
        return None
    return Replica(row.at, bool(row.all_in) and bool(row.connected))


def require_no_replica(database: Database) -> None:
    """Raise DatabaseIsReplica for one: a server that is active writes."""
    if replica_of(database) is not None:
        raise DatabaseIsReplica(where=database.where)
