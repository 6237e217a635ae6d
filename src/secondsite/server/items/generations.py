"""What each gateway is given has a number that grows with every change of it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.server.database.tables_items import GENERATIONS

# Of a gateway that nothing was wanted of yet; one that took nothing yet says 0.
FIRST = 1


def generation_of(connection: Connection, gateway: str) -> int:
    """The newest of a gateway."""
    mine = sa.select(GENERATIONS.c.generation).where(GENERATIONS.c.gateway == gateway)
    return connection.execute(mine).scalar_one_or_none() or FIRST


def raise_generations(connection: Connection, gateways: Sequence[str], *, above: int = 0) -> dict[str, int]:
    """Count up those of some gateways, in one order everywhere; returns the new ones.

    above: the new one is above that too (a gateway may know more than a server restored from a backup).
    """
    told: dict[str, int] = {}
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    for gateway in sorted(set(gateways)):
        first = make(GENERATIONS).values(gateway=gateway, generation=max(FIRST, above) + 1, peers="[]")
        current = GENERATIONS.c.generation
        counted = sa.case((current >= above, current), else_=above) + 1
        statement = first.on_conflict_do_update(
            index_elements=[GENERATIONS.c.gateway], set_={"generation": counted}
        ).returning(current)
        told[gateway] = connection.execute(statement).scalar_one()
    return told
