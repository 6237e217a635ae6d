"""``secondsite held``: sources whose machines were taken over elsewhere, and what a person decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.gateway.failover import client_of

if TYPE_CHECKING:
    from secondsite.gateway.control.failoverclient import FailoverClient
    from secondsite.gateway.messages.failover import HeldMachine


# as `failovermessages.Removal`, which is not imported for every command
Removal = Literal["nothing", "machine", "machine-and-disks"]


def list_held(*, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List machines of this site that are held because they run elsewhere, and what was decided of others.

    A held machine has its links down and is paused; what it wrote after its last point is on its disks alone,
    and nothing of it is deleted.

    For example:

        secondsite held list

    """
    with client_of(reach) as client:
        found = client.held()
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MACHINE", "STATE", "RUNS AT", "EPOCH>", "HELD SINCE", "LAST POINT>", "OF", "DECIDED BY", "NOTE"],
        (
            (
                each.name,
                each.state.value,
                each.claimant,
                each.epoch,
                short_time(each.held_at),
                each.last_point or "",
                short_time(each.last_point_at) if each.last_point_at else "",
                each.decided_by,
                each.note,
            )
            for each in found
        ),
        empty="No machine of this site was ever held.",
    )


def release(machine: str, /, *, confirm: str = "", reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Let a held machine run again, although another site is its authority: for looking at it, or by choice.

    Its points are refused all the same. To make it the authority again roll the failover back at the other
    site, which releases it by itself.

    For example:

        secondsite held release shop --confirm "shop may run at gateway-b as well"

    Parameters
    ----------
    machine
        Name or id of a held machine.
    confirm
        The sentence that the command asks for when it is not given.
    """
    from secondsite.gateway.messages.failover import Decide

    with client_of(reach) as client:
        asked = Decide(epoch=_epoch(client, machine), confirm=confirm, by=whoami())
        _show(client.release_held(machine, asked), listing)


def discard(
    machine: str,
    /,
    *,
    remove: Removal = "nothing",
    confirm: str = "",
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Shut a held machine off for good: what it wrote after its last point is not needed.

    Its disks and its definition stay where they are, unless you say that they go as well. An image that
    another machine has stays in any case.

    For example:

        secondsite held discard shop --confirm "what shop wrote here last is given up"

        secondsite held discard shop --remove machine --confirm "shop is removed here and its disks stay"

    Parameters
    ----------
    machine
        Name or id of a held machine.
    remove
        What goes with it: nothing, the machine, or the machine and its disks.
    confirm
        The sentence that the command asks for when it is not given.
    """
    from secondsite.gateway.messages.failover import Decide

    with client_of(reach) as client:
        asked = Decide(epoch=_epoch(client, machine), confirm=confirm, by=whoami(), remove=remove)
        _show(client.discard_held(machine, asked), listing)


def _epoch(client: FailoverClient, machine: str) -> int:
    """Of the claim that holds it now; 0 where the gateway knows none, as it says itself then."""
    return next((one.epoch for one in client.held() if machine in (one.machine, one.name)), 0)


def _show(held: HeldMachine, listing: Listing) -> None:
    if listing.json:
        print_json(held)
    else:
        print(f"{held.name} is {held.state.value.lower()}")
