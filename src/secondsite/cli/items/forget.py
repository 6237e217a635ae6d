"""``secondsite item forget``: an item given up by force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.failover import ask_for
from secondsite.cli.items.items import NoWait, run_job
from secondsite.model import confirmations

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.messages import Job


def forget(
    vault: str,
    item: str,
    /,
    *,
    confirm: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Give up, by force, an item whose failover stands and whose two gateways are gone for good.

    Refused while one of them is connected: then commit the failover, or roll it back. Nothing is asked of
    the gateways and nothing of theirs is deleted; one that returns is shown with what it has, as an item.

    For example:

        secondsite item forget North shop

        secondsite item forget North shop --no-wait --confirm "..."

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
    from secondsite.client import itemforget, items

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            name = items.item(server, vault, item).name
            why = "Neither of its gateways can be asked where it runs, and whether at both sites."
            said = ask_for(name, confirmations.forgotten(name), why)
        return itemforget.forget(server, vault, item, confirm=said)

    return run_job(reach, listing, begin, no_wait=no_wait)
