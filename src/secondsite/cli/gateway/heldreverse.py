"""``secondsite held reverse``, ``take-back``: a machine's former site becomes its target."""

from __future__ import annotations

import secrets
import sys
import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import format_bytes
from secondsite.cli.common.following import WentElsewhere, goes_on
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json
from secondsite.cli.gateway.failover import client_of

if TYPE_CHECKING:
    from secondsite.gateway.control.failoverclient import FailoverClient
    from secondsite.gateway.messages.reverse import ReverseState, ReverseStatus

POLL_SECONDS = 0.2
Wait = Annotated[bool, Parameter(negative="--no-wait")]


def reverse(
    machine: str,
    /,
    *,
    confirm: str = "",
    operation: str = "",
    wait: Wait = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Make this site the target of a machine that it lost: its old disks are what the other site begins with.

    The held machine is switched off and guarded, its protection here ends, and the gateway that took it over
    becomes its writer in this gateway's store. Then protect the machine there, to this site: its disks are
    compared with those here, and only what differs travels. The old disks are not changed; they go once a
    failover of this site takes the machine's place.

    For example:

        secondsite held reverse shop --confirm "what shop wrote here last is given up for the other site's"

    Parameters
    ----------
    machine
        Name or id of a held machine.
    confirm
        The sentence that the command asks for when it is not given.
    operation
        32 hexadecimal digits of your own; the same again goes on with what was begun with them.
    wait
        Wait until the other site may begin, or return at once.
    """
    from secondsite.gateway.messages.reverse import ReverseRequest, ReverseState

    with client_of(reach) as client:
        seen = client.preview_reverse(machine)
        if not listing.json:
            print(
                f"{seen.name}: {format_bytes(seen.total_bytes)} of disks are here, for {seen.writer} to "
                "compare with"
            )
            for check in seen.checks:
                if check.cause:
                    print(f"  {check.name}: {check.cause}. {check.action}".rstrip())
        request = ReverseRequest(
            operation=operation or secrets.token_hex(16), confirm=confirm, requested_by=whoami()
        )
        status = client.reverse(machine, request)
        if wait:
            status = _follow(client, status, ReverseState.READY, quiet=listing.json)
    if listing.json:
        print_json(status)
    elif wait:
        print(f"{status.name} is off here and stays so, epoch {status.epoch} is {status.writer}'s")
        print(f"next, at {status.writer}: `secondsite protect {status.name} --to` this gateway")


def take_back(
    machine: str, /, *, wait: Wait = True, reach: Reach = REACH, listing: Listing = LISTING
) -> None:
    """Take a reversal back, as long as the other site has no point here: the machine is held as before.

    For example:

        secondsite held take-back shop

    Parameters
    ----------
    machine
        Name or id of a machine that was reversed onto.
    wait
        Wait until it is held again, or return at once.
    """
    from secondsite.gateway.messages.reverse import ReverseState

    with client_of(reach) as client:
        status = client.take_back(machine)
        if wait:
            status = _follow(client, status, ReverseState.TAKEN_BACK, quiet=listing.json)
    if listing.json:
        print_json(status)
    elif wait:
        print(f"{status.name} is held as before")


def _follow(
    client: FailoverClient, status: ReverseStatus, wanted: ReverseState, *, quiet: bool
) -> ReverseStatus:
    """Poll until it is where it should be, printing each step that ended. Raises what it stopped with."""
    what, look = f"the reversal of {status.name}", "secondsite held list"
    with goes_on(what, look):
        found = _poll(client, status, wanted, quiet=quiet)
    if found.state is not wanted:
        raise WentElsewhere(what=what, state=found.state.value, look=look)
    return found


def _poll(
    client: FailoverClient, status: ReverseStatus, wanted: ReverseState, *, quiet: bool
) -> ReverseStatus:
    told: set[str] = set()
    clock, never = SystemClock(), threading.Event()
    while True:
        for step in status.steps:
            if step.ended_at is not None and step.name not in told and not quiet:
                told.add(step.name)
                print(f"  {step.name}")
                sys.stdout.flush()
        if status.error is not None:
            raise RemoteError(dict(status.error))
        if status.state is wanted or status.state.value == "TakenBack":
            return status
        clock.wait(never, POLL_SECONDS)
        status = client.reversal(status.machine)
