"""Which server this is, and which life of it: every restore makes a higher incarnation.

Two servers of one id can live at once: a restored one and the original that was thought lost. Gateways obey
the higher incarnation only and tell a lower one so. The number is at least the microseconds since 1970, so
that also two restores of one backup differ, and the later one is the higher.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.tables_survival import server_state


@dataclass(frozen=True)
class Incarnation:
    """A server's identity. `number` 0: its first start is not done yet."""

    server: str  # 32 hexadecimal digits
    number: int
    restored_from: str | None = None
    backup_at: str | None = None
    restored_at: str | None = None
    superseded_by: int | None = None
    superseded_url: str | None = None
    handed_over_at: str | None = None


NOBODY = Incarnation("0" * 32, 0)


def read_incarnation(connection: Connection) -> Incarnation:
    """As the database says; NOBODY before the first start."""
    row = connection.execute(sa.select(server_state)).one_or_none()
    if row is None:
        return NOBODY
    return Incarnation(
        server=row.server,
        number=row.incarnation,
        restored_from=row.restored_from,
        backup_at=row.backup_at,
        restored_at=row.restored_at,
        superseded_by=row.superseded_by,
        superseded_url=row.superseded_url,
        handed_over_at=row.handed_over_at,
    )


def ensure_incarnation(connection: Connection, now: datetime) -> Incarnation:
    """The server's identity, made at its first start."""
    found = read_incarnation(connection)
    if found.number:
        return found
    made = {"id": 1, "server": secrets.token_hex(16), "incarnation": microseconds(now)}
    connection.execute(server_state.insert().values(**made))
    return read_incarnation(connection)


def microseconds(now: datetime) -> int:
    """Since 1970."""
    return int(now.timestamp() * 1_000_000)


def next_number(before: int, now: datetime) -> int:
    """The incarnation a restore makes of a backup of incarnation `before`."""
    return max(before + 1, microseconds(now))
