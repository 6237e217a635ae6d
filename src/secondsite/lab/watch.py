"""What the demo shows while it waits: the first copy's progress, then a live line of points."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_bytes, format_seconds
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.messages.gateway import FirstCopy, ProtectionState, ProtectionStatus
from secondsite.gateway.messages.testfailover import TestFailoverState, TestFailoverStatus
from secondsite.lab import processes
from secondsite.lab.report import Figures

POLL_SECONDS = 0.2
FIRST_COPY_SECONDS_MAX = 600.0
# A cycle of 5 s may take some more on a busy machine; a minute without any point means that it stands still.
POINT_SECONDS_MAX = 60.0
LINE_SECONDS = 5.0  # between two lines where the output is no terminal


class DemoStandsStill(SecondsiteError):
    """Replication made no progress."""

    code = "lab.stands-still"
    happened = "The machine is {state} for {seconds:.0f} s without {what}. {note}"
    cause = "A fault of secondsite, or a machine too busy for the demo."
    action = "Read the gateways' logs above."


@dataclass(frozen=True)
class FirstCopyResult:
    """How much data, not holes, the first copy carried, and the status at the first point."""

    data_bytes: int
    status: ProtectionStatus


def taken_up(client: GatewayClient, machine: str, root: Path) -> ProtectionStatus:
    """Wait until the gateway works towards what the server wants; its status then."""

    def found() -> ProtectionStatus | None:
        return next((one for one in client.status().protections if one.name == machine), None)

    return processes.wait_until(found, what=f"the protection of {machine}", root=root, seconds=120)


def test_begun(client: GatewayClient, machine: str, root: Path) -> TestFailoverStatus:
    """Wait until the gateway has begun the test failover that the server asks for; it then."""

    def found() -> TestFailoverStatus | None:
        standing = (TestFailoverState.INITIATED, TestFailoverState.COMPLETED)
        tests = client.test_failovers()
        return next((one for one in tests if one.machine_name == machine and one.state in standing), None)

    return processes.wait_until(found, what=f"the test failover of {machine}", root=root, seconds=120)


test_begun.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name


def first_copy(client: GatewayClient, status: ProtectionStatus, console: Console) -> FirstCopyResult:
    """Show a bar until the first point is committed."""
    columns = (
        TextColumn("  first copy"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    data_bytes, deadline, said_at = 0, time.monotonic() + FIRST_COPY_SECONDS_MAX, 0.0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("copy", total=None)
        while status.last_point is None:
            if status.state is ProtectionState.FAILED or time.monotonic() > deadline:
                raise DemoStandsStill(
                    state=status.state.value, seconds=FIRST_COPY_SECONDS_MAX, what="a point", note=status.note
                )
            if status.first_copy is not None:
                data_bytes = max(data_bytes, status.first_copy.done_bytes)
                bar.update(task, completed=data_bytes, total=status.first_copy.total_bytes or None)
                known = status.first_copy.total_bytes > 0
                if known and not console.is_terminal and time.monotonic() - said_at > LINE_SECONDS:
                    said_at = time.monotonic()
                    console.print(describe_copy(status.first_copy), highlight=False)
            processes.pause(POLL_SECONDS)
            status = client.protection(status.machine)
    if status.first_copy is not None:
        data_bytes = max(data_bytes, status.first_copy.done_bytes)
    return FirstCopyResult(data_bytes=data_bytes, status=status)


def describe_copy(copy: FirstCopy) -> str:
    """One line: how far, how fast, how long still."""
    left = "" if copy.seconds_left is None else f", {format_seconds(copy.seconds_left)} left"
    done, total = format_bytes(copy.done_bytes), format_bytes(copy.total_bytes)
    return f"  first copy: {done} of {total}, {format_bytes(copy.bytes_per_second)}/s{left}"


def describe(status: ProtectionStatus) -> str:
    """One line: points, RPO, changed and sent bytes."""
    rpo = "unknown" if status.rpo_seconds is None else format_seconds(status.rpo_seconds)
    cycle = "" if status.cycle_seconds is None else f"  cycle {format_seconds(status.cycle_seconds)}"
    changed, sent = format_bytes(status.changed_bytes), format_bytes(status.sent_bytes)
    note = f"  {status.note}" if status.note else ""
    return f"  point {status.last_point}  RPO {rpo:>6}{cycle}  changed {changed}, sent {sent}{note}"


def points(
    client: GatewayClient, machine: str, count: int, console: Console, figures: Figures
) -> ProtectionStatus:
    """Show the live line until `count` more points are committed; figures are noted."""
    status = client.protection(machine)
    seen, committed = status.last_point, 0
    newest_at, said_at = time.monotonic(), 0.0
    with Live(Text(describe(status)), console=console, transient=True, auto_refresh=False) as live:
        while committed < count:
            if time.monotonic() - newest_at > POINT_SECONDS_MAX:
                raise DemoStandsStill(
                    state=status.state.value, seconds=POINT_SECONDS_MAX, what="a new point", note=status.note
                )
            processes.pause(POLL_SECONDS)
            status = client.protection(machine)
            figures.note_rpo(status.rpo_seconds)
            if status.last_point != seen:
                seen, newest_at = status.last_point, time.monotonic()
                committed += 1
                figures.note_cycle(status)
            if console.is_terminal:
                live.update(Text(describe(status)), refresh=True)
            elif time.monotonic() - said_at > LINE_SECONDS:
                said_at = time.monotonic()
                console.print(describe(status), highlight=False)
    return status
