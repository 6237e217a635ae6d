"""Where gateways listen for each other: as they say themselves, else where they were last heard from."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.tables_identity import gateway_contacts, gateways
from secondsite.server.database.tables_mappings import PAIR_CHECKS
from secondsite.server.database.values import from_json
from secondsite.server.identity.states import GatewayState
from secondsite.transfer.desired import Peer
from secondsite.transfer.wire import PORT

PEERS_MAX = 1000  # as `transfer.desired.Desired` takes them


@dataclass(frozen=True)
class Address:
    """said: told by the gateway. guess: where it was heard from, with the usual port."""

    said: str | None = None
    guess: str | None = None


def addresses_of(connection: Connection, gateway_ids: Sequence[str]) -> dict[str, Address]:
    """Of each of these gateways; nothing is known of one that was never heard of."""
    mine = gateway_contacts.c.gateway_id.in_(gateway_ids)
    rows = connection.execute(sa.select(gateway_contacts).where(mine)).all()
    known = {row.gateway_id: Address(row.url, _guess(row.address)) for row in rows}
    return {gateway: known.get(gateway, Address()) for gateway in gateway_ids}


def peers_of(connection: Connection, gateway: str, vault: str) -> tuple[Peer, ...]:
    """The other gateways of a vault, by name, with where a gateway (its id) finds them.

    Where they say that they listen; else where this one reached them when its cloud was paired. Those of
    which neither is known are left out.
    """
    others = (
        sa.select(gateways.c.id, gateways.c.name, gateway_contacts.c.url)
        .outerjoin(gateway_contacts, gateway_contacts.c.gateway_id == gateways.c.id)
        .where(gateways.c.vault_id == vault, gateways.c.id != gateway)
        .where(gateways.c.state == GatewayState.REGISTERED.value)
        .order_by(gateways.c.name)
        .limit(PEERS_MAX)
    )
    reached = _reached(connection, gateway)
    found = [(row.name, row.url or reached.get(row.id)) for row in connection.execute(others)]
    return tuple(Peer(name=name, url=url) for name, url in found if url)


def _reached(connection: Connection, gateway: str) -> dict[str, str]:
    """Gateway -> where this one reached it last."""
    mine = (PAIR_CHECKS.c.gateway == gateway, PAIR_CHECKS.c.ok == 1)
    rows = connection.execute(sa.select(PAIR_CHECKS.c.target, PAIR_CHECKS.c.result).where(*mine))
    return {row.target: from_json(row.result, _Reached).url for row in rows}


class _Reached(msgspec.Struct, frozen=True):
    url: str


def _guess(heard_from: str) -> str | None:
    try:
        found = ipaddress.ip_address(heard_from)
    except ValueError:
        return None
    host = f"[{found}]" if found.version == 6 else str(found)
    return f"https://{host}:{PORT}"
