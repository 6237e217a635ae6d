"""``secondsite inventory``: what a site has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach
from secondsite.cli.common.output import console, print_json, print_table

if TYPE_CHECKING:
    from secondsite.gateway.messages.gateway import Inventory


def inventory(
    *,
    everything: Annotated[bool, Parameter(name=["--all", "-a"], negative="")] = False,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """List the machines of a site, and with --all its hosts, networks and pools.

    A machine that cannot be protected is listed with every reason.

    For example:

        secondsite inventory

        secondsite inventory --all --json --gateway /run/secondsite/b.sock

    Parameters
    ----------
    everything
        Hosts, networks and pools as well.
    """
    with reach.open() as client:
        found = client.inventory()
    if listing.json:
        print_json(found if everything else found.machines)
        return
    _print_machines(found)
    if everything:
        _print_rest(found)


def _print_machines(found: Inventory) -> None:
    print_table(
        ["MACHINE", "ID", "HOST", "POWER", "DISKS", "SIZE>", "AGENT", "PROTECTABLE"],
        (
            (
                machine.name,
                machine.id,
                machine.host,
                machine.power.value,
                " ".join(disk.id for disk in machine.disks),
                format_bytes(machine.size_bytes),
                "yes" if machine.agent else "no",
                f"no: {'; '.join(machine.unprotectable)}" if machine.unprotectable else "yes",
            )
            for machine in found.machines
        ),
        empty="There are no machines at this site.",
    )


def _print_rest(found: Inventory) -> None:
    out = console()
    out.print()
    print_table(
        ["HOST", "HYPERVISOR", "CPUS>", "MEMORY>"],
        ((host.name, host.hypervisor, host.cpus, format_bytes(host.memory_bytes)) for host in found.hosts),
        empty="There are no hosts.",
    )
    out.print()
    print_table(
        ["NETWORK", "ACTIVE", "ISOLATED", "SUBNETS"],
        (
            (net.name, "yes" if net.active else "no", "yes" if net.isolated else "no", " ".join(net.subnets))
            for net in found.networks
        ),
        empty="There are no networks.",
    )
    out.print()
    print_table(
        ["POOL", "PATH", "ACTIVE", "FREE>", "CAPACITY>"],
        (
            (
                pool.name,
                pool.path,
                "yes" if pool.active else "no",
                format_bytes(pool.free_bytes),
                format_bytes(pool.capacity_bytes),
            )
            for pool in found.pools
        ),
        empty="There are no pools.",
    )
