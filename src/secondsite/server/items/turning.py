"""Turning an item round: what was its target is its source, and where it goes instead.

How it was protected first stands in `home` as long as its machine is away from its first site; once that is
back there, all of it counts again. A machine whose first site is lost gets a new one: the place it went on
to, from where it is protected to its first target again.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy.engine import Connection

from secondsite.model.machines import Machine
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.database.values import to_json
from secondsite.server.items.failovers import known_failover
from secondsite.server.items.records import Item
from secondsite.server.items.seams import Seams
from secondsite.server.items.service import GatewayRef
from secondsite.transfer.desired import WantedMapping


class Direction(enum.StrEnum):
    """Which way an item is protected, by the field's words."""

    FORTH = "PrimaryToRecovery"
    BACK = "RecoveryToPrimary"


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """An item's columns as they were when its machine left its first site."""

    source_id: str
    source_name: str
    target_id: str | None
    target_name: str
    policy_id: str | None
    policy: str
    disks: tuple[str, ...] | None
    left_out: tuple[str, ...]
    mapping: str
    own_mapping: bool


@dataclass(frozen=True)
class Turn:
    """Where to, and what somebody wants otherwise than it is preset.

    machine: as its new source tells it; None: it does not yet, and the item cannot be turned.
    """

    target: GatewayRef
    machine: Machine | None
    old: Machine | None = None  # the copy that is still at the target
    policy_id: str | None = None
    mapping: WantedMapping | None = None


def home_of(item: Item) -> Home:
    """How it is protected from its first site; of one that is there, as it is now."""
    if item.home:
        return msgspec.json.decode(item.home, type=Home)
    return Home(
        source_id=item.source_id,
        source_name=item.source_name,
        target_id=item.target_id,
        target_name=item.target_name,
        policy_id=item.policy_id,
        policy=item.policy_text,
        disks=item.disks,
        left_out=item.left_out,
        mapping=item.mapping_text,
        own_mapping=item.own_mapping,
    )


def direction_of(item: Item) -> Direction:
    """Which way it is protected now."""
    return Direction.FORTH if item.source_id == home_of(item).source_id else Direction.BACK


def is_forth(item: Item, target: str | None) -> bool:
    """Whether an item turned towards a gateway (its id) goes the first way: from its first or a new site."""
    home = home_of(item)
    return item.target_id == home.source_id or (bool(item.home) and target == home.target_id)


def turned(connection: Connection, seams: Seams, item: Item, turn: Turn) -> dict[str, object]:
    """The columns of an item whose machine runs at its target now. Raises PolicyUnknown."""
    home = home_of(item)
    mapping, own = mapping_of(connection, seams, item, turn)
    policy_id, policy, revision = policy_of(connection, seams, item, turn)
    assert turn.machine is not None, "looked at before"
    disks, left_out = _disks(home, turn.machine)
    return {
        "source_id": item.target_id,
        "source_name": item.target_name,
        "target_id": turn.target.id,
        "target_name": turn.target.name,
        "source_revision": item.target_revision,
        "target_revision": item.source_revision,
        "policy_id": policy_id,
        "policy_revision": revision,
        "policy": policy.model_dump_json(by_alias=True),
        "disks": None if disks is None else to_json(list(disks)),
        "left_out": to_json(list(left_out)),
        "mapping": mapping.model_dump_json(by_alias=True),
        "own_mapping": int(own),
        "home": "" if is_forth(item, turn.target.id) else to_json(home),
        "failover_id": known_failover(connection, turn.target.id, item.machine),
        # a pause, a comparison that was asked for, and what is done: of the other direction
        "paused": 0,
        "resync": 0,
        "source_done": 0,
        "target_done": 0,
        "left_behind": "",
    }


def around(item: Item) -> dict[str, object]:
    """The columns of an item whose ends have changed places; its failover is to be heard of."""
    home, back = home_of(item), item.mapping
    mapping = WantedMapping(networks=backwards(back.networks), pools=backwards(back.pools))
    return {
        "source_id": item.target_id,
        "source_name": item.target_name,
        "target_id": item.source_id,
        "target_name": item.source_name,
        "source_revision": item.target_revision,
        "target_revision": item.source_revision,
        "mapping": mapping.model_dump_json(by_alias=True),
        "home": "" if item.target_id == home.source_id else to_json(home),
        "failover_id": "",
        "paused": 0,
        "resync": 0,
        "source_done": 0,
        "target_done": 0,
        "left_behind": "",
        "changed_by": "",
        "before_change": "{}",
    }


