"""``secondsite retention`` and ``points hold|release``: which points stay, at what cost, and who says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.base.units import format_bytes, format_seconds
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach
from secondsite.cli.common.output import print_json, short_time

if TYPE_CHECKING:
    from secondsite.gateway.messages.retention import NextPass, RetentionReport


def hold(
    machine: str,
    point: str,
    /,
    *,
    reason: str,
    until: str,
    name: str | None = None,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Keep a point until a time, whatever the retention says. Ask the gateway of the site that keeps it.

    A hold always ends: while it lasts, the journal keeps everything younger than the point as well. The same
    hold again changes its reason and its end. `secondsite points list` shows who holds a point.

    For example:

        secondsite points hold shop 1207 --reason "before the upgrade" --until 30d

        secondsite points hold shop latest --reason audit --until 2026-12-31T18:00:00 --name audit

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    point
        latest, latest-application-consistent, last-clean, a number, or a time (the newest point not after
        it; UTC).
    reason
        Why, for whoever finds the point held.
    until
        When it ends: a time (UTC where it names no zone), or how long from now, like 12h or 30d.
    name
        What to release it by; the point's number when not given.
    """
    from secondsite.gateway.messages.gateway import HoldRequest

    with reach.open() as client:
        held = client.hold(machine, HoldRequest(point=point, reason=reason, until=until, name=name))
    if listing.json:
        print_json(held)
        return
    word = held.hold.holder.removeprefix("hold:")
    until = short_time(held.hold.until)
    print(f"point {held.number} of {machine} ({short_time(held.at)}) is held until {until}")
    print(f"let it go before that with `secondsite points release {machine} {word}`")


def release(
    machine: str,
    hold: str | None = None,
    /,
    *,
    lost: Annotated[bool, Parameter(negative="")] = False,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """End holds before their time: the one of a name, or all of a point. The retention looks at once.

    For example:

        secondsite points release shop 1207

        secondsite points release shop audit

        secondsite points release shop --lost

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    hold
        The hold's name, or the number of the point.
    lost
        Instead: what is held for exports and test machines that this gateway does not know, because the one
        that served them was lost. Not while somebody works with `secondsite rescue` on the same store.
    """
    if (hold is None) is not lost:
        raise InvalidInput(what="points release", why="it takes a hold's name or a point's number, or --lost")
    with reach.open() as client:
        let_go = client.release_lost(machine) if hold is None else client.release(machine, hold)
    if listing.json:
        print_json(let_go)
        return
    if not let_go:
        print(f"nothing of {machine} is held by exports that are unknown here")
    for held in let_go:
        print(f"point {held.number} of {machine} ({short_time(held.at)}) is not held any more")


def show(
    machine: str | None = None,
    /,
    *,
    policy: str | None = None,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Show which points of a machine stay, the room they take, and what that will come to.

    The cost is computed from what the journal itself measured: what arrives, and what merging left of it.
    It is the most the policy takes once every window is full, if the machine goes on writing as it did.
    docs/retention.md goes through the figures.

    For example:

        secondsite retention show

        secondsite retention show shop --policy all:6h,1h:2d,1d:30d

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site; all of them when not given.
    policy
        Show what another policy would do and cost; nothing is changed. The one in force is the server's,
        where the machine is protected through one, else in the gateway's configuration.
    """
    with reach.open() as client:
        if machine is not None:
            found = [client.retention(machine, policy)]
        else:
            kept = [replica for replica in client.status().replicas if replica.error is None]
            found = [client.retention(replica.machine, policy) for replica in kept]
    if listing.json:
        print_json(found)
        return
    for number, report in enumerate(found):
        if number:
            print()
        print("\n".join(report_lines(report)))
    if not found:
        print("Nothing is kept here.")


def report_lines(report: RetentionReport) -> list[str]:
    """A report for people, a line a question."""
    from secondsite.model.retention import in_words

    bases = [base.allocated_bytes for base in report.bases]
    stored = format_bytes(sum(bytes_ or 0 for bytes_ in bases)) if bases else ""
    missing = [base.disk for base in report.bases if base.allocated_bytes is None]
    lines = [
        f"{report.name}: {report.policy}{_why(report)}",
        f"  points     {report.points:,} listed, {short_time(report.oldest)} to {short_time(report.newest)}",
        f"  stored     journal {format_bytes(report.journal_bytes)}"
        + (f", bases {stored}" if stored else ", no bases")
        + (f" (not found: {', '.join(missing)})" if missing else ""),
        f"  next pass  {_next_pass(report.next_pass)}",
    ]
    if report.cost is None or report.stored_bytes_per_day is None or report.point_seconds is None:
        return [*lines, "  measured   there are too few points to tell"]
    every, over = format_seconds(report.point_seconds), format_seconds(report.measured_seconds)
    a_day, most = format_bytes(report.stored_bytes_per_day), format_bytes(report.cost.journal_bytes)
    lines += [
        f"  measured   {a_day} a day, a point every {every}, over {over}",
        f"  forecast   at most {report.cost.points:,} points and {most} stored once every window is full",
    ]
    for window in report.cost.shares:
        every = in_words(window.every_seconds)
        how = "assumed: nothing of that length was merged yet"
        if window.measured_seconds is not None:
            how = f"measured on points of {format_seconds(window.measured_seconds)}"
        share = f"{window.share * 100:.0f} % of what arrives stays"
        lines.append(f"             one every {every}: {share} ({how})")
    return lines


def _why(report: RetentionReport) -> str:
    if report.trial:
        return " (only shown, not in force)"
    return f" (by {report.source})" if report.source else ""


def _next_pass(todo: NextPass) -> str:
    if todo.settling:
        return "nothing: points came again after a long gap, nothing goes for an hour"
    parts = []
    if todo.merged:
        parts.append(f"merges {todo.merged + todo.into:,} points into {todo.into:,}")
    if todo.leaving:
        parts.append(f"lets {todo.leaving:,} go")
    if todo.held:
        parts.append(f"leaves {todo.held:,} that would go and is held")
    return ", ".join(parts) or "nothing to do"
