"""Which of several gateways does the work for a machine: the one that is nearest to it.

Data is read where the machine runs: on its own host a capture goes through a unix socket, elsewhere through
the site's network. What decided is told as a sentence.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.machines import Machine, PowerState
from secondsite.server.database.tables_identity import gateway_contacts, gateways
from secondsite.server.database.tables_inventory import OBJECTS
from secondsite.server.database.tables_mappings import PAIR_CHECKS, PLACED
from secondsite.server.database.values import from_moment
from secondsite.server.identity.heartbeats import SILENT_AFTER
from secondsite.server.identity.states import GatewayState
from secondsite.server.inventory.service import Kind
from secondsite.server.topology.errors import NoGateway

_POWERED = {PowerState.RUNNING, PowerState.PAUSED}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A gateway that tells of the machine."""

    gateway: str  # its id
    name: str
    host: str  # where it says the machine is
    cloud: str
    connected: bool
    running: bool  # it says that the machine runs there: after a move the old host may still list it
    on_host: bool  # it is the gateway of that host alone
    round_trip_seconds: float | None  # to the target, the last time it was measured
    protected: int  # machines it protects already
    told: Machine  # as it told of the machine


@dataclass(frozen=True)
class Choice:
    """The gateway to use, and why it."""

    gateway: str  # its id
    name: str
    host: str
    cloud: str
    reason: str
    others: tuple[str, ...]  # names of those that could do it too, the next best first


def choose(candidates: Sequence[Candidate]) -> Choice:
    """The best of at least one."""
    ordered = sorted(candidates, key=_rank)
    best, others = ordered[0], ordered[1:]
    reason = _reason(best, others[0] if others else None)
    names = tuple(one.name for one in others)
    return Choice(best.gateway, best.name, best.host, best.cloud, reason, names)


def choose_gateway(
    connection: Connection, machine: str, *, now: dt.datetime, cloud: str | None = None
) -> Choice:
    """The gateway for a machine of a published cloud. Raises NoGateway.

    cloud: where several sites have a machine of this id (its replica runs at the other one), whose.
    """
    found = candidates_of(connection, [machine], now=now, cloud=cloud).get(machine)
    if not found:
        raise NoGateway(machine=machine)
    return choose(found)


def candidates_of(
    connection: Connection, machines: Sequence[str], *, now: dt.datetime, cloud: str | None = None
) -> dict[str, list[Candidate]]:
    """Of each machine the registered gateways that tell of it."""
    joined = (
        PLACED.join(
            OBJECTS,
            sa.and_(
                OBJECTS.c.gateway == PLACED.c.gateway,
                OBJECTS.c.kind == Kind.MACHINE.value,
                OBJECTS.c.id == PLACED.c.machine,
                OBJECTS.c.gone_since.is_(None),
            ),
        )
        .join(gateways, gateways.c.id == PLACED.c.gateway)
        .outerjoin(gateway_contacts, gateway_contacts.c.gateway_id == gateways.c.id)
    )
    contact = (gateway_contacts.c.last_contact, gateway_contacts.c.protected)
    query = sa.select(*PLACED.c, OBJECTS.c.detail, gateways.c.name, *contact).select_from(joined)
    query = query.where(PLACED.c.machine.in_(machines), gateways.c.state == GatewayState.REGISTERED.value)
    if cloud is not None:
        query = query.where(PLACED.c.cloud == cloud)
    rows = connection.execute(query).all()
    ids = {row.gateway for row in rows}
    hosts, trips = _hosts_of(connection, ids), _round_trips(connection, ids)
    found: dict[str, list[Candidate]] = {}
    for row in rows:
        told = msgspec.json.decode(row.detail, type=Machine)
        heard = row.last_contact is not None and now - from_moment(row.last_contact) <= SILENT_AFTER
        found.setdefault(row.machine, []).append(
            Candidate(
                gateway=row.gateway,
                name=row.name,
                host=row.host,
                cloud=row.cloud,
                connected=heard,
                running=told.power in _POWERED,
                on_host=hosts.get(row.gateway) == {row.host},
                round_trip_seconds=trips.get(row.gateway),
                protected=row.protected or 0,
                told=told,
            )
        )
    return found


def _rank(one: Candidate) -> tuple[bool, bool, bool, float, int, str]:
    trip = float("inf") if one.round_trip_seconds is None else one.round_trip_seconds
    return not one.connected, not one.running, not one.on_host, trip, one.protected, one.name


def _reason(best: Candidate, next_best: Candidate | None) -> str:
    where = f"{best.name} is the gateway of the host {best.host} itself"
    far = f"no gateway is on the host {best.host} alone: one there would read its disks without the network"
    if next_best is None:
        state = "" if best.connected else "; it is not connected now"
        return (where if best.on_host else f"only {best.name} tells of it; {far}") + state
    if best.connected is not next_best.connected:
        return f"{best.name} is connected, {next_best.name} is not"
    if best.running is not next_best.running:
        return f"the machine runs at {best.name}; {next_best.name} only lists it"
    if best.on_host is not next_best.on_host:
        return where
    trip, other = best.round_trip_seconds, next_best.round_trip_seconds
    if trip is not None and trip != other:
        far_word = "unknown" if other is None else f"{other * 1000:.1f} ms"
        return f"{best.name} is the nearest to the target: {trip * 1000:.1f} ms, {next_best.name} {far_word}"
    if best.protected != next_best.protected:
        return f"{best.name} protects {best.protected} machines, {next_best.name} {next_best.protected}"
    return f"{best.name} and {next_best.name} are equally near and loaded: the first by name"


def _hosts_of(connection: Connection, ids: set[str]) -> dict[str, set[str]]:
    query = sa.select(OBJECTS.c.gateway, OBJECTS.c.id).where(
        OBJECTS.c.kind == Kind.HOST.value, OBJECTS.c.gone_since.is_(None), OBJECTS.c.gateway.in_(ids)
    )
    found: dict[str, set[str]] = {}
    for gateway, host in connection.execute(query):
        found.setdefault(gateway, set()).add(host)
    return found


def _round_trips(connection: Connection, ids: set[str]) -> dict[str, float]:
    query = (
        sa.select(PAIR_CHECKS.c.gateway, sa.func.min(PAIR_CHECKS.c.round_trip_seconds))
        .where(PAIR_CHECKS.c.gateway.in_(ids), PAIR_CHECKS.c.ok == 1)
        .group_by(PAIR_CHECKS.c.gateway)
    )
    return {gateway: trip for gateway, trip in connection.execute(query) if trip is not None}
