"""``secondsite lab``: two sites and a guest on this one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secondsite.cli.common.gateways import LISTING, Listing

# One lab a machine by default; its place is short because sockets lie in it (107 bytes at most).
DEFAULT_ROOT = Path("/var/tmp/secondsite-lab")  # noqa: S108 - made by root with mode 0755, refused if foreign


def up(*, root: Path = DEFAULT_ROOT) -> int:
    """Make two sites on this machine, a gateway at each, a server at one of them, and a guest under load.

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


def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)], root: Path = DEFAULT_ROOT) -> int:
    """Run a secondsite command at site B, logged in as the owner of the lab's server.

    The server listens inside the lab only.

    For example:

        secondsite lab run item list

        secondsite lab run item protect North shop --to gateway-b

    Parameters
    ----------
    arguments
        The command, as it is typed after `secondsite`.
    root
        Directory of the lab.
    """
    from secondsite.lab.commands import run as run_there

    return run_there(arguments, root)


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
