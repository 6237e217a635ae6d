"""``secondsite item``: machines under protection at a server, and what may be asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing, parse_pairs
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from collections.abc import Callable

    from secondsite.client.client import ServerClient
    from secondsite.client.items import Item, ItemDetail
    from secondsite.client.messages import Job, Thing

NoWait = Annotated[bool, Parameter(negative="")]
Health = Literal["Normal", "Warning", "Critical"]


@Parameter(name="*")
@dataclass(frozen=True)
class Only:
    """What a listing is limited to."""

    state: list[str] | None = None
    """Only in this state (as the listing shows it); may be given several times. Ended ones: Unprotected."""
    health: list[Health] | None = None
    """Only of this health; may be given several times."""
    gateway: Annotated[str | None, Parameter(name="--of")] = None
    """Only with this gateway at either end."""
    name: str = ""
    """Only names with this in them, in whatever case."""


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Where things of the source go at the target; otherwise as the sites are mapped."""

    network: Annotated[list[str] | None, Parameter(negative="")] = None
    """THERE=HERE: the source's network and the target's; may be given several times."""
    pool: Annotated[list[str] | None, Parameter(negative="")] = None
    """THIS=OTHER: the source's storage pool and the target's; may be given several times."""
    default_pool: str | None = None
    """The target's pool for disks whose pool is not mapped."""

    def body(self) -> dict[str, object] | None:
        """As the API takes it; None: nothing was given. Raises InvalidInput."""
        if self.network is None and self.pool is None and self.default_pool is None:
            return None
        networks, pools = parse_pairs(self.network, "--network"), parse_pairs(self.pool, "--pool")
        return {"networks": networks, "pools": pools, "defaultPool": self.default_pool}


EVERYTHING, AS_MAPPED = Only(), Where()


