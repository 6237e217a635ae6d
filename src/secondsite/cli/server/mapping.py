"""``secondsite mapping``: where networks and disks of a cloud go in the one it is paired with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput, Outcome
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing, parse_pairs
from secondsite.cli.common.output import print_json, print_table
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.topology import NetworkMapping, Preview, StorageMapping

Action = Literal["show", "set", "clear"]
Flag = Annotated[bool, Parameter(negative="")]


def network(
    action: Action,
    vault: str,
    pair: str,
    /,
    *names: str,
    preview: Flag = False,
    yes: Flag = False,
    no_wait: Flag = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Show, set or clear which network of the target each network of the primary cloud is.

    An adapter on a network that is not mapped comes up attached to nothing after a failover. What would
    change is shown before it is saved; a network that is not at every host of the target is refused.

    For example:

        secondsite mapping network show north gateway-a

        secondsite mapping network set north gateway-a lan=lan-dr dmz=dmz

        secondsite mapping network clear north gateway-a dmz

    Parameters
    ----------
    action
        show, set (SOURCE=TARGET ...) or clear (SOURCE ...).
    vault
        The vault, by name or id.
    pair
        The pair's id, or the name of either cloud.
    names
        What to map, or which are not to be mapped any more.
    preview
        Only show what would change.
    yes
        Do not ask before saving.
    no_wait
        Start the job and return.
    """
    from secondsite.cli.server.jobs import started
    from secondsite.client import topology

    with reach.open() as server:
        if action == "show":
            _refuse_names(names)
            _show_networks(topology.network_mapping(server, vault, pair), listing)
            return int(Outcome.OK)
        wanted = _wanted(action, names)
        would = topology.preview_networks(server, vault, pair, wanted)
        if not _go_on(would, "network", listing, preview=preview, yes=yes):
            return int(Outcome.OK if preview or not would.changes else Outcome.CANCELLED)
        job = topology.map_networks(server, vault, pair, wanted)
        return started(server, job, listing, no_wait=no_wait)


def storage(
    action: Action,
    vault: str,
    pair: str,
    /,
    *names: str,
    default: str | None = None,
    no_default: Flag = False,
    preview: Flag = False,
    yes: Flag = False,
    no_wait: Flag = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Show, set or clear which pool of the target the disks of each pool of the primary cloud go to.

    Disks of a pool that is not mapped go to the default pool; without one, where the target's gateway is
    configured to put them. A pool that is not at every host of the target is refused.

    For example:

        secondsite mapping storage show north gateway-a

        secondsite mapping storage set north gateway-a images=fast --default slow

        secondsite mapping storage clear north gateway-a images

    Parameters
    ----------
    action
        show, set (SOURCE=TARGET ...) or clear (SOURCE ...).
    vault
        The vault, by name or id.
    pair
        The pair's id, or the name of either cloud.
    names
        What to map, or which are to go to the default pool.
    default
        With set: the pool for everything that is not named.
    no_default
        With clear: no default pool any more.
    preview
        Only show what would change.
    yes
        Do not ask before saving.
    no_wait
        Start the job and return.
    """
    from secondsite.cli.server.jobs import started
    from secondsite.client import topology

    with reach.open() as server:
        if action == "show":
            _refuse_names(names)
            _show_storage(topology.storage_mapping(server, vault, pair), listing)
            return int(Outcome.OK)
        if (default is not None and action == "clear") or (no_default and action == "set"):
            raise InvalidInput(
                what=f"mapping storage {action}", why="--default is for set, --no-default for clear"
            )
        wanted = _wanted(action, names, enough=default is not None or no_default)
        would = topology.preview_storage(
            server, vault, pair, wanted, default=default, clear_default=no_default
        )
        if not _go_on(would, "storage pool", listing, preview=preview, yes=yes):
            return int(Outcome.OK if preview or not would.changes else Outcome.CANCELLED)
        job = topology.map_storage(server, vault, pair, wanted, default=default, clear_default=no_default)
        return started(server, job, listing, no_wait=no_wait)


def _refuse_names(names: tuple[str, ...]) -> None:
    if names:
        raise InvalidInput(what=f"mapping show {names[0]!r}", why="show takes the vault and the pair only")


def _wanted(action: Action, names: tuple[str, ...], *, enough: bool = False) -> dict[str, str | None]:
    if not names and not enough:
        form = "SOURCE=TARGET" if action == "set" else "SOURCE"
        raise InvalidInput(what=f"mapping {action}", why=f"nothing is named; give {form}")
    if action == "clear":
        return dict.fromkeys(names)
    return dict(parse_pairs(list(names), "mapping"))


def _go_on(would: Preview, word: str, listing: Listing, *, preview: bool, yes: bool) -> bool:
    """Show what would change; whether to save it."""
    if listing.json:
        if preview:
            print_json(would)
        return not preview and bool(would.changes)
    print_table(
        [f"SOURCE {word.upper()}", "NOW", "THEN"],
        ((one.source, one.before or "nothing", one.after or "nothing") for one in would.changes),
        empty="It is so already: nothing would change.",
    )
    for note in would.notes:
        print(f"note: {note}")
    if preview or not would.changes:
        return False
    if yes or not sys.stdin.isatty():
        return True
    return input("Save? [y/N] ").strip().lower() in {"y", "yes"}


def _show_networks(found: NetworkMapping, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    print(f"{found.primary} -> {found.target}")
    print_table(
        ["SOURCE", "SUBNETS", "MACHINES>", "TARGET"],
        ((one.name, " ".join(one.subnets), len(one.machines), one.target) for one in found.sources),
        empty="The primary cloud has no network.",
    )
    print()
    print_table(
        ["TARGET", "SUBNETS", "AT EVERY HOST", "USED BY", "MACHINES>"],
        (
            (
                one.name,
                " ".join(one.subnets),
                f"no, not at {' '.join(one.missing_at)}" if one.missing_at else "yes",
                " ".join(one.used_by),
                len(one.used_by_machines),
            )
            for one in found.targets
        ),
        empty="The target cloud has no network.",
    )


def _show_storage(found: StorageMapping, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    print(
        f"{found.primary} -> {found.target}, default pool: {found.default_pool or 'as the gateway is set up'}"
    )
    print_table(
        ["SOURCE", "MACHINES>", "DISKS>", "TARGET"],
        (
            (
                one.name,
                len(one.machines),
                format_bytes(one.disk_bytes),
                f"{one.target} (default)" if one.target and one.by_default else one.target,
            )
            for one in found.sources
        ),
        empty="The primary cloud has no pool.",
    )
    print()
    print_table(
        ["TARGET", "FREE>", "SIZE>", "NEEDED>", "AT EVERY HOST", "USED BY"],
        (
            (
                one.name,
                format_bytes(one.free_bytes),
                format_bytes(one.capacity_bytes),
                format_bytes(one.needed_bytes),
                f"no, not at {' '.join(one.missing_at)}" if one.missing_at else "yes",
                " ".join(one.used_by),
            )
            for one in found.targets
        ),
        empty="The target cloud has no pool.",
    )
