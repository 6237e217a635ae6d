"""``secondsite status`` and ``events``."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.units import format_bytes, format_seconds
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach
from secondsite.cli.common.output import UNKNOWN, console, print_json, print_table, short_time

if TYPE_CHECKING:
    from secondsite.gateway.messages.gateway import (
        Doubt,
        EventEntry,
        GatewayStatus,
        ProtectionStatus,
        ReplicaStatus,
        VerificationSummary,
    )

WATCH_SECONDS = 0.5
FOLLOW_SECONDS = 0.5


def status(
    *,
    watch: Annotated[bool, Parameter(negative="")] = False,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Show what a gateway protects, what it keeps for others, and which test failovers stand.

    For example:

        secondsite status

        secondsite status --watch

        secondsite status --json --gateway /run/secondsite/b.sock

    Parameters
    ----------
    watch
        One live line, until Ctrl-C. With --json, one document a line.
    """
    with reach.open() as client:
        if not watch:
            found = client.status()
            if listing.json:
                print_json(found)
            else:
                _print_status(found)
            return
        clock, never = SystemClock(), threading.Event()
        while True:
            _show_line(client.status(), as_json=listing.json)
            clock.wait(never, WATCH_SECONDS)


def _show_line(found: GatewayStatus, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    elif sys.stdout.isatty():
        # back to the first column, the line, erase what is left of the one before
        sys.stdout.write(f"\r{live_line(found)}\x1b[K")
    else:
        sys.stdout.write(live_line(found) + "\n")
    sys.stdout.flush()


def live_line(found: GatewayStatus) -> str:
    """Everything that moves, on one line."""
    parts = [_protection_line(protection) for protection in found.protections]
    parts += [_replica_line(replica) for replica in found.replicas]
    return " | ".join(parts) or f"gateway {found.name}: nothing is protected here, nothing is kept here"


def _protection_line(status: ProtectionStatus) -> str:
    from secondsite.cli.common.progress import describe_copy

    if status.first_copy is not None and _copies(status):
        what = "first copy" if status.last_point is None else f"point {status.last_point}, comparing"
        return f"{status.name} {what} {describe_copy(status.first_copy)}"
    changed, sent = format_bytes(status.total_changed_bytes), format_bytes(status.total_sent_bytes)
    return (
        f"{status.name} {status.state.value} point {status.last_point or UNKNOWN} "
        f"RPO {_rpo(status.rpo_seconds)} changed {changed} sent {sent}"
    )


def _replica_line(replica: ReplicaStatus) -> str:
    if replica.error is not None:
        return f"{replica.machine} DAMAGED"
    newest = replica.newest.number if replica.newest else UNKNOWN
    doubt = f", in doubt from {replica.doubt.first} on" if replica.doubt else ""
    age = _rpo(replica.rpo_seconds)
    return f"{replica.name} kept: {replica.points} points, newest {newest}, {age} old{doubt}"


def _rpo(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else format_seconds(seconds)


def _print_status(found: GatewayStatus) -> None:
    out = console()
    out.print(f"gateway {found.name}, site {found.site}, version {found.version}", markup=False)
    if found.protections:
        out.print()
        print_table(
            ["PROTECTED", "TO", "STATE", "HEALTH", "POINT>", "RPO>", "EVERY>", "CHANGED>", "SENT>", "NOTE"],
            (_protection_row(protection) for protection in found.protections),
            empty="",
        )
    if found.replicas:
        out.print()
        print_table(
            ["KEPT", "POINTS>", "OLDEST", "NEWEST", "AGE>", "RETENTION", "VERIFIED", "TEST FAILOVER"],
            (_replica_row(replica) for replica in found.replicas),
            empty="",
        )
    if not found.protections and not found.replicas:
        out.print("Nothing is protected here, nothing is kept here.")


def _copies(status: ProtectionStatus) -> bool:
    return status.last_point is None or status.state.value == "Resynchronizing"


def _protection_row(status: ProtectionStatus) -> tuple[object, ...]:
    from secondsite.cli.common.progress import describe_copy
    from secondsite.model.failover import NOT_COPIED

    note = status.note
    if not note and status.first_copy is not None and _copies(status):
        note = describe_copy(status.first_copy)
    if status.limit_bytes_per_second is not None:
        limited = f"sends at most {format_bytes(status.limit_bytes_per_second)}/s now, by its policy"
        note = f"{note}; {limited}" if note else limited
    return (
        status.name,
        status.peer,
        status.state.value,
        status.health.value,
        status.last_point or (UNKNOWN if status.code == NOT_COPIED else "none"),
        _rpo(status.rpo_seconds),
        format_seconds(status.copy_frequency_seconds),
        format_bytes(status.total_changed_bytes),
        format_bytes(status.total_sent_bytes),
        note,
    )


def _replica_row(replica: ReplicaStatus) -> tuple[object, ...]:
    test = replica.test_failover
    tested = f"TEST {test.name} from point {test.point}: {test.state.value}" if test else ""
    if replica.error is not None:
        unknown = (UNKNOWN,) * 5
        return (
            replica.machine,
            *unknown,
            _verified(replica.verification),
            f"DAMAGED: {replica.error['happened']}",
        )
    return (
        replica.name,
        replica.points,
        short_time(replica.oldest.at) if replica.oldest else UNKNOWN,
        short_time(replica.newest.at) if replica.newest else UNKNOWN,
        _rpo(replica.rpo_seconds),
        replica.retention or "none here",
        _verified(replica.verification),
        "\n".join(filter(None, [tested, _doubt(replica.doubt)])),
    )


def _doubt(found: Doubt | None) -> str:
    if found is None:
        return ""
    clean = f"last clean: {found.clean}" if found.clean is not None else "none is clean"
    return f"IN DOUBT from {found.first} on, {clean}"


def _verified(found: VerificationSummary | None) -> str:
    """``point 1207, 2026-01-02 03:04:05Z``, and what is wrong."""
    if found is None:
        return "never"
    point = f"point {found.last_verified}" if found.last_verified is not None else "no point"
    wrong = f", {found.damaged} DAMAGED, {found.lost} points lost" if found.damaged else ""
    state = "" if found.state == "Completed" else f", {found.state}"
    return f"{point}, {short_time(found.at)}{state}{wrong}"


def events(
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    limit: int = 50,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Show what happened at a gateway, newest last.

    For example:

        secondsite events

        secondsite events --follow

    Parameters
    ----------
    follow
        Go on showing new ones, until Ctrl-C. With --json, one document a line.
    limit
        How many of the past to show.
    """
    with reach.open() as client:
        found = client.events()[-limit:] if limit > 0 else []
        if not follow:
            if listing.json:
                print_json(found)
            else:
                _print_events(found)
            return
        clock, never = SystemClock(), threading.Event()
        after = 0
        while True:
            for entry in found:
                _print_event_line(entry, as_json=listing.json)
                after = entry.number
            clock.wait(never, FOLLOW_SECONDS)
            found = client.events(after=after)


def _print_event_line(entry: EventEntry, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        line = msgspec.json.encode(entry).decode()
    else:
        event = entry.event
        line = f"{short_time(event.at)}  {event.severity.value:<11}  {event.code}: {event.text}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _print_events(found: list[EventEntry]) -> None:
    print_table(
        ["WHEN", "SEVERITY", "CODE", "WHAT"],
        (
            (short_time(entry.event.at), entry.event.severity.value, entry.event.code, entry.event.text)
            for entry in found
        ),
        empty="Nothing happened yet.",
    )
