"""``secondsite event``: what happened, at the server and at all its gateways."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.cli.common.gateways import LISTING, Listing, parse_duration
from secondsite.cli.common.output import print_error, print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.events import Event, EventFilter

FOLLOW_SECONDS = 1.0


def list_events(
    *,
    vault: str | None = None,
    severity: Literal["Information", "Warning", "Critical"] | None = None,
    code: list[str] | None = None,
    provider: str | None = None,
    machine: str | None = None,
    item: str | None = None,
    since: str | None = None,
    limit: int = 50,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List what happened at the server and its gateways, newest last. `secondsite events` asks one gateway.

    For example:

        secondsite event list

        secondsite event list --severity Warning --since 12h

        secondsite event list --code "ship.*" --provider gateway-a --follow

    Parameters
    ----------
    vault
        Only of this vault, by id or name.
    severity
        At least so severe.
    code
        Only with this code, or beginning with what stands before a *; may be repeated.
    provider
        Only what this gateway told.
    machine
        Only of the machine with this id.
    item
        Only of the protected item with this id.
    since
        Only of the last 30m, 12h or 7d, or since a time like 2026-01-31T08:00:00Z.
    limit
        How many of the past to show.
    follow
        Go on showing new ones, until Ctrl-C; also while the server is away for a time. With --json, one
        document a line.
    """
    from secondsite.client.events import EventFilter, events_kept, newest_events

    only = EventFilter(vault, severity, tuple(code or ()), provider, machine, item, _moment(since))
    with reach.open() as server:
        kept = events_kept(server)
        found = list(islice(newest_events(server, only, limit=limit), max(limit, 0)))[::-1]
        if follow:
            _follow(server, only, found, kept.newest, as_json=listing.json)
        elif listing.json:
            print_json(found)
        else:
            _print_events(found)
            if kept.dropped and len(found) < limit:
                print(
                    f"{kept.dropped} older events of all kinds were dropped by age or number.",
                    file=sys.stderr,
                )


def _moment(since: str | None) -> str | None:
    if since is None or "T" in since:
        return since
    try:
        ago = timedelta(seconds=parse_duration(since, "--since"))
        return (SystemClock().utc() - ago).isoformat(timespec="seconds")
    except (InvalidInput, OverflowError):
        raise InvalidInput(
            what=f"--since {since!r}", why="it is neither like 30m, 12h or 7d nor like 2026-01-31T08:00:00Z"
        ) from None


def _follow(
    server: ServerClient, only: EventFilter, found: list[Event], newest: int, *, as_json: bool
) -> None:
    from secondsite.client.events import events_above

    clock, never = SystemClock(), threading.Event()
    last, away = max([newest, *(event.number for event in found)]), False
    for event in found:
        _print_line(event, as_json=as_json)
    while True:
        try:
            for event in events_above(server, only, last):
                _print_line(event, as_json=as_json)
                last = event.number
            away = False
        except SecondsiteError as error:
            if not error.retryable:
                raise
            if not away:
                print_error(error)
            away = True
        clock.wait(never, FOLLOW_SECONDS)


def _print_line(event: Event, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        line = msgspec.json.encode(event).decode()
    else:
        of = f" [{event.gateway}]" if event.gateway else ""
        line = (
            f"{short_time(event.told_at or event.at)}  {event.severity:<11}  {event.code}:{of} {event.text}"
        )
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _print_events(found: list[Event]) -> None:
    print_table(
        ["WHEN", "SEVERITY", "CODE", "GATEWAY", "WHAT"],
        (
            (short_time(event.told_at or event.at), event.severity, event.code, event.gateway, event.text)
            for event in found
        ),
        empty="Nothing happened yet.",
    )
