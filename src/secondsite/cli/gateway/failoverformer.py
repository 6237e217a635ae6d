"""``secondsite failover remove-former`` and ``cancel-timer``: what stands beside a failover."""

from __future__ import annotations

from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json


def remove_former(
    machine: str,
    /,
    *,
    point: int | None = None,
    confirm: str = "",
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Give up what a machine wrote on points it was moved away from, to free the room.

    It is kept until a commit or a roll-back, since until then nobody knows on which point the machine will
    stay; `secondsite failover status` shows how much room it takes.

    For example:

        secondsite failover remove-former shop --confirm "what shop wrote on former points is lost"

        secondsite failover remove-former shop --point 1207 --confirm "..."

    Parameters
    ----------
    machine
        Name or id of the machine, or the number of the operation.
    point
        On that point only; on all of them, if not given.
    confirm
        The sentence that the command asks for when it is not given.
    """
    from secondsite.cli.gateway.failover import client_of, standing_failover
    from secondsite.gateway.messages.failover import RemoveFormer

    with client_of(reach) as client:
        before = standing_failover(client, machine)
        request = RemoveFormer(confirm=confirm, point=point, requested_by=whoami())
        found = client.remove_former(before.id, request)
    if listing.json:
        print_json(found)
        return
    freed = sum(kept.bytes for kept in before.former_writes) - sum(kept.bytes for kept in found.former_writes)
    print(f"{format_bytes(freed)} of what {found.name} wrote on former points are gone")


def cancel_timer(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Leave it to people whether a failover is committed or rolled back: it does neither by itself any more.

    For example:

        secondsite failover cancel-timer shop

    Parameters
    ----------
    machine
        Name or id of the machine, or the number of the operation.
    """
    from secondsite.cli.gateway.failover import client_of, standing_failover
    from secondsite.gateway.messages.failover import CancelTimer

    with client_of(reach) as client:
        found = client.cancel_timer(standing_failover(client, machine).id, CancelTimer(requested_by=whoami()))
    if listing.json:
        print_json(found)
    elif found.timer is None:
        print(f"{found.name} has no timer")
    else:
        print(f"{found.name} stays as it is until somebody commits it or rolls it back")
