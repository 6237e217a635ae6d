"""What a server wants of one gateway, put together from the items (`transfer.desired.Desired`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_items import GENERATIONS, ITEMS
from secondsite.server.items.generations import FIRST, generation_of, raise_generations
from secondsite.server.items.records import Item, item_of, query
from secondsite.server.policies import service as policies
from secondsite.server.topology.addresses import peers_of as _peers
from secondsite.transfer.desired import Desired, Peer, WantedProtection, WantedReplica


class Wanted:
    """Serves gateways. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def generation(self, gateway: str, vault: str) -> int:
        """Of what is wanted of a gateway now, by its id; a peer that listens elsewhere makes a new one."""
        generation, fresh = self._current(gateway, vault)
        return generation if fresh else self._renewed(gateway, vault, generation)

    def known(self, gateway: str) -> int:
        """The generation as it was last counted: one row is read, nothing is compared."""
        with self._database.read() as connection:
            return generation_of(connection, gateway)

    def of(self, gateway: str, vault: str, *, after: int) -> Desired | None:
        """Everything that is wanted of a gateway; None: nothing newer than generation `after`."""
        generation, fresh = self._current(gateway, vault)
        if not fresh or after > generation:
            # it knows of more than this server: one restored from an older backup counts on from there
            self._renewed(gateway, vault, max(after, generation))
        elif after == generation:
            return None
        with self._database.read() as connection:
            generation = generation_of(connection, gateway)
            return _desired(connection, gateway, generation, _peers(connection, gateway, vault))

    def _current(self, gateway: str, vault: str) -> tuple[int, bool]:
        """The generation, and whether its peers are still those of then."""
        with self._database.read() as connection:
            generation, peers = self._known(connection, gateway)
            return generation, peers == _text(_peers(connection, gateway, vault))

    def _renewed(self, gateway: str, vault: str, above: int) -> int:
        return self._database.run(partial(_renew, gateway, vault, above), alone=False)

    @staticmethod
    def _known(connection: Connection, gateway: str) -> tuple[int, str]:
        mine = sa.select(GENERATIONS).where(GENERATIONS.c.gateway == gateway)
        row = connection.execute(mine).one_or_none()
        return (FIRST, "[]") if row is None else (row.generation, row.peers)


def _renew(gateway: str, vault: str, above: int, connection: Connection) -> int:
    told = raise_generations(connection, [gateway], above=above)
    peers = _text(_peers(connection, gateway, vault))
    connection.execute(sa.update(GENERATIONS).where(GENERATIONS.c.gateway == gateway).values(peers=peers))
    return told[gateway]


def _text(peers: tuple[Peer, ...]) -> str:
    return json.dumps([[peer.name, peer.url] for peer in peers], ensure_ascii=False)


def _desired(connection: Connection, gateway: str, generation: int, peers: tuple[Peer, ...]) -> Desired:
    mine = sa.or_(
        sa.and_(ITEMS.c.source_id == gateway, sa.or_(ITEMS.c.enabled == 1, ITEMS.c.source_done == 0)),
        sa.and_(ITEMS.c.target_id == gateway, sa.or_(ITEMS.c.enabled == 1, ITEMS.c.target_done == 0)),
    )
    rows = connection.execute(query().where(mine, ITEMS.c.managed == 1).order_by(ITEMS.c.id))
    items = [item_of(row) for row in rows]
    named = policies.names(connection, {item.policy_id for item in items if item.policy_id is not None})
    return Desired(
        generation=generation,
        protections=tuple(
            _protection(item, named)
            for item in items
            if item.source_id == gateway and (item.enabled or not item.source_done)
        ),
        replicas=tuple(
            _replica(item, named)
            for item in items
            if item.target_id == gateway and (item.enabled or not item.target_done)
        ),
        peers=peers,
    )


def _protection(item: Item, named: Mapping[str, str]) -> WantedProtection:
    return WantedProtection(
        item=item.id,
        revision=item.revision,
        machine=item.machine,
        name=item.name,
        peer=item.target_name,
        disks=item.disks,
        left_out=item.left_out,
        policy=item.policy,
        policy_id=item.policy_id or "",
        policy_name=named.get(item.policy_id or "", ""),
        mapping=item.mapping,
        paused=item.paused,
        resync=item.resync,
        enabled=item.enabled,
    )


def _replica(item: Item, named: Mapping[str, str]) -> WantedReplica:
    return WantedReplica(
        item=item.id,
        revision=item.revision,
        machine=item.machine,
        name=item.name,
        source=item.source_name,
        retention=item.policy.retention,
        policy_name=named.get(item.policy_id or "", ""),
        enabled=item.enabled,
        delete=item.delete_replica and not item.enabled,
    )
