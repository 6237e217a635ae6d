"""What reports say of items, for their histories; and which items the machines of events are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.database.values import from_moment
from secondsite.server.events.history import Histories
from secondsite.server.items.reports import Heard
from secondsite.server.items.settled import Watched

BITMAP_MODE = "item.bitmap-mode"


def look(histories: Histories, heard: Heard, items: Sequence[Watched]) -> None:
    """Take a report into the histories of those items whose source made it; by the server's clock."""
    at = from_moment(heard.at)
    said = {one.machine: one for one in heard.report.protections}
    for item in items:
        one = said.get(item.machine)
        if one is None or item.source_id != heard.who.id:
            continue
        histories.observe(item.id, at, one.rpo_seconds, item.rpo_threshold_seconds)
        code = one.code or (BITMAP_MODE if one.bitmap_mode else "")
        histories.observe_health(item.id, at, one.health, code, one.note)


def items_of(connection: Connection, gateway: str, machines: Collection[str]) -> Mapping[str, str]:
    """The items of a gateway's vault, by machine. gateway: its id."""
    vault = sa.select(gateways.c.vault_id).where(gateways.c.id == gateway).scalar_subquery()
    query = sa.select(ITEMS.c.machine, ITEMS.c.id).where(
        ITEMS.c.vault_id == vault, ITEMS.c.machine.in_(machines)
    )
    return {row.machine: row.id for row in connection.execute(query)}
