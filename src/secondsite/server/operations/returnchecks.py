"""What is looked at before a machine is protected in the other direction: each with its cause and cure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from secondsite.base.errors import RemoteError
from secondsite.model.machines import Machine, Network, Pool
from secondsite.server.identity.gateways import Gateway
from secondsite.server.inventory.service import Kind, Search, parse_told
from secondsite.server.items.records import Item
from secondsite.server.items.returnerrors import (
    NotHeldYet,
    NoWayBack,
    RecoveryMachineGone,
    ReturnRefused,
    SiteUnread,
)
from secondsite.server.jobs.definitions import RetryAfter
from secondsite.server.jobs.run import StepRun
from secondsite.server.operations.asking import Asked
from secondsite.server.operations.failoverparts import ASK_SECONDS, Check
from secondsite.server.operations.finalise import NAMES_MAX
from secondsite.server.operations.tools import Tools, ask_fresh
from secondsite.server.topology.addresses import addresses_of
from secondsite.transfer.desired import WantedMapping

# The field says that a machine may be unknown to its server for so long after it was booted elsewhere.
REGISTER_SECONDS_MAX = 900.0
REGISTER_LOOK_SECONDS = 10.0
MACHINE_GONE = frozenset({"reverse.machine-gone", "reverse.disks-gone"})
# Of its names a gateway's control API says the one, of what it kept the other.
NOT_HELD = frozenset({"machine.not-here", "held.unknown"})


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """As a gateway tells why it does not reach another."""

    happened: str = ""
    cause: str = ""
    action: str = ""


class _Reached(msgspec.Struct, frozen=True, kw_only=True):
    ok: bool
    problems: tuple[Problem, ...] = ()


class ReversePreview(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the old site would do with the old disks (`gateway.reversemessages`)."""

    name: str
    writer: str
    total_bytes: int = 0
    confirm: str
    checks: tuple[Check, ...] = ()


def waited(run: StepRun[Any], since: str) -> float:
    """Seconds since a moment of the server's clock."""
    return (run.clock.utc() - datetime.fromisoformat(since)).total_seconds()


def there(tools: Tools, run: StepRun[Any], item: Item, gateway: Gateway, since: str) -> Machine | RetryAfter:
    """The machine as its site tells it now. For a while after its boot nobody may have told of it.

    Raises RecoveryMachineGone, what the gateway says, InventoryRefused.
    """
    asked = Asked(gateway.id, gateway.name, "GET", "/v1/inventory", seconds_max=ASK_SECONDS, key="site")
    told = ask_fresh(tools, run, asked, msgspec.Raw)
    if isinstance(told, RetryAfter):
        return told
    site = parse_told(gateway.id, bytes(told).decode())
    tools.inventories.record(gateway.id, site)
    found = next((one for one in site.machines if one.id == item.machine), None)
    if found is not None:
        return found
    if waited(run, since) > REGISTER_SECONDS_MAX:
        raise RecoveryMachineGone(gateway=gateway.name, name=item.name, seconds=REGISTER_SECONDS_MAX)
    text = f"gateway {gateway.name} does not tell of {item.name} yet: it is asked again"
    return RetryAfter(REGISTER_LOOK_SECONDS, text)


def reaches(tools: Tools, run: StepRun[Any], source: Gateway, target: Gateway) -> RetryAfter | None:
    """Raises NoWayBack unless the new source can send to the target."""
    with tools.items.database.read() as connection:
        address = addresses_of(connection, [target.id])[target.id]
    known = {"url": address.said, "guess": address.guess}
    query = urlencode({name: url for name, url in known.items() if url is not None})
    path = f"/v1/peers/{quote(target.name, safe='')}/check" + (f"?{query}" if query else "")
    asked = Asked(source.id, source.name, "GET", path, seconds_max=ASK_SECONDS, key="way")
    told = ask_fresh(tools, run, asked, _Reached)
    if isinstance(told, RetryAfter):
        return told
    if not told.ok:
        first = told.problems[0] if told.problems else Problem(happened="it says no more.")
        raise NoWayBack(
            source=source.name, target=target.name, why=first.happened, action=first.action or "Open it."
        )
    return None


