"""``secondsite pause``, ``resume`` and ``resync``."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.gateway import ProtectionStatus

POLL_SECONDS = 0.25


def pause(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Stop making recovery points of a machine until it is resumed; nothing is lost.

    Its host goes on tracking what changes, and what was captured already is still sent. The first point after
    `secondsite resume` holds all of it, without a new copy. The pause outlives restarts of the gateway.

    For example:

        secondsite pause shop

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    """
    with reach.open() as client:
        status = client.pause(machine, by=whoami())
    if listing.json:
        print_json(status)
    else:
        waiting = f"; {format_bytes(status.spool_bytes)} are still being sent" if status.spool_bytes else ""
        print(f"{status.name} is paused by {status.paused_by}{waiting}.")


def resume(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Make recovery points of a paused machine again.

    For example:

        secondsite resume shop

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    """
    with reach.open() as client:
        status = client.resume(machine, by=whoami())
    if listing.json:
        print_json(status)
    else:
        print(f"{status.name} is no longer paused; its next recovery point holds all that changed.")


def resync(
    machine: str,
    /,
    *,
    number: int | None = None,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Compare all of a machine with its replica, and send what differs.

    For when the replica is in doubt, or tracking at the host is. Nothing is written over: the differences
    become a new recovery point, and older points stay as they are. A machine that is paused is compared once
    it is resumed.

    For example:

        secondsite resync shop

        secondsite resync shop --number 3 --no-wait

    Parameters
    ----------
    machine
        Name or id of a protected machine.
    number
        Which comparison this is, for scripts: one that was done or is under way is not begun again. The next,
        if not given.
    wait
        Wait until it is done and show how far it is, or return at once.
    """
    from secondsite.gateway.messages.items import ResyncRequest

    with reach.open() as client:
        status = client.resync(machine, ResyncRequest(by=whoami(), number=number))
        if wait and not status.paused_by:
            status = _wait(client, status, quiet=listing.json)
    if listing.json:
        print_json(status)
    elif status.resynced >= status.resync:
        print(f"{status.name} was compared with its replica (resync {status.resynced}); see its events.")
    else:
        print(f"{status.name} will be compared with its replica (resync {status.resync}).")


def _wait(client: GatewayClient, status: ProtectionStatus, *, quiet: bool) -> ProtectionStatus:
    from secondsite.cli.common.progress import CopyProgress

    clock, never = SystemClock(), threading.Event()
    with CopyProgress(status.name, quiet=quiet, doing="comparison of") as progress:
        while status.resynced < status.resync and not status.paused_by:
            progress.show(status.first_copy, status.note)
            clock.wait(never, POLL_SECONDS)
            status = client.protection(status.machine)
        progress.done(status.first_copy)
    return status
