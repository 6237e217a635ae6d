"""``secondsite server authority`` and ``rotate-authority``: who signs the certificates of gateways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.survival import Authority


def authority(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show the server's authorities, and for which gateways a rotation waits.

    For example:

        secondsite server authority
    """
    from secondsite.client.survival import authorities

    with reach.open() as server:
        _show(authorities(server), listing)


def rotate(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Put another authority in the place of the one that signs, with every gateway in touch all the while.

    Gateways learn to trust both; when all do, the new one signs and they take its certificates; when all have
    one, the old one is retired. A gateway that is away is waited for: unregister one that is gone for good.
    It takes some minutes. Registration keys made before the change of hands end with it, and people log in
    again with the new authority.crt of the server's state directory.

    For example:

        secondsite server rotate-authority
    """
    from secondsite.client.survival import rotate_authority

    with reach.open() as server:
        _show(rotate_authority(server), listing)


def _show(found: Sequence[Authority], listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    print_table(
        ["ID", "PHASE", "SINCE", "VALID UNTIL", "FINGERPRINT", "WAITS FOR"],
        (
            (
                one.id,
                one.phase,
                short_time(one.since),
                short_time(one.valid_until),
                one.fingerprint[:16],
                ", ".join(one.waits_for),
            )
            for one in found
        ),
        empty="There is no authority.",
    )
