"""``secondsite item``, the part that has a protected machine pause, go on, compare, or take a point."""

from __future__ import annotations

from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.items import NoWait, run_job


def finalise(
    vault: str,
    item: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Finalise a protection whose first copy is there: only then it is ready for a failover.

    `secondsite item protect` does it by itself; this is for when it could not.

    For example:

        secondsite item finalise North shop --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(reach, listing, lambda server: items.finalise(server, vault, item), no_wait=no_wait)


def pause(
    vault: str,
    item: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Stop capturing. Changes go on being tracked at the host, so that going on needs no full copy.

    For example:

        secondsite item pause North shop --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(reach, listing, lambda server: items.pause(server, vault, item), no_wait=no_wait)


def resume(
    vault: str,
    item: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Go on with a replication that was paused.

    For example:

        secondsite item resume North shop --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(reach, listing, lambda server: items.resume(server, vault, item), no_wait=no_wait)


def resync(
    vault: str,
    item: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Compare everything with the replica and send what differs; older recovery points stay.

    For example:

        secondsite item resync North shop --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(reach, listing, lambda server: items.resync(server, vault, item), no_wait=no_wait)


def point(
    vault: str,
    item: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Take a recovery point now, beside those its copy frequency gives.

    For example:

        secondsite item point North shop --no-wait

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    no_wait
        Begin and return.
    """
    from secondsite.client import items

    return run_job(reach, listing, lambda server: items.take_point(server, vault, item), no_wait=no_wait)
