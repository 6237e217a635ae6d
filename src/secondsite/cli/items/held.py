"""``secondsite item``, the part that decides of sources that are held since their machines run elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.failover import ask_for
from secondsite.cli.items.items import NoWait, run_job
from secondsite.model import confirmations

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.messages import Job


def list_held(
    vault: str,
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List machines that are held at their sources because they run elsewhere.

    A held machine has its links down and is paused; what it wrote after its last point is on its disks alone,
    and nothing of it is deleted until a person decides. A machine that went on to a third site may be held at
    several gateways: HELD AT is what `secondsite item held-discard --of` takes.

    For example:

        secondsite item held North

        secondsite item held North --all --json

    Parameters
    ----------
    vault
        Its name or id.
    everything
        Also those that were decided.
    """
    from secondsite.client import itemfailovers

    with reach.open() as server:
        found = list(itemfailovers.held(server, vault, everything=everything))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MACHINE", "HELD AT", "STATE", "RUNS AT", "EPOCH>", "HELD SINCE", "LAST POINT>", "OF", "DECIDED BY"],
        (
            (
                one.name,
                one.provider,
                one.state,
                one.claimant,
                one.epoch,
                short_time(one.held_at),
                one.last_point or "",
                short_time(one.last_point_at) if one.last_point_at else "",
                one.decided_by,
            )
            for one in found
        ),
        empty="No machine of this vault is held.",
    )


def release(
    vault: str,
    item: str,
    /,
    *,
    confirm: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Let a held machine run again at its source, although another site is its authority.

    Its points are refused all the same. To make it the authority again roll the failover back
    (`secondsite item roll-back`), which releases it by itself.

    For example:

        secondsite item held-release North shop --confirm "shop may run at gateway-b as well"

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    confirm
        The sentence that the command asks for when it is not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            name, claimant, epoch = _who(server, vault, item)
            why = confirmations.why_released(claimant, epoch)
            said = ask_for(name, confirmations.released(name, claimant), why)
        return itemfailovers.release_held(server, vault, item, confirm=said)

    return run_job(reach, listing, begin, no_wait=no_wait)


def discard(
    vault: str,
    item: str,
    /,
    *,
    gateway: Annotated[str | None, Parameter(name="--of")] = None,
    remove: Literal["nothing", "machine", "machine-and-disks"] = "nothing",
    confirm: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Shut a held machine off for good: what it wrote after its last point is not needed.

    For example:

        secondsite item held-discard North shop --confirm "what shop wrote here last is given up"

        secondsite item held-discard North shop --remove machine

        secondsite item held-discard North shop --of gateway-c

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    gateway
        That holds it, as `secondsite item held` shows it; without it the item's source.
    remove
        Of it, from its host: nothing, its definition, or its own images as well.
    confirm
        The sentence that the command asks for when it is not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            name, _claimant, _epoch = _who(server, vault, item)
            why = "It is shut off for good; what it wrote after its last point is on its disks alone."
            said = ask_for(name, confirmations.discarded(name, remove), why)
        return itemfailovers.discard_held(server, vault, item, confirm=said, remove=remove, provider=gateway)

    return run_job(reach, listing, begin, no_wait=no_wait)


def _who(server: ServerClient, vault: str, item: str) -> tuple[str, str, int]:
    """Its name, where it runs, and the epoch of that claim; 0: its gateway has not told of it."""
    from secondsite.client import items

    found = items.item(server, vault, item)
    held = found.held
    return found.name, held.claimant if held else found.target_provider, held.epoch if held else 0
