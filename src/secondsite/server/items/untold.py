"""Which machines were taken over from a gateway that never said so: it would run them on when it returns."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.failover import FailoverState
from secondsite.server.database.tables_failovers import FAILOVERS, HELD
from secondsite.server.database.tables_identity import gateways

NAMES_MAX = 10
# Of these the source is the authority, or is again.
_NOT_OVER = frozenset(
    state.value for state in (FailoverState.INITIATED, FailoverState.ROLLED_BACK, FailoverState.FAILED)
)


class _Over(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What matters here of a `transfer.reports.FailoverReport`."""

    machine_name: str
    state: str
    writer: str = ""
    epoch: int | None = None


class _Held(msgspec.Struct, frozen=True):
    """Of a `HeldReport`."""

    epoch: int = 0


def untold(connection: Connection, name: str) -> str:
    """The machines by name, for people; empty where it knows of all, or is the authority again.

    Epochs of a machine grow over all stores, so the highest claim says whose it is.
    """
    gateway = connection.execute(sa.select(gateways.c.id).where(gateways.c.name == name)).scalar_one_or_none()
    newest: dict[str, tuple[int, str]] = {}
    lost: dict[str, tuple[int, str]] = {}
    for row in connection.execute(sa.select(FAILOVERS.c.gateway, FAILOVERS.c.machine, FAILOVERS.c.told)):
        over = msgspec.json.decode(row.told, type=_Over)
        if over.epoch is None or over.state in _NOT_OVER:
            continue
        newest[row.machine] = max(newest.get(row.machine, (0, "")), (over.epoch, row.gateway))
        if over.writer == name:
            lost[row.machine] = max(lost.get(row.machine, (0, "")), (over.epoch, over.machine_name))
    mine = sa.select(HELD.c.machine, HELD.c.told).where(HELD.c.gateway == gateway)
    known = {row.machine: msgspec.json.decode(row.told, type=_Held).epoch for row in connection.execute(mine)}
    found = sorted(
        machine_name
        for machine, (epoch, machine_name) in lost.items()
        if newest[machine][1] != gateway and known.get(machine, 0) < epoch
    )
    more = len(found) - NAMES_MAX
    return ", ".join([*found[:NAMES_MAX], *([f"{more} more"] if more > 0 else [])])
