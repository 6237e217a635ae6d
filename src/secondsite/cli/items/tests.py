"""``secondsite item``, the part that shows recovery points, boots one as a test, and cleans that up."""

from __future__ import annotations

from itertools import islice

from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.common.settingsoptions import NO_MACHINE, Machine
from secondsite.cli.items.items import NoWait, run_job


def points(
    vault: str,
    item: str,
    /,
    *,
    limit: int = 20,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List the recovery points of an item, newest first, as the gateway that keeps them tells them now.

    For example:

        secondsite item points North shop

        secondsite item points North shop --limit 200 --json

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    limit
        At most so many.
    """
    from secondsite.client import itemtests

    with reach.open() as server:
        found = list(islice(itemtests.points(server, vault, item), max(limit, 0)))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["POINT>", "INSTANT", "CONSISTENCY", "SIZE>", "CHANGED>", "DISKS", "TRUST", "HELD"],
        (
            (
                one.number,
                short_time(one.at),
                one.consistency,
                format_bytes(one.size_bytes),
                format_bytes(one.changed_bytes),
                ", ".join(one.disks),
                one.trust,
                "held" if one.held else "",
            )
            for one in found
        ),
        empty="It has no recovery point yet.",
    )


def boot_test(
    vault: str,
    item: str,
    /,
    *,
    point: str = "latest",
    network: str = "isolated",
    name: str | None = None,
    machine_there: Machine = NO_MACHINE,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Boot a protected machine from a recovery point at its target, as a test.

    What is needed is looked at first, and all that is in the way is named. The original keeps running and
    replication goes on; what the test machine writes is thrown away at the clean-up. What is set for the
    machine and direction (`secondsite item settings`) counts; given here, only this counts, for this test.

    For example:

        secondsite item test-failover North shop --no-wait

        secondsite item test-failover North shop --point 1207 --network none --name shop-look --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    point
        latest, latest-processed, latest-application-consistent, last-clean, a number, or a time: the newest
        point not after it (UTC where no zone is given).
    network
        isolated: a network without any way out, made for the test and removed after it; none: attached to
        nothing; mapped: as the protection maps networks; or the name of a network of the target's site.
    name
        Name of the test machine; the machine's own with -test, if not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemtests

    return run_job(
        reach,
        listing,
        lambda server: itemtests.boot_test(
            server,
            vault,
            item,
            point=point,
            network=network,
            name=name,
            settings=machine_there.build(),
        ),
        no_wait=no_wait,
    )


def clean_up(
    vault: str,
    item: str,
    /,
    *,
    notes: str,
    force: bool = False,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Remove the test failover of an item: its machine, network and what was written; the notes stay.

    For example:

        secondsite item clean-up North shop --notes "it boots, and the shop answers" --no-wait

        secondsite item clean-up North shop --notes "left over since May" --force --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    notes
        What was learnt; kept at the gateway with the test.
    force
        Also one whose record its gateway cannot read: what it made is found by its export, and removed.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemtests

    return run_job(
        reach,
        listing,
        lambda server: itemtests.clean_up(server, vault, item, notes=notes, force=force),
        no_wait=no_wait,
    )
