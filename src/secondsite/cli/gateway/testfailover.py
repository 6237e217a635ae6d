"""``secondsite test-failover``: boot a machine from a point as a test, and remove it again."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import Outcome, RemoteError
from secondsite.base.units import format_seconds
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.settingsoptions import NO_MACHINE, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from secondsite.gateway.messages.testfailover import TestFailoverState, TestFailoverStatus

POLL_SECONDS = 0.1


def start(
    machine: str,
    /,
    *,
    point: str = "latest",
    network: str = "isolated",
    name: str | None = None,
    machine_there: Machine = NO_MACHINE,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Boot a machine from a recovery point at this site, as a test.

    What is needed is checked first, and everything that fails is listed. The test machine stands on a
    copy-on-write layer over the point: it boots at once, whatever the size of its disks, and whatever it
    writes is thrown away at the clean-up. The original keeps running and replication goes on.

    For example:

        secondsite test-failover start shop

        secondsite test-failover start shop --point 1207 --network none --name shop-look

        secondsite test-failover start shop --point 2026-05-04T12:30:00Z --network lan-test

        secondsite test-failover start shop --memory 2GiB --nic 1,address=192.0.2.7/24 --injection agent

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    point
        latest, latest-processed (its time is shown), latest-application-consistent, last-clean, a number,
        or a time: the newest point not after it (UTC where no zone is given).
    network
        isolated: a network without any way out, made for the test and removed after it; none: attached to
        nothing; mapped: as the protection maps networks; or the name of a network of this site.
    name
        Name of the test machine; the machine's own with -test, if not given.
    wait
        Wait until it is started, or return at once.
    """
    from secondsite.gateway.messages.testfailover import StartTestFailover, TestFailoverState

    with reach.open() as client:
        request = StartTestFailover(
            point=point,
            network=network,
            name=name,
            requested_by=whoami(),
            settings=machine_there.build(),
        )
        status = client.start_test_failover(machine, request)
        if not listing.json:
            print(
                f"booting {status.name} from point {status.point} of {status.machine_name} "
                f"({short_time(status.point_at)}, {status.consistency.value})",
                flush=True,
            )
        if wait:
            status = follow(
                client.operation, status, while_in=TestFailoverState.INITIATED, quiet=listing.json
            )
    if listing.json:
        print_json(status)
    elif wait:
        print_started(status, f"secondsite test-failover clean-up {machine} --notes TEXT")


def print_started(status: TestFailoverStatus, clean_up_command: str) -> None:
    """What a person wants to know once it runs."""
    print(f"{status.name} is running; remove it with `{clean_up_command}`")
    if status.console_log:
        print(f"its console is logged in {status.console_log}")


def follow(
    look: Callable[[str], TestFailoverStatus],
    status: TestFailoverStatus,
    *,
    while_in: TestFailoverState,
    quiet: bool,
) -> TestFailoverStatus:
    """Poll until it leaves the state, printing each step that ended. Raises the error it ended with."""
    clock, never = SystemClock(), threading.Event()
    shown = 0
    while True:
        ended = [step for step in status.steps if step.ended_at is not None]
        for step in ended[shown:]:
            if not quiet:
                print(f"  {step.name} after {format_seconds(_seconds(status.requested_at, step.ended_at))}")
                sys.stdout.flush()
        shown = max(shown, len(ended))
        if status.state is not while_in:
            break
        clock.wait(never, POLL_SECONDS)
        status = look(status.id)
    if status.error is not None:
        raise RemoteError(dict(status.error))
    return status


def _seconds(start_at: str, end_at: str | None) -> float:
    from datetime import datetime

    if end_at is None:
        return 0.0
    return (datetime.fromisoformat(end_at) - datetime.fromisoformat(start_at)).total_seconds()


def list_tests(*, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List test failovers, standing and past, with the notes of their clean-ups.

    For example:

        secondsite test-failover list

    """
    with reach.open() as client:
        found = client.test_failovers()
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MACHINE", "TEST MACHINE", "POINT>", "INSTANT", "NETWORK", "STATE", "BOOTED IN>", "BY", "NOTES"],
        (
            (
                item.machine_name,
                item.name,
                item.point,
                short_time(item.point_at),
                item.network,
                item.state.value,
                format_seconds(_seconds(item.requested_at, item.booted_at)) if item.booted_at else "",
                item.requested_by,
                item.notes or (item.error or {}).get("happened", ""),
            )
            for item in found
        ),
        empty="There were no test failovers.",
    )


def clean_up(
    machine: str,
    /,
    *,
    notes: str,
    force: bool = False,
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> int:
    """Remove a machine's test failover: the test machine, its disks, its network, its export. Keep the notes.

    For example:

        secondsite test-failover clean-up shop --notes "boots, orders of the last minute are there"

    Parameters
    ----------
    machine
        Name or id of the machine that was tested.
    notes
        What was learnt; kept with who and when, see `secondsite test-failover list`.
    force
        Also one whose record cannot be read: what it made is found by the export it stands on.
    wait
        Wait until all of it is gone, or return at once.
    """
    from secondsite.gateway.messages.testfailover import CleanUp, TestFailoverState

    with reach.open() as client:
        status = client.clean_up(machine, CleanUp(notes=notes, cleaned_up_by=whoami(), force=force))
        if wait:
            status = follow(
                client.operation, status, while_in=TestFailoverState.CLEANUP_INITIATED, quiet=True
            )
    if listing.json:
        print_json(status)
    elif wait:
        print(f"{status.name} was removed with everything made for it; the notes were kept")
    return int(Outcome.OK)
