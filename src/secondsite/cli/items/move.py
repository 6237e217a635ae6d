"""``secondsite item planned-failover``: a machine moved in order through the server, with nothing lost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.failover import BY_A_PERSON, Ends, ask_for
from secondsite.cli.items.items import NoWait, run_job

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.messages import Job


def move(
    vault: str,
    item: str,
    /,
    *,
    seconds: float = 300.0,
    power_off: Annotated[bool, Parameter(negative="")] = False,
    prove: Annotated[bool, Parameter(negative="--no-proof")] = True,
    network: str = "mapped",
    name: str | None = None,
    confirm: str = "",
    ends: Ends = BY_A_PERSON,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Move a machine to its target in order: shut down, last changes, proof, taken over with nothing lost.

    Its guest is asked to shut down, by its agent and then by its power button. Where it does not in time the
    job asks you (`secondsite job resume JOB wait`, or `power-off`). Its last point holds all it ever wrote;
    that is proved by reading it whole and comparing by hash. Until the target has claimed it everything is
    taken back when something fails or the job is cancelled: it runs again where it was.

    For example:

        secondsite item planned-failover North shop

        secondsite item planned-failover North shop --seconds 60 --power-off --confirm "..."

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    seconds
        How long its guest may take to shut down.
    power_off
        If it does not, switch it off all the same, and ask nobody.
    prove
        Read all of it and compare it by hash with its last point.
    network
        mapped: as the protection maps networks; none: attached to nothing; or a network of the target's site.
    name
        Name of the machine there; its own, if not given.
    confirm
        The sentence that the command asks for when it is not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            seen = itemfailovers.preview_move(server, vault, item, network=network, name=name)
            for check in seen.checks:
                if not check.passed:
                    print(f"  {check.name}: {check.cause}. {check.action}", file=sys.stderr)
            ends.tell()
            said = ask_for(
                item, seen.confirm, "It is down from its shutdown until it runs at the other site."
            )
        wanted = {
            "seconds": seconds,
            "powerOff": power_off,
            "prove": prove,
            "network": network,
            "name": name,
            "confirm": said,
            **ends.body(),
        }
        return itemfailovers.move(server, vault, item, wanted)

    return run_job(reach, listing, begin, no_wait=no_wait)
