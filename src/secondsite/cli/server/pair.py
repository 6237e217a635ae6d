"""``secondsite pair``: which cloud's machines are recovered in which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import UNKNOWN, print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.topology import Pair, Way

NoWait = Annotated[bool, Parameter(negative="")]


def create(
    vault: str,
    primary: str,
    target: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Pair two clouds: machines of the first are recovered in the second.

    A job asks every host of the first whether it reaches the second: a real connection, both certificates,
    versions, clocks, room in the store. One that fails is named with what to do; then `secondsite job retry`
    asks again, `secondsite job cancel` takes the pair back. A cloud is in one pair.

    For example:

        secondsite pair create north gateway-a gateway-b

    Parameters
    ----------
    vault
        The vault, by name or id.
    primary
        The cloud whose machines are to be protected.
    target
        The cloud they are recovered in.
    no_wait
        Start the job and return.
    """
    from secondsite.cli.server.jobs import started
    from secondsite.client import topology

    with reach.open() as server:
        job = topology.create_pair(server, vault, primary, target)
        return started(server, job, listing, no_wait=no_wait)


def list_pairs(vault: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List a vault's pairs of clouds.

    For example:

        secondsite pair list north

    Parameters
    ----------
    vault
        The vault, by name or id.
    """
    from secondsite.client import topology

    with reach.open() as server:
        found = list(topology.pairs(server, vault))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["PRIMARY", "TARGET", "STATE", "HOSTS READY>", "NETWORKS MAPPED>", "DEFAULT POOL"],
        (
            (
                one.primary,
                one.target,
                one.state,
                f"{sum(host.ready is True for host in one.hosts)} of {len(one.hosts)}",
                len(one.networks),
                one.default_pool,
            )
            for one in found
        ),
        empty="No clouds are paired. See `secondsite cloud list`, then `secondsite pair create`.",
    )


def show(vault: str, pair: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show a pair, and what each host said the last time it was asked.

    For example:

        secondsite pair show north gateway-a

    Parameters
    ----------
    vault
        The vault, by name or id.
    pair
        Its id, or the name of either cloud.
    """
    from secondsite.client import topology

    with reach.open() as server:
        found = topology.pair(server, vault, pair)
    if listing.json:
        print_json(found)
    else:
        _tell(found)


def check(
    vault: str,
    pair: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Ask every host of the primary cloud again whether it reaches the target.

    For example:

        secondsite pair check north gateway-a

    Parameters
    ----------
    vault
        The vault, by name or id.
    pair
        Its id, or the name of either cloud.
    no_wait
        Start the job and return.
    """
    from secondsite.cli.server.jobs import started
    from secondsite.client import topology

    with reach.open() as server:
        job = topology.check_pair(server, vault, pair)
        code = started(server, job, listing, no_wait=no_wait)
        if not (no_wait or listing.json):
            _tell(topology.pair(server, vault, pair))
        return code


def delete(vault: str, pair: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Delete a pair with its mappings; refused while machines are protected with it.

    For example:

        secondsite pair delete north gateway-a

    Parameters
    ----------
    vault
        The vault, by name or id.
    pair
        Its id, or the name of either cloud.
    """
    from secondsite.client import topology

    with reach.open() as server:
        found = topology.pair(server, vault, pair)
        topology.delete_pair(server, vault, found.id)
    print(f"the pair {found.primary} -> {found.target} is deleted")


def picture(vault: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Draw a vault's sites, clouds, hosts and pairs as a Mermaid diagram, for documents.

    For example:

        secondsite pair picture north

    Parameters
    ----------
    vault
        The vault, by name or id.
    """
    from secondsite.cli.common.picture import drawn
    from secondsite.client import topology

    with reach.open() as server:
        print(drawn(list(topology.clouds(server, vault)), list(topology.pairs(server, vault))), end="")


def _tell(found: Pair) -> None:
    ends = f"{found.primary} ({found.primary_fabric}) -> {found.target} ({found.target_fabric})"
    print(f"{ends}: {found.state}, since {short_time(found.created_at)}, by {found.created_by}")
    rows: list[tuple[str, ...]] = []
    for host in found.hosts:
        state = {True: "yes", False: "NO", None: "not asked yet"}[host.ready]
        rows += [(host.name, state, *_way(way)) for way in host.ways]
        if not host.ways:
            rows.append((host.name, state, "", "", "", "", ""))
    print_table(
        ["HOST", "READY", "WAY", "REACHED", "ROUND TRIP>", "CLOCK>", "ROOM>"],
        rows,
        empty="The primary cloud has no host.",
    )
    for host in found.hosts:
        for problem in host.problems:
            print(f"{host.name}: {problem.happened}\n  cause:  {problem.cause}\n  action: {problem.action}")


def _way(way: Way) -> tuple[str, ...]:
    trip = UNKNOWN if way.round_trip_seconds is None else f"{way.round_trip_seconds * 1000:.1f} ms"
    clock = UNKNOWN if way.clock_seconds is None else f"{way.clock_seconds:+.1f} s"
    room = UNKNOWN if way.free_bytes is None else format_bytes(way.free_bytes)
    return f"{way.provider} to {way.target}", "yes" if way.ok else "NO", trip, clock, room
