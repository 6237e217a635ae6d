"""A test failover held against what the witness saw at the source, and the look that nothing is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.messages.gateway import PointSummary
from secondsite.gateway.messages.testfailover import (
    CleanUp,
    StartTestFailover,
    TestFailoverState,
    TestFailoverStatus,
)
from secondsite.lab import processes
from secondsite.lab.errors import LabProofFailed
from secondsite.lab.machine import BOOT_SECONDS_MAX, Check, read_checks, read_console, wait_console
from secondsite.lab.place import Site
from secondsite.lab.sites import Sites
from secondsite.lab.witness import Expectation, Witness

CLEAN_UP_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class Tested:
    """A test failover whose guest has checked itself."""

    status: TestFailoverStatus
    requested_at: datetime
    first_line_seconds: float  # from the request to the first userspace line on the console
    check: Check
    expected: Expectation


def begun_at_the_gateway(client: GatewayClient, machine: str, point: PointSummary) -> TestFailoverStatus:
    """Have the gateway itself begin a test failover."""
    return client.start_test_failover(machine, StartTestFailover(point=str(point.number), network="isolated"))


def test_failover(
    client: GatewayClient,
    site: Site,
    witness: Witness,
    point: PointSummary,
    begin: Callable[[], TestFailoverStatus],
) -> Tested:
    """Boot a machine from `point` at `site`, isolated, and prove what it finds. begin: asks for it.

    Raises:
        LabProofFailed: the guest's checker found damage, a lost acknowledged record or a later one.
        RemoteError: the gateway could not start it.
    """
    requested_at, requested = SystemClock().utc(), time.monotonic()
    status = begin()
    first_line_at = 0.0

    def started() -> TestFailoverStatus | None:
        # the console is looked at all the time: its first line may come before the gateway says it is done
        nonlocal first_line_at
        found = client.operation(status.id)
        if found.error is not None:
            raise RemoteError(dict(found.error))
        if found.console_log and not first_line_at and read_console(site.host_path(found.console_log)):
            first_line_at = time.monotonic()
        return found if first_line_at and found.state is not TestFailoverState.INITIATED else None

    status = processes.wait_until(started, what="the test machine", root=site.root, seconds=BOOT_SECONDS_MAX)
    log = site.host_path(status.console_log or "")
    first_line_seconds = first_line_at - requested
    wait_console(log, "CHECK {", root=site.root, seconds=BOOT_SECONDS_MAX)
    check = read_checks(log)[-1]
    expected = witness.expectation(point.asked_at, point.at)
    require(check, expected, point.number)
    return Tested(status, requested_at, first_line_seconds, check, expected)


test_failover.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name


def require(check: Check, expected: Expectation, point: int) -> None:
    """Raise LabProofFailed unless the checker's finding fits the instant."""
    why = "" if check.good else f"the records are damaged or out of order: {check}"
    why = why or expected.unmet(last=check.last, token=check.token)
    if why:
        raise LabProofFailed(point=point, why=why)


def clean_up(client: GatewayClient, machine: str, notes: str, root: Path) -> TestFailoverStatus:
    """Remove the test failover and wait until it is gone."""
    status = client.clean_up(machine, CleanUp(notes=notes, cleaned_up_by="lab"))
    return _until_state_is_not(client, status, TestFailoverState.CLEANUP_INITIATED, root)


def require_nothing_left(sites: Sites, machine: str) -> None:
    """Raise LabProofFailed when a hypervisor still shows something of the test or the protection."""
    a, b = sites.sites
    left = []
    with contextlib.closing(a.connect()) as connection:
        domain = connection.lookupByName(machine)
        left += [f"checkpoint {each.getName()}" for each in domain.listAllCheckpoints()]
        if domain.jobInfo()[0] != 0:
            left.append("a running job at A")
    with contextlib.closing(b.connect()) as connection:
        left += [f"machine {each.name()}" for each in connection.listAllDomains()]
        left += [f"network {name}" for name in connection.listNetworks() if name != b.network]
    scratch = a.run("find", a.scratch, "-type", "f").split()
    left += [f"scratch file {name}" for name in scratch if "ballast" not in name]
    left += [f"file {path}" for path in b.disks.glob("*-test-*")]
    if left:
        raise LabProofFailed(point="clean-up", why=f"left behind: {', '.join(left)}")


def _until_state_is_not(
    client: GatewayClient, status: TestFailoverStatus, state: TestFailoverState, root: Path
) -> TestFailoverStatus:
    if status.state is state:
        status = processes.wait_until(
            lambda: found if (found := client.operation(status.id)).state is not state else None,
            what=f"the end of {state.value}",
            root=root,
            seconds=CLEAN_UP_SECONDS_MAX,
            poll_seconds=0.02,
        )
    if status.error is not None:
        raise RemoteError(dict(status.error))
    return status
