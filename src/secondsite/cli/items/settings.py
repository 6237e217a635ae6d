"""``secondsite item settings``: what an item's recovered machine is to be, in each direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.common.settingsoptions import NO_MACHINE, Machine, settings_lines

if TYPE_CHECKING:
    from secondsite.client.itemsettings import ItemSettings

Reverse = Annotated[bool, Parameter(negative="")]


def show(vault: str, item: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show what the recovered machine of an item is to be, in both directions.

    What is not shown stays as the recovery point's machine definition says.

    For example:

        secondsite item settings show North shop

        secondsite item settings show North shop --json

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    """
    from secondsite.client import itemsettings

    with reach.open() as server:
        found = itemsettings.settings(server, vault, item)
    _print(found, listing)


def change(
    vault: str,
    item: str,
    /,
    *,
    name: str | None = None,
    reverse: Reverse = False,
    machine_there: Machine = NO_MACHINE,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Set what the recovered machine of an item is to be, in one direction; what was set before is gone.

    It counts from the next test failover or failover on, and is looked at then. What is not given stays as
    the point's machine definition says; on the way back that is the machine's own definition of before.

    For example:

        secondsite item settings set North shop --cpus 2 --memory 4GiB

        secondsite item settings set North shop --nic 1,network=lan-b,address=192.0.2.7/24 --injection agent

        secondsite item settings set North shop --reverse --settings shop-back.json

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    name
        Name of the machine there.
    reverse
        Of the way back.
    """
    from secondsite.client import itemsettings
    from secondsite.model.recovered import Direction

    wanted = machine_there.build(name=name)
    if wanted is None:
        why = "nothing is given; `secondsite item settings clear` sets nothing any more"
        raise InvalidInput(what="the settings", why=why)
    way = Direction.REVERSE if reverse else Direction.FORWARD
    with reach.open() as server:
        found = itemsettings.keep(server, vault, item, way, wanted)
    _print(found, listing)


def clear(
    vault: str,
    item: str,
    /,
    *,
    reverse: Reverse = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Set nothing for one direction any more: the machine comes up as its definition says.

    For example:

        secondsite item settings clear North shop

        secondsite item settings clear North shop --reverse

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    reverse
        Of the way back.
    """
    from secondsite.client import itemsettings
    from secondsite.model.recovered import Direction

    way = Direction.REVERSE if reverse else Direction.FORWARD
    with reach.open() as server:
        found = itemsettings.clear(server, vault, item, way)
    _print(found, listing)


def _print(found: ItemSettings, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    rows = [
        (way, what, value, short_time(kept.changed_at), kept.changed_by)
        for way, kept in (("forward", found.forward), ("reverse", found.reverse))
        if kept is not None
        for what, value in settings_lines(kept.settings)
    ]
    empty = "Nothing is set: the machine comes up as its definition says."
    print_table(["DIRECTION", "WHAT", "IS", "SINCE", "BY"], rows, empty=empty)
    if found.left_behind:
        print(f"note: {found.left_behind}")
