"""``secondsite item health``: how an item did over time."""

from __future__ import annotations

from itertools import islice

from secondsite.base.units import format_seconds
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import console, print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach


def health(
    vault: str,
    item: str,
    /,
    *,
    days: int = 14,
    limit: int = 20,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Show when an item missed its recovery point objective, day by day, and how its health changed.

    A time of which no server knows anything, because none was there or the gateway was not heard, is unknown.

    For example:

        secondsite item health North shop

        secondsite item health North shop --days 90 --json

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name where no other has it.
    days
        How far back; 90 are kept.
    limit
        How many changes of its health.
    """
    from secondsite.client.histories import health_history, rpo_history

    with reach.open() as server:
        found = rpo_history(server, vault, item, days=days)
        changes = list(islice(health_history(server, vault, item), max(limit, 0)))[::-1]
    if listing.json:
        print_json({"rpo": found, "health": changes})
        return
    out = console()
    out.print(
        f"{found.name}: recovery point objective {format_seconds(found.threshold_seconds)}", markup=False
    )
    print_table(
        ["DAY", "MISSED>", "IN HOURS>", "MET>", "UNKNOWN>"],
        (
            (
                day.day[:10],
                _time(day.missed_seconds),
                day.hours_missed,
                _time(day.met_seconds),
                _time(day.unknown_seconds),
            )
            for day in found.days
        ),
        empty="Nothing is known of it yet.",
    )
    out.print()
    print_table(
        ["SINCE", "HEALTH", "CODE", "NOTE"],
        ((short_time(change.at), change.health, change.code, change.note) for change in changes),
        empty="Its health was not told yet.",
    )


def _time(seconds: float) -> str:
    return format_seconds(seconds) if seconds else "none"
