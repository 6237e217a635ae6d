"""``secondsite replica``: delete what is kept of a machine."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json, print_table, short_time

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.items import Deletion

POLL_SECONDS = 0.25


def delete(
    machine: str,
    /,
    *,
    confirm: str,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Delete the replica of a machine for good: its recovery points, images, keys and records at this site.

    Refused while its source still writes it, and while a point is served, tested or held. Goes on by itself
    when the gateway is stopped meanwhile. Nothing happens at the machine's own site.

    For example:

        secondsite replica delete shop --confirm shop

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    confirm
        The machine's name, spelled out once more.
    wait
        Wait until nothing is left and show how far it is, or return at once.
    """
    with reach.open() as client:
        found = client.delete_replica(machine, confirm=confirm, by=whoami())
        gone = wait and _wait(client, found, quiet=listing.json)
    if listing.json:
        print_json(found)
    elif gone:
        print(f"the replica of {found.name} is deleted")
    else:
        print(f"the replica of {found.name} is being deleted; see `secondsite replica deletions`")


def _wait(client: GatewayClient, deletion: Deletion, *, quiet: bool) -> bool:
    """Until it is through; False when something stands in its way, which is told."""
    clock, never = SystemClock(), threading.Event()
    told = 0
    while True:
        now = next((one for one in client.deletions() if one.machine == deletion.machine), None)
        if now is None:
            return True
        if now.error:
            print(f"it waits and is tried again: {now.error}", file=sys.stderr)
            return False
        if not quiet and now.deleted >= told + 1000:
            told = now.deleted
            print(f"{told} objects are deleted", file=sys.stderr)
        clock.wait(never, POLL_SECONDS)


def deletions(*, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List the replicas that are being deleted.

    For example:

        secondsite replica deletions
    """
    with reach.open() as client:
        found = client.deletions()
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MACHINE", "ASKED BY", "SINCE", "OBJECTS>", "WAITS FOR"],
        ((one.name, one.by, short_time(one.asked_at), one.deleted, one.error) for one in found),
        empty="No replica is being deleted.",
    )
