"""``secondsite points``: recovery points and what is inside them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach
from secondsite.cli.common.output import print_json, print_table, short_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secondsite.gateway.messages.gateway import PointHold, PointSummary


def list_points(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List a machine's recovery points, oldest first. Ask the gateway of the site that keeps them.

    For example:

        secondsite points list shop --gateway /run/secondsite/b.sock

        secondsite points list shop --json

    TRUST says which points are in doubt, because somebody may be encrypting the machine's data since then,
    and which is the last clean one: `--point last-clean` of test-failover and others.

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    """
    with reach.open() as client:
        points = client.points(machine)
    if listing.json:
        print_json(points)
    else:
        print_points(points)


# What listings say of `PointSummary.trust`.
TRUST = {"LastClean": "last clean", "InDoubt": "in doubt"}


def print_points(points: Sequence[PointSummary]) -> None:
    """As a table."""
    print_table(
        [
            "POINT>",
            "INSTANT",
            "CONSISTENCY",
            "EPOCH>",
            "CHANGED>",
            "SENT>",
            "SIZE>",
            "DISKS",
            "TRUST",
            "HELD BY",
        ],
        (
            (
                point.number,
                short_time(point.at),
                point.consistency.value,
                point.epoch,
                format_bytes(point.changed_bytes),
                format_bytes(point.sent_bytes),
                format_bytes(point.size_bytes),
                " ".join(point.disks),
                TRUST.get(point.trust, point.trust),
                "\n".join(describe_hold(hold) for hold in point.held_by),
            )
            for point in points
        ),
        empty="There are no recovery points yet.",
    )


def describe_hold(hold: PointHold) -> str:
    """``upgrade until 2026-05-04 12:00:00Z: before the upgrade``."""
    until = f" until {short_time(hold.until)}" if hold.until else ""
    return f"{hold.holder.removeprefix('hold:')}{until}: {hold.reason}"


def export(
    machine: str,
    point: str,
    /,
    *,
    socket_dir: Path,
    keep: Annotated[bool, Parameter(negative="")] = False,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Serve the disks of a point over NBD, read-only, one address a disk, until Ctrl-C.

    The point is pinned meanwhile, so that retention does not take it away. Read it with any NBD client.

    For example:

        secondsite points export shop latest --socket-dir /run/look

        secondsite points export shop 1207 --socket-dir /run/look

        qemu-img convert -f raw -O qcow2 'nbd+unix:///vda?socket=/run/look/shop-1207-ab12.sock' vda.qcow2

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    point
        latest, latest-application-consistent, last-clean (the newest before any in doubt), a number, or a
        time (the newest point not after it; UTC).
    socket_dir
        Where to make the socket; made if missing.
    keep
        Return at once and go on serving; end it with `secondsite points end`.
    """
    from secondsite.gateway.messages.gateway import ExportRequest

    with reach.open() as client:
        served = client.start_export(
            machine, ExportRequest(point=point, socket_dir=str(socket_dir.resolve()))
        )
        client.close()  # the gateway may be restarted meanwhile; the export goes on
        try:
            if listing.json:
                print_json(served)
            else:
                for disk in served.disks:
                    print(disk.uri, flush=True)
            if keep:
                return
            wait_for_end()
        except KeyboardInterrupt:
            pass
        client.end_export(served.machine, served.id)


def dismiss(machine: str, /, *, note: str, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Say that a machine's points in doubt are sound: you looked, and nobody encrypts its data.

    What raised the alert stays in the store, with your note. The last clean point is no longer held.

    For example:

        secondsite points dismiss shop --note "disk encryption was turned on, change 4711"

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    note
        What you found, for those who ask later.
    """
    import getpass

    from secondsite.gateway.messages.gateway import DismissRequest

    with reach.open() as client:
        found = client.dismiss(machine, DismissRequest(note=note, by=getpass.getuser()))
    if listing.json:
        print_json(found)
    else:
        print(f"points from {found.first} on are no longer in doubt")


def wait_for_end() -> None:
    """Until SIGINT or SIGTERM; both arrive as KeyboardInterrupt."""
    import signal

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    threading.Event().wait()


def end(machine: str, export_id: str, /, *, reach: Reach = REACH) -> None:
    """End an export that was started with --keep.

    For example:

        secondsite points end shop user-0123456789abcdef

    Parameters
    ----------
    machine
        Name or id of the machine.
    export_id
        As `secondsite points exports` shows it.
    """
    with reach.open() as client:
        client.end_export(machine, export_id)


def exports(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List what of a machine is served now, to people and to test machines.

    For example:

        secondsite points exports shop

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    """
    with reach.open() as client:
        found = client.exports(machine)
    if listing.json:
        print_json(found)
        return
    print_table(
        ["EXPORT", "POINT>", "PROCESS", "DISKS"],
        (
            (item.id, item.point, item.process or "ended", "\n".join(disk.uri for disk in item.disks))
            for item in found
        ),
        empty="Nothing is served.",
    )
