"""What is looked at before a machine is taken over: each with its cause and what to do."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_bytes
from secondsite.fabrics.base import Fabric
from secondsite.gateway.messages.failover import Check
from secondsite.gateway.messages.failovererrors import ChecksFailed
from secondsite.gateway.recovery.recoveredspec import MAPPED, NONE, Wanted, checks_of, merge_mapping, outlook
from secondsite.gateway.target.views import open_point_definition
from secondsite.journal.keys import VaultKey
from secondsite.model.machines import Definition, Mapping
from secondsite.model.outlook import Outlook
from secondsite.model.points import Point

# What the overlay of a machine that boots and works for some hours takes at the least.
OVERLAY_BYTES_MIN = 64 * 1024 * 1024


def look(
    fabric: Fabric | None, vault: VaultKey, site: Mapping, point: Point, wanted: Wanted
) -> tuple[Outlook | None, tuple[Check, ...]]:
    """What it would be, and all that can be known beforehand.

    Raises nothing: what cannot be asked is a check that failed.
    """
    if fabric is None:
        action = "Give it one in its configuration, or boot the machine by `secondsite rescue`."
        return None, (_failed("hypervisor", "this gateway has no hypervisor configured", action),)
    try:
        definition = open_point_definition(vault, point)
        seen = outlook(fabric, vault, site, point, wanted)
        name = wanted.name or (seen.name if seen.home else point.machine_name)
        checks = _look(fabric, site, point, definition, name=name, network=wanted.network)
        named = msgspec.structs.replace(seen, name=name)
        return named, (*checks, *checks_of(seen, wanted.settings))
    except SecondsiteError as error:
        happened, cause, action = error.sentences()
        return None, (_failed("definition", f"{happened} {cause}", action),)


def require(machine: str, checks: tuple[Check, ...]) -> None:
    """Raise ChecksFailed, naming all that failed and is required."""
    failed = [check for check in checks if check.required and not check.passed]
    if failed:
        failures = "; ".join(check.cause.rstrip(".") for check in failed)
        actions = " ".join(check.action for check in failed)
        raise ChecksFailed(machine=machine, failures=failures, actions=actions)


def _failed(name: str, cause: str, action: str, *, required: bool = True) -> Check:
    return Check(name=name, passed=False, required=required, cause=cause, action=action)


def _look(
    fabric: Fabric, site: Mapping, point: Point, definition: Definition, *, name: str, network: str
) -> Iterator[Check]:
    yield Check(name="definition", passed=True)
    yield from _identity(fabric, point, name)
    mapping = merge_mapping(definition.mapping, site)
    yield from _networks(fabric, mapping, network)
    yield from _pools(fabric, mapping, sum(disk.size_bytes for disk in point.disks))


def _identity(fabric: Fabric, point: Point, name: str) -> Iterator[Check]:
    others = [machine for machine in fabric.machines() if machine.name == name or machine.id == point.machine]
    for machine in others:
        same = "the id" if machine.id == point.machine else "the name"
        yield _failed(
            "identity",
            f"a machine with {same} of {point.machine_name} is at this site already: {machine.name}",
            "Remove it, or take the machine over under another name (--name) at another host.",
        )
    if not others:
        yield Check(name="identity", passed=True)


def _networks(fabric: Fabric, mapping: Mapping, network: str) -> Iterator[Check]:
    known = {found.name: found for found in fabric.networks()}
    wanted = sorted(set(mapping.networks.values())) if network == MAPPED else [network]
    shown = ", ".join(sorted(known)) or "none"
    if network == NONE or not wanted:
        cause = "it will be attached to no network: " + (
            "none was asked for" if network == NONE else "none is mapped"
        )
        yield _failed("networks", cause, "Map its networks (`secondsite protect --network`).", required=False)
        return
    bad = [name for name in wanted if name not in known or not known[name].active]
    for name in bad:
        why = "is not active" if name in known else f"does not exist at this site (there are: {shown})"
        yield _failed("networks", f"the network {name} {why}", "Make or start it, or name another one.")
    if not bad:
        yield Check(name="networks", passed=True)


def _pools(fabric: Fabric, mapping: Mapping, size_bytes: int) -> Iterator[Check]:
    pools = {pool.name: pool for pool in fabric.pools() if pool.active}
    wanted = {*mapping.pools.values(), *([mapping.default_pool] if mapping.default_pool else [])}
    shown = ", ".join(sorted(pools)) or "none"
    missing = sorted(wanted - set(pools)) if pools else ["of any name"]
    for name in missing:
        cause = f"there is no active storage pool {name} at this site (there are: {shown})"
        yield _failed("storage", cause, "Start the pool, or map the disks to another one.")
    if missing:
        return
    free = min((pools[name].free_bytes for name in wanted or pools), default=0)
    if free < OVERLAY_BYTES_MIN:
        cause = f"the storage pool has {format_bytes(free)} free, a machine needs some for what it writes"
        yield _failed("storage", cause, "Make room, or map the disks to another pool.")
    elif free < size_bytes:
        cause = f"the pool has {format_bytes(free)} free; a commit may need up to {format_bytes(size_bytes)}"
        yield _failed("storage", cause, "Make room before it is committed.", required=False)
    else:
        yield Check(name="storage", passed=True)