def list_items(
    vault: str | None = None,
    /,
    *,
    only: Only = EVERYTHING,
    limit: int = 1000,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List protected items by name: where each stands, how old its newest recovery point is.

    For example:

        secondsite item list

        secondsite item list North --health Critical --health Warning

        secondsite item list North --name shop --json

    Parameters
    ----------
    vault
        Only those of this vault.
    limit
        At most so many.
    """
    from secondsite.client import items

    with reach.open() as server:
        found = list(
            islice(
                items.items(
                    server,
                    vault,
                    states=only.state or (),
                    health=only.health or (),
                    provider=only.gateway,
                    name=only.name,
                ),
                limit,
            )
        )
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "STATE", "HEALTH", "RPO>", "POINTS>", "FROM", "TO", "DAYS>", "ID"],
        (
            (
                one.name,
                _state(one),
                one.health,
                _age(one.rpo_seconds),
                one.recovery_points,
                one.provider,
                one.target_provider,
                "" if one.protected_days is None else one.protected_days,
                one.id,
            )
            for one in found
        ),
        empty="Nothing is protected. Protect a machine with `secondsite item protect`.",
    )


def show(vault: str, item: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show a protected item: where it stands, what is wrong with it and who can fix that, what is possible.

    For example:

        secondsite item show North shop

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name where no other has it.
    """
    from secondsite.client import items

    with reach.open() as server:
        found = items.item(server, vault, item)
    if listing.json:
        print_json(found)
    else:
        _tell(found)


def counts(vault: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Tell how many machines a vault protects now, and for how many days.

    For example:

        secondsite item counts North

    Parameters
    ----------
    vault
        Its name or id.
    """
    from secondsite.client import items

    with reach.open() as server:
        found = items.counts(server, vault)
    if listing.json:
        print_json(found)
        return
    since = "" if found.protected_days is None else f", the first {found.protected_days} days ago"
    print(f"{found.protected} protected of {found.items} items{since}")
    rows = [*sorted(found.by_state.items()), *sorted(found.by_health.items())]
    print_table(["WHAT", "ITEMS>"], rows, empty="Nothing is protected.")


def protect(
    vault: str,
    machine: str,
    /,
    *,
    to: str | None = None,
    gateway: Annotated[str | None, Parameter(name="--of")] = None,
    policy: str | None = None,
    disk: Annotated[list[str] | None, Parameter(negative="")] = None,
    leave_out: Annotated[list[str] | None, Parameter(negative="")] = None,
    where: Where = AS_MAPPED,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Protect a machine: look whether it can be, copy it, finalise. Ctrl-C leaves the job running.

    Before anything is copied the recovery key of the machine's gateway must have been proved
    (`secondsite gateway prove-key`).

    For example:

        secondsite item protect North shop

        secondsite item protect North shop --to gateway-b --policy Gold --leave-out vdb --no-wait

        secondsite item protect North shop --of gateway-a --to gateway-b --network lan=lan --default-pool fast

    Parameters
    ----------
    vault
        The vault's name or id.
    machine
        Name or id of the machine, as `secondsite site machines` shows it.
    to
        The gateway that keeps the replica; one of the cloud that the machine's is paired with, if not given.
    gateway
        The gateway that protects it; the closest to the machine's host, if not given.
    policy
        Name or id of the policy; the built-in one, if not given.
    disk
        Only this disk; may be given several times. All disks, also those to come, if not given.
    leave_out
        Not this disk; may be given several times.
    no_wait
        Begin and return.
    """
    return _protect(
        reach,
        listing,
        (vault, machine, gateway),
        {
            "targetProvider": to,
            "policy": policy,
            "disks": disk,
            "leftOut": leave_out or [],
            "mapping": where.body(),
        },
        no_wait=no_wait,
    )


def adopt(
    vault: str,
    machine: str,
    /,
    *,
    to: str,
    raw: Annotated[list[str] | None, Parameter(negative="")] = None,
    qcow2: Annotated[list[str] | None, Parameter(negative="")] = None,
    gateway: Annotated[str | None, Parameter(name="--of")] = None,
    policy: str | None = None,
    where: Where = AS_MAPPED,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Protect a machine of which the other site has a copy already: only what differs travels.

    For example:

        secondsite item adopt North shop --to gateway-b --qcow2 vda=/pool/shop.qcow2 --no-wait

    Parameters
    ----------
    vault
        The vault's name or id.
    machine
        Name or id of the machine, as `secondsite site machines` shows it.
    to
        The gateway whose site has the copies, and that keeps the replica.
    raw
        DISK=PATH: a raw image of this disk at that site; may be given several times.
    qcow2
        DISK=PATH: a qcow2 image of this disk at that site; may be given several times.
    gateway
        The gateway that protects it; needed only where several sites have a machine of that name.
    policy
        Name or id of the policy; the built-in one, if not given.
    no_wait
        Begin and return.
    """
    images: dict[str, object] = {}
    for form, given in (("raw", raw), ("qcow2", qcow2)):
        for disk, path in parse_pairs(given, f"--{form}").items():
            images[disk] = {"path": path, "format": form}
    if not images:
        raise InvalidInput(what="the adoption", why="it names no image: give --raw or --qcow2 DISK=PATH")
    wanted: dict[str, object] = {"targetProvider": to, "policy": policy, "images": images}
    wanted["mapping"] = where.body()
    return _protect(reach, listing, (vault, machine, gateway), wanted, no_wait=no_wait)


# what the commands share, those of the other modules too


def _protect(
    reach: ServerReach,
    listing: Listing,
    which: tuple[str, str, str | None],
    wanted: dict[str, object],
    *,
    no_wait: bool,
) -> int:
    from secondsite.client import items

    vault, machine, gateway = which

    def begin(server: ServerClient) -> Job:
        found = _machine(server, machine, gateway, wanted["targetProvider"])
        # several gateways of a site tell of the same machine: then the server chooses
        provider = found[0].provider if len(found) == 1 else gateway
        body = {"machine": found[0].id, "provider": provider, **wanted}
        return items.protect(server, vault, {key: value for key, value in body.items() if value is not None})

    return run_job(reach, listing, begin, no_wait=no_wait)


def _machine(server: ServerClient, machine: str, gateway: str | None, target: object) -> list[Thing]:
    """One machine by name or id, as each gateway that knows it tells of it. Raises MachineNotFound."""
    from secondsite.cli.server.site import MachineNotFound, machines_called

    found = [one for one in machines_called(server, machine, gateway) if one.provider != target]
    if len({thing.id for thing in found}) != 1:
        raise MachineNotFound(
            machine=machine,
            where=f"the site of gateway {gateway}" if gateway else "any site but the target's",
            count=len({thing.id for thing in found}) or "no",
        )
    return found


def run_job(
    reach: ServerReach, listing: Listing, begin: Callable[[ServerClient], Job], *, no_wait: bool
) -> int:
    """Begin a job and follow it, or say how to; the command's exit code."""
    from secondsite.cli.server.jobs import started

    with reach.open() as server:
        return started(server, begin(server), listing, no_wait=no_wait)


def _state(item: Item) -> str:
    words = item.state
    if item.copying is not None and item.copying.total_bytes:
        words += f" {item.copying.done_bytes / item.copying.total_bytes:.0%}"
    return f"{words} (bitmap mode)" if item.bitmap_mode else words


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _tell(item: ItemDetail) -> None:
    print(f"{item.name}: {_state(item)} since {short_time(item.state_since)}, health {item.health}")
    print(f"  id         {item.id} (machine {item.machine})")
    print(f"  from       {item.provider}")
    print(f"  to         {item.target_provider}")
    disks = "all" if item.disks is None else ", ".join(item.disks)
    print(f"  disks      {disks}" + (f" but {', '.join(item.left_out)}" if item.left_out else ""))
    policy = item.policy
    named = item.policy_id or "built-in"
    print(f"  policy     {named}: every {policy['copyFrequencySeconds']} s, keeps {policy['retention']}")
    mapped = [f"{a} -> {b}" for a, b in (*item.mapping.networks.items(), *item.mapping.pools.items())]
    rest = item.mapping.default_pool
    print(f"  mapping    {', '.join(mapped) or 'nothing'}" + (f"; other disks -> {rest}" if rest else ""))
    newest = f"newest {short_time(item.last_point_at)}" if item.last_point_at else "none yet"
    age = f", {_age(item.rpo_seconds)} old" if item.rpo_seconds is not None else ""
    print(f"  points     {item.recovery_points}, {newest}{age}")
    if item.first_protected_at:
        print(f"  protected  first {short_time(item.first_protected_at)}, {item.protected_days} days")
    if item.copying is not None:
        done, total = format_bytes(item.copying.done_bytes), format_bytes(item.copying.total_bytes)
        left = "" if item.copying.seconds_left is None else f", {_age(item.copying.seconds_left)} left"
        print(f"  copying    {done} of {total}{left}")
    if item.test_failover is not None:
        print(f"  test       {item.test_failover.name} at {item.target_provider}: {item.test_failover.state}")
    _tell_failover(item)
    if item.taken_revision < item.revision:
        print(f"  waits      until {item.provider} takes revision {item.revision}")
    for problem in item.health_errors:
        print(f"  {problem.severity.lower()}: {problem.happened}")
        print(f"    cause:   {problem.possible_causes}")
        print(f"    action:  {problem.recommended_action} ({problem.who_can_fix})")
    if item.left_behind:
        print(f"  left behind: {item.left_behind}")
    if item.live_job:
        print(f"  job        {item.live_job}: follow it with `secondsite job follow {item.live_job}`")
    print(f"  possible   {', '.join(item.allowed_operations) or 'nothing now'}")


def _tell_failover(item: ItemDetail) -> None:
    over, held = item.failover, item.held
    if over is not None:
        loss = over.expected_loss_seconds if over.loss_seconds is None else over.loss_seconds
        seen = "user space seen" if over.userspace_at else "console seen" if over.console_at else ""
        words = [
            f"{over.kind.lower()}, {over.state}, as {over.name} at {item.target_provider}",
            f"point {over.point} of {short_time(over.point_at)}",
            f"{'lost' if over.loss_seconds is not None else 'expected loss'} {_age(loss)}",
            *([f"epoch {over.epoch}"] if over.epoch is not None else []),
            *([f"booted {short_time(over.booted_at)}"] if over.booted_at else []),
            *([seen] if seen else []),
            *([f"replica {over.kept}"] if over.kept else []),
        ]
        print(f"  failover   {'; '.join(words)}")
        if over.note:
            print(f"    {over.note}")
    if held is not None:
        decided = f", by {held.decided_by}" if held.decided_by else ""
        how = "took it over for good" if held.final else "took it over"
        print(f"  held       {held.state} at {held.provider}{decided}: {held.claimant} {how}")
