"""Finalising: looks whether a failover would find its place at the target; only then an item is Protected."""

from __future__ import annotations

from typing import Any

import msgspec

from secondsite.model.items import COUNTED, ProtectedEvent, ProtectedState
from secondsite.model.machines import Network, Pool
from secondsite.server.inventory.service import Kind, Search
from secondsite.server.items.errors import MappingIncomplete
from secondsite.server.items.records import Item, lock_key
from secondsite.server.jobs.definitions import Definition, Done, OnFailure, Result, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.tools import Tools

FINALISE = "item.finalize"
NAMES_MAX = 10_000


class ItemInput(msgspec.Struct, frozen=True, kw_only=True):
    """Which item; machine and name for the lock and the title."""

    vault: str
    item: str
    machine: str
    name: str


class Finalised(msgspec.Struct, frozen=True, kw_only=True):
    """It is ready for a failover."""

    item: str


def finalise_item(tools: Tools) -> Definition[ItemInput]:
    """The job of its own, for what a protection's last step refused."""
    return Definition(
        kind=FINALISE,
        version=1,
        input=ItemInput,
        steps=(Step("finalise", do=lambda run: finalise(tools, run, run.input.item)),),
        title=lambda given: f"Finalise the protection of {given.name}",
        locks=lambda given: (lock_key(given.machine),),
        vault=lambda given: given.vault,
        on_failure=OnFailure.KEEP,
    )


def finalise(tools: Tools, run: StepRun[Any], item: str) -> Result:
    """The step. Raises MappingIncomplete; then the item says so until it is tried again."""
    found = tools.item(item)
    if found.state in COUNTED:
        return Done(Finalised(item=item))
    found = run.write(lambda connection: tools.items.move(connection, item, ProtectedEvent.FINALIZING))
    why = _missing(tools, run, found)
    if why:
        values = {"health": "Warning", "health_code": MappingIncomplete.code, "health_note": why}
        run.write(
            lambda connection: tools.items.move(connection, item, ProtectedEvent.FINALIZE_FAILED, values)
        )
        raise MappingIncomplete(name=found.name, why=why)
    now = tools.items.now()
    done = {"finalized_at": now, "health": "Normal", "health_code": "", "health_note": ""}
    if found.first_protected_at is None:
        done["first_protected_at"] = now

    def work(connection: Any) -> Item:
        # finished by a worker that was cut before it could say so
        if tools.items.get(connection, item).state is ProtectedState.PROTECTED:
            return tools.items.get(connection, item)
        return tools.items.move(connection, item, ProtectedEvent.FINALIZED, done)

    run.write(work)
    run.log(f"{found.name} is ready for a failover to {found.target_name}")
    return Done(Finalised(item=item))


def _missing(tools: Tools, run: StepRun[Any], item: Item) -> str:
    """What a failover would not find at the target's site; empty: all of it."""
    target = item.target_id
    if target is None or tools.inventories.last_read(target) is None:
        run.log(f"the site of {item.target_name} was never read: its places are not looked at", "warning")
        return ""
    pools = {one.name for one in _of(tools, target, Kind.POOL, Pool) if one.active}
    networks = {one.name for one in _of(tools, target, Kind.NETWORK, Network)}
    mapping = item.mapping
    wanted = {*mapping.pools.values(), *([mapping.default_pool] if mapping.default_pool else [])}
    lost = sorted(wanted - pools)
    if lost:
        there = ", ".join(sorted(pools)) or "none"
        return f"there is no active pool {', '.join(lost)} at {item.target_name} (there are: {there})"
    lost = sorted(set(mapping.networks.values()) - networks)
    if lost:
        there = ", ".join(sorted(networks)) or "none"
        return f"there is no network {', '.join(lost)} at {item.target_name} (there are: {there})"
    if not mapping.networks:
        run.log(f"no network is mapped: recovered, {item.name} is attached to nothing", "warning")
    return ""


def _of(tools: Tools, gateway: str, kind: Kind, shape: type[Any]) -> list[Any]:
    found = tools.inventories.list(Search(kind, [gateway]), after=None, limit=NAMES_MAX)
    return [msgspec.json.decode(entry.detail, type=shape) for entry in found]