# What makes up a direction, and is kept for taking a turn back that a gateway made by itself.
TURNED = frozenset(
    {
        "source_id",
        "source_name",
        "target_id",
        "target_name",
        "source_revision",
        "target_revision",
        "policy_id",
        "policy_revision",
        "policy",
        "disks",
        "left_out",
        "mapping",
        "own_mapping",
        "home",
        "failover_id",
    }
)


def columns_before(item: Item, values: Iterable[str]) -> dict[str, str | int | None]:
    """The columns that are about to be changed, as they are: what `kept_columns` reads later."""
    renamed = {"policy": "policy_text", "mapping": "mapping_text"}
    columns: dict[str, str | int | None] = {}
    for name in values:
        found = getattr(item, renamed.get(name, name))
        if isinstance(found, bool):
            found = int(found)
        columns[name] = to_json(list(found)) if isinstance(found, tuple) else found
    return columns


def kept_columns(item: Item) -> dict[str, str | int | None]:
    """The columns as they were before its last change; none: they are not kept."""
    return msgspec.json.decode(item.before_change, type=_Before).columns


def is_turned(item: Item) -> bool:
    """Of one that is being reprotected: whether its source is where the machine runs already."""
    return "source_id" in kept_columns(item)


class _Before(msgspec.Struct, frozen=True):
    columns: dict[str, str | int | None] = {}


def policy_of(
    connection: Connection, seams: Seams, item: Item, turn: Turn
) -> tuple[str | None, ReplicationPolicy, int]:
    """Id, settings and revision: towards its first site the failback policy, away from it the first one."""
    home = home_of(item)
    if turn.policy_id is not None:
        return turn.policy_id, *seams.policies.get(connection, turn.policy_id)
    settings = ReplicationPolicy.model_validate_json(home.policy)
    if not is_forth(item, turn.target.id):
        return seams.policies.failback(connection, home.policy_id, settings)
    if home.policy_id is None:
        return None, settings, 0
    return home.policy_id, *seams.policies.get(connection, home.policy_id)


def mapping_of(connection: Connection, seams: Seams, item: Item, turn: Turn) -> tuple[WantedMapping, bool]:
    """Where its things go, and whether that is its own.

    As the two sites are mapped; where they are not, or the item had a mapping of its own, that one read
    backwards. Disks without a place go to the pool that has the old copy's.
    """
    if turn.mapping is not None:
        return turn.mapping, True
    home, source = home_of(item), item.target_id or item.target_name
    target = turn.target.id or turn.target.name
    if item.target_id == home.source_id and turn.target.id == home.target_id and home.own_mapping:
        return WantedMapping.model_validate_json(home.mapping), True
    found = seams.mappings.for_pair(connection, source, target, item.machine)
    own = False
    if turn.target.id == item.source_id and (item.own_mapping or not (found.networks or found.pools)):
        back = item.mapping
        read = WantedMapping(networks=backwards(back.networks), pools=backwards(back.pools))
        if read.networks or read.pools:
            found, own = read, True
    if found.default_pool is None and turn.old is not None:
        pools = Counter(disk.pool for disk in turn.old.disks if disk.pool)
        disks = turn.machine.disks if turn.machine is not None else ()
        if pools and {disk.pool for disk in disks} - set(found.pools):
            found, own = found.model_copy(update={"default_pool": pools.most_common(1)[0][0]}), True
    return found, own


def backwards(mapping: Mapping[str, str]) -> dict[str, str]:
    """Read from right to left; what two share has no one to go back to."""
    uses = Counter(mapping.values())
    return {right: left for left, right in mapping.items() if uses[right] == 1}


def _disks(home: Home, machine: Machine) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Which disks: what was left out was not recovered, and is not there."""
    there = [str(disk.id) for disk in machine.disks]
    left_out = tuple(disk for disk in home.left_out if disk in there)
    if home.disks is None or not set(home.disks) <= set(there):
        return None, left_out
    return home.disks, left_out
