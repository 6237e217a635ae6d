"""``secondsite lab``: two sites and a guest on this one machine."""

from __future__ import annotations

from secondsite.cli.common import LISTING, Listing


def up() -> int:
    """Make two sites on this machine, each with its own libvirt and gateway, and a guest with a workload.

    Everything is in network and mount namespaces of its own; `secondsite lab down` leaves nothing behind.
    Needs root.

    For example:

        secondsite lab up

    """
    from secondsite.lab.commands import up as run

    return run()


def down() -> int:
    """Remove the two sites and everything in them.

    For example:

        secondsite lab down

    """
    from secondsite.lab.commands import down as run

    return run()


def status(*, listing: Listing = LISTING) -> int:
    """Show what of the lab is running, and how to reach its gateways.

    For example:

        secondsite lab status

    """
    from secondsite.lab.commands import status as run

    return run(as_json=listing.json)


def demo() -> int:
    """Run the whole story: protect, point, test failover, proof, clean-up, and a table of what was measured.

    Leaves nothing behind, also after Ctrl-C. Takes a few minutes; needs root.

    For example:

        secondsite lab demo

    """
    from secondsite.lab.demo import main as run

    return run()
