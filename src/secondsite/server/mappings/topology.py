"""Sites, clouds, pairs and mappings of one server, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.calls.service import Calls
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_items import ITEMS
from secondsite.server.database.tables_mappings import PLACED
from secondsite.server.identity.service import Identity
from secondsite.server.inventory.service import Inventories
from secondsite.server.jobs.definitions import Definition
from secondsite.server.mappings.pairs import Pairs
from secondsite.server.mappings.records import Pair
from secondsite.server.mappings.service import Mappings
from secondsite.server.operations.pairing import pair_operations
from secondsite.server.operations.remapping import mapping_operations
from secondsite.server.topology.clouds import Clouds
from secondsite.server.topology.machines import Machines
from secondsite.server.topology.placing import admit, enrolled
from secondsite.server.topology.records import clouds_of


@dataclass(frozen=True)
class Topology:
    """The four services."""

    clouds: Clouds
    machines: Machines
    pairs: Pairs
    mappings: Mappings

    @classmethod
    def open(cls, database: Database, identity: Identity, inventories: Inventories) -> Topology:
        """On a database; hosts and machines are placed as they are told of from now on."""
        clock = database.clock
        inventories.admit = lambda connection, gateway, told: admit(connection, clock, gateway, told)
        identity.enrolment.on_enrolled = lambda connection, gateway, published: enrolled(
            connection, clock, gateway, published=published
        )
        identity.gateways.watch(_use_of)
        made = cls(Clouds(database), Machines(database), Pairs(database), Mappings(database))
        made.pairs.watch(protected_with)
        made.clouds.watch(protected_in)
        return made

    def operations(self, database: Database, calls: Calls) -> Sequence[Definition[Any]]:
        """The kinds of jobs about pairs and mappings."""
        return (
            *pair_operations(database, self.pairs, calls),
            *mapping_operations(database, self.mappings, calls),
        )


def protected_with(connection: Connection, pair: Pair) -> str:
    """How many machines are replicated between the gateways of a pair's clouds."""
    ends = [[gateway.id for gateway in cloud.gateways] for cloud in (pair.primary, pair.target)]
    there = sa.and_(ITEMS.c.source_id.in_(ends[0]), ITEMS.c.target_id.in_(ends[1]))
    back = sa.and_(ITEMS.c.source_id.in_(ends[1]), ITEMS.c.target_id.in_(ends[0]))
    return _counted(connection, sa.or_(there, back), "protected with it")


def protected_in(connection: Connection, cloud: str) -> str:
    """How many machines of a cloud are protected."""
    here = sa.select(PLACED.c.machine).where(PLACED.c.cloud == cloud)
    return _counted(connection, ITEMS.c.machine.in_(here), "protected in it")


def _counted(connection: Connection, condition: sa.ColumnElement[bool], how: str) -> str:
    live = sa.and_(ITEMS.c.enabled == 1, condition)
    rows = connection.execute(sa.select(ITEMS.c.name).where(live).order_by(ITEMS.c.name_key)).scalars().all()
    if not rows:
        return ""
    names = ", ".join(rows[:3]) + (", …" if len(rows) > 3 else "")
    return f"{len(rows)} {'machine is' if len(rows) == 1 else 'machines are'} {how} ({names})"


def _use_of(connection: Connection, gateway: str) -> str:
    """Whether a paired cloud has no other gateway than the one of this name."""
    for cloud in clouds_of(connection, sa.true()):
        if cloud.pair is not None and [one.name for one in cloud.gateways] == [gateway]:
            return f"is the only gateway of the cloud {cloud.name}, which is paired with {cloud.paired_with}"
    return ""
