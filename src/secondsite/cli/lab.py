"""``secondsite lab``: two sites and a guest on this one machine."""

from __future__ import annotations

from pathlib import Path

from secondsite.cli.common import LISTING, Listing

# One lab a machine by default; its place is short because sockets lie in it (107 bytes at most).
DEFAULT_ROOT = Path("/var/tmp/secondsite-lab")  # noqa: S108 - made by root with mode 0755, refused if foreign


def up(*, root: Path = DEFAULT_ROOT) -> int:
    """Make two sites on this machine, each with its own libvirt and gateway, and a guest with a workload.

    Everything is in network and mount namespaces of its own; `secondsite lab down` leaves nothing behind.
    Needs root.

    For example:

        secondsite lab up

    Parameters
    ----------
    root
        Directory that holds all of it; another one is another lab.
    """
    from secondsite.lab.commands import up as run

    return run(root)


def down(*, root: Path = DEFAULT_ROOT) -> int:
    """Remove the two sites and everything in them.

    For example:

        secondsite lab down

    Parameters
    ----------
    root
        Directory of the lab.
    """
    from secondsite.lab.commands import down as run

    return run(root)


def status(*, root: Path = DEFAULT_ROOT, listing: Listing = LISTING) -> int:
    """Show what of the lab is running, and how to reach its gateways.

    For example:

        secondsite lab status

    Parameters
    ----------
    root
        Directory of the lab.
    """
    from secondsite.lab.commands import status as run

    return run(as_json=listing.json, root=root)


def demo() -> int:
    """Run the whole story: protect, point, test failover, proof, clean-up, and a table of what was measured.

    Leaves nothing behind, also after Ctrl-C. Takes a few minutes; needs root.

    For example:

        secondsite lab demo

    """
    from secondsite.lab.demo import main as run

    return run()
