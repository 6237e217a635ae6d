"""What a database may answer, in our words; drivers' errors become these at the edge of a transaction."""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy import exc

from secondsite.base.errors import Outcome, SecondsiteError


class DatabaseUnavailable(SecondsiteError):
    """No connection, or it was lost. A write that was under way may have been kept or not."""

    code = "database.unavailable"
    outcome = Outcome.UNAVAILABLE
    happened = "The database {where} does not answer: {why}."
    cause = "It is stopped, restarting, full, or the way to it is cut."
    action = (
        "Start it, or correct the server's database address; the server goes on by itself once it answers."
    )


class DatabaseBusy(SecondsiteError):
    """Another writer was in the way for too long; nothing was changed."""

    code = "database.busy"
    outcome = Outcome.UNAVAILABLE
    happened = "The database {where} is busy: {why}."
    cause = "Other writers held it for longer than a writer waits."
    action = "Try again; if it stays so, look for a program that keeps a transaction open on it."


class DatabaseReadOnly(SecondsiteError):
    """It reads, and takes nothing."""

    code = "database.read-only"
    outcome = Outcome.UNAVAILABLE
    happened = "The database {where} is read-only."
    cause = "It is a replica that PostgreSQL keeps, or was set so by its operator."
    action = "Point the server at the primary; on a replica it runs as a standby (docs/standby.md)."


class DatabaseDamaged(SecondsiteError):
    """What is there is no sound database."""

    code = "database.damaged"
    outcome = Outcome.DAMAGED
    happened = "The database {where} cannot be read: {why}."
    cause = "Its file is not a database of the server, or it was damaged on its volume."
    action = "Restore the server's state from its last backup, and check the volume."


class DatabaseUrlRefused(SecondsiteError):
    """An address that no database can have."""

    code = "database.url"
    outcome = Outcome.USAGE
    happened = "The database address {url!r} cannot be used: {why}."
    cause = "A mistyped address, or a kind of database the server does not know."
    action = "Write sqlite:////path/of/the/file.db or postgresql://user@host/name."


class SchemaUnknown(SecondsiteError):
    """The tables are of another version than the program."""

    code = "database.schema"
    outcome = Outcome.REFUSED
    happened = "The database {where} has tables of version {found}, this program's are of version {expected}."
    cause = "A newer server has used it already, or it was never brought up to date."
    action = "Run the newest version of secondsite on it; an older one never works on newer tables."


# SQLSTATE: serialization failure, deadlock, lock not available (PostgreSQL's manual, appendix A)
_BUSY_STATES = {"40001", "40P01", "55P03"}
# connection (08), resources (53), operator's intervention (57), system (58): not the query's fault
_UNAVAILABLE_CLASSES = ("08", "53", "57", "58")
_READ_ONLY = "25006"  # read-only SQL transaction
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def translated(error: exc.SQLAlchemyError, where: str) -> SecondsiteError | None:
    """Our error for a driver's, or None where the query itself is at fault (a defect, or a constraint)."""
    if isinstance(error, exc.TimeoutError):
        return DatabaseBusy(where=where, why="every connection is in use")
    if not isinstance(error, exc.DBAPIError):
        return None
    why = re.sub(r"\s+", " ", str(error.orig)).strip()[:300]
    state = str(getattr(error.orig, "sqlstate", None) or "")
    primary = int(getattr(error.orig, "sqlite_errorcode", 0)) & 0xFF  # the extended code's low byte
    if state in _BUSY_STATES or primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return DatabaseBusy(where=where, why=why)
    if primary in _DAMAGED:
        return DatabaseDamaged(where=where, why=why)
    if state == _READ_ONLY:
        return DatabaseReadOnly(where=where)
    if primary in _FULL or error.connection_invalidated or state.startswith(_UNAVAILABLE_CLASSES):
        return DatabaseUnavailable(where=where, why=why)
    # a connection that was never made has neither a state nor an "invalidated"
    if isinstance(error, exc.OperationalError | exc.InterfaceError) and not state and not primary:
        return DatabaseUnavailable(where=where, why=why)
    return None
