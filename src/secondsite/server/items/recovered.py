"""What a recovered machine is to be, kept for each item and direction; given to gateways with what they do.

Kept as the model writes it, so nothing is kept that a gateway would refuse. An item that is ended and
protected again has what was set for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.units import format_bytes
from secondsite.model.outlook import Outlook
from secondsite.model.recovered import Direction, RecoveredSettings, decode, encode
from secondsite.server.database.tables_settings import ITEM_SETTINGS
from secondsite.server.items import turning
from secondsite.server.items.records import Item


@dataclass(frozen=True)
class Kept:
    """What is set in one direction, since when and by whom."""

    direction: Direction
    settings: RecoveredSettings
    changed_at: str
    changed_by: str


def settings_for(connection: Connection, item: Item, direction: Direction) -> RecoveredSettings | None:
    """What is set; None: nothing, the machine stays as its point has it."""
    mine = (ITEM_SETTINGS.c.item == item.id, ITEM_SETTINGS.c.direction == direction.value)
    text = connection.execute(sa.select(ITEM_SETTINGS.c.settings).where(*mine)).scalar_one_or_none()
    return None if text is None else decode(text)


def way_of(item: Item) -> Direction:
    """Which way its machine would be taken over now."""
    forth = turning.direction_of(item) is turning.Direction.FORTH
    return Direction.FORWARD if forth else Direction.REVERSE


def described(seen: Outlook) -> str:
    """What the machine would be, for a job's log."""
    nics = ", ".join(f"{nic.network or 'nothing'} ({nic.mac})" for nic in seen.nics)
    size = f"{seen.cpus} processors, {format_bytes(seen.memory_bytes)}, {seen.machine_type}, {seen.firmware}"
    text = f"{seen.name}: {size}; attached to {nics or 'nothing'}"
    notes = "; ".join(finding.cause for finding in seen.findings)
    return f"{text}; to be known: {notes}" if notes else text


def all_of(connection: Connection, item: Item) -> list[Kept]:
    """Both directions, as far as something is set."""
    mine = sa.select(ITEM_SETTINGS).where(ITEM_SETTINGS.c.item == item.id).order_by(ITEM_SETTINGS.c.direction)
    return [
        Kept(Direction(row.direction), decode(row.settings), row.changed_at, row.changed_by)
        for row in connection.execute(mine)
    ]


def keep(
    connection: Connection,
    item: Item,
    direction: Direction,
    settings: RecoveredSettings,
    *,
    by: str,
    at: str,
) -> None:
    """Set all of it for one direction; what was set before is gone."""
    clear(connection, item, direction)
    row = {"settings": encode(settings).decode(), "changed_at": at, "changed_by": by}
    connection.execute(sa.insert(ITEM_SETTINGS).values(item=item.id, direction=direction.value, **row))


def clear(connection: Connection, item: Item, direction: Direction) -> bool:
    """Set nothing any more. False: nothing was set."""
    mine = (ITEM_SETTINGS.c.item == item.id, ITEM_SETTINGS.c.direction == direction.value)
    return connection.execute(sa.delete(ITEM_SETTINGS).where(*mine)).rowcount > 0