def old_copy(
    tools: Tools, run: StepRun[Any], item: Item, gateway: Gateway, since: str
) -> ReversePreview | RetryAfter | None:
    """What its old site would do with the old disks; None: nothing of it is left there.

    Raises ReturnRefused naming all that is in the way, NotHeldYet, what the gateway says.
    """
    path = f"/v1/held/{quote(item.machine, safe='')}/reverse/preview"
    asked = Asked(gateway.id, gateway.name, "GET", path, seconds_max=ASK_SECONDS, key="old")
    try:
        seen = ask_fresh(tools, run, asked, ReversePreview)
    except RemoteError as error:
        code = error.body.get("code")
        if code in MACHINE_GONE:
            run.log(str(error))
            return None
        if code not in NOT_HELD:
            raise
        return _not_held(tools, run, item, gateway, since)
    if isinstance(seen, RetryAfter):
        return seen
    failed = [check for check in seen.checks if check.required and not check.passed]
    for check in seen.checks:
        if not check.passed and not check.required:
            run.log(check.cause, "warning")
    if failed:
        raise ReturnRefused(
            name=item.name,
            source=item.target_name,
            target=gateway.name,
            failures="; ".join(check.cause.rstrip(".") for check in failed),
            actions=" ".join(check.action for check in failed),
        )
    return seen


def _not_held(tools: Tools, run: StepRun[Any], item: Item, gateway: Gateway, since: str) -> RetryAfter | None:
    """A site without the machine has nothing to hold; another one learns of the failover by and by."""
    if old_machine(tools, gateway.id, item.machine) is None:
        return None
    if waited(run, since) > REGISTER_SECONDS_MAX:
        raise NotHeldYet(gateway=gateway.name, name=item.name, seconds=REGISTER_SECONDS_MAX)
    text = f"gateway {gateway.name} has not isolated the old {item.name} yet: it is asked again"
    return RetryAfter(REGISTER_LOOK_SECONDS, text)


def old_machine(tools: Tools, gateway: str, machine: str) -> Machine | None:
    """The machine as another site told it last, where that site has one of the same id."""
    found = tools.inventories.list(Search(Kind.MACHINE, [gateway]), after=None, limit=NAMES_MAX)
    return next((msgspec.json.decode(one.detail, type=Machine) for one in found if one.id == machine), None)


def places(tools: Tools, item: Item, target: Gateway, machine: Machine, mapping: WantedMapping) -> list[str]:
    """Raises SiteUnread, or ReturnRefused where a disk would have no place; what else is to be known."""
    last = tools.inventories.last_read(target.id)
    if last is None or last.read_at is None:
        raise SiteUnread(gateway=target.name)
    failures = list(_placeless(tools, target, machine, mapping))
    if failures:
        raise ReturnRefused(
            name=item.name,
            source=item.target_name,
            target=target.name,
            failures="; ".join(failures),
            actions=f"Map the pools and networks of the two sites (`secondsite mapping`), or give them with "
            f"--pool, --default-pool and --network; {target.name} must be able to write the pools named.",
        )
    notes = [
        f"network {nic.network} is not mapped: its adapter comes up attached to nothing"
        for nic in machine.nics
        if nic.network is not None and nic.network not in mapping.networks
    ]
    taken = [one.name for one in _named(tools, target, machine.name) if one.id != machine.id]
    if taken:
        notes.append(f"another machine at {target.name} is named {machine.name}: it is in the way later")
    return notes


def _placeless(tools: Tools, target: Gateway, machine: Machine, mapping: WantedMapping) -> Iterator[str]:
    pools = {one.name for one in _of(tools, target, Kind.POOL, Pool) if one.active}
    networks = {one.name for one in _of(tools, target, Kind.NETWORK, Network)}
    pooled = [disk for disk in machine.disks if disk.pool is not None]  # the others lie where they are put
    if pooled and not pools:
        yield f"there is no active storage pool at {target.name}"
        return
    for disk in pooled:
        place = mapping.pools.get(disk.pool or "", mapping.default_pool)
        if place is None:
            yield f"disk {disk.id} (pool {disk.pool or 'none'}) has no place at {target.name}"
        elif place not in pools:
            yield f"there is no active pool {place} at {target.name} for disk {disk.id}"
    for network in sorted(set(mapping.networks.values()) - networks):
        yield f"there is no network {network} at {target.name}"


def _of(tools: Tools, gateway: Gateway, kind: Kind, shape: type[Any]) -> list[Any]:
    found = tools.inventories.list(Search(kind, [gateway.id]), after=None, limit=NAMES_MAX)
    return [msgspec.json.decode(entry.detail, type=shape) for entry in found]


def _named(tools: Tools, gateway: Gateway, name: str) -> list[Machine]:
    return [one for one in _of(tools, gateway, Kind.MACHINE, Machine) if one.name == name]
