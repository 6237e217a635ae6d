"""``secondsite failover stop`` and ``cancel-stop``: a machine of this site, before it is moved."""

from __future__ import annotations

import secrets
import threading
from typing import Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import Outcome, RemoteError
from secondsite.cli.common.following import goes_on
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json
from secondsite.cli.gateway.failover import POLL_SECONDS, client_of


def stop(
    machine: str,
    /,
    *,
    seconds: float = 300.0,
    power_off: Annotated[bool, Parameter(negative="")] = False,
    prove: Annotated[bool, Parameter(negative="--no-proof")] = True,
    operation: str | None = None,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> int:
    """Stop a machine of this site in order and carry its last changes over, before it is moved.

    Its guest is asked to shut down, by its agent and then by its power button. Then its last point is made,
    which holds all it ever wrote; that is proved by reading it whole and comparing by hash. It stays isolated
    and off until the other site takes it over, or the stop is cancelled.

    For example:

        secondsite failover stop shop

        secondsite failover stop shop --seconds 60 --power-off

    Parameters
    ----------
    machine
        Name or id of a machine that this gateway protects.
    seconds
        How long its guest may take to shut down.
    power_off
        If it does not, switch it off all the same; without this it runs on.
    prove
        Read all of it and compare it by hash with its last point.
    operation
        32 hexadecimal digits of your own; the same again goes on with what was begun with them.
    """
    from secondsite.gateway.messages.failover import PlannedStop

    clock, never = SystemClock(), threading.Event()
    with client_of(reach) as client:
        request = PlannedStop(
            operation=operation or secrets.token_hex(16),
            seconds_max=seconds,
            power_off=power_off,
            prove=prove,
            requested_by=whoami(),
        )
        found, shown = client.stop_in_order(machine, request), 0
        again = f"secondsite failover stop {machine} --operation {request.operation}"
        with goes_on(f"the stop of {found.name}", again):
            while True:
                ended = [step for step in found.steps if step.ended_at is not None]
                for step in ended[shown:] if not listing.json else ():
                    print(f"  {step.name}", flush=True)
                shown = max(shown, len(ended))
                if found.state not in ("ShuttingDown", "LastChanges", "Proving"):
                    break
                clock.wait(never, POLL_SECONDS)
                found = client.planned_stop(machine)
    if found.error is not None:
        raise RemoteError(dict(found.error))
    if listing.json:
        print_json(found)
    elif found.state == "Completed":
        proof = "proved by hash: nothing is lost" if found.proved else "not proved"
        print(f"{found.name} is off; point {found.point} holds all of it ({proof})")
    else:
        print(f"{found.name} runs on: {found.note}")
    return int(Outcome.OK if found.state == "Completed" else Outcome.REFUSED)


def cancel_stop(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Let a machine of this site run again that was stopped to be moved and was not taken over.

    For example:

        secondsite failover cancel-stop shop

    Parameters
    ----------
    machine
        Name or id of a machine that this gateway protects.
    """
    with client_of(reach) as client:
        found = client.cancel_stop(machine)
    if listing.json:
        print_json(found)
    else:
        print(f"{found.name} runs again and is replicated as before")
