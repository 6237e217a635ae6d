"""From the request for a test failover to the guest's first userspace line, over booting the original disk.

The guest of the lab (emulated, kernel and initramfs given to QEMU as the lab does) boots at A from its own
qcow2 disks, then at B from a recovery point: machine defined, overlays made, export process started, disks
served over NBD. Once with a system disk of 1 GiB, once of 64 GiB (sparse). The original is paused while its
copy boots, so that both boots have the machine for themselves; both gateways run all the time. A second
figure is the time until the guest's checker has read and checked all its records on both disks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.pair import Pair, pair
from bench.report import Figure, Report, median, spread
from secondsite.base.errors import RemoteError
from secondsite.base.units import GIB
from secondsite.gateway.messages.testfailover import StartTestFailover, TestFailoverStatus
from secondsite.lab import proof
from secondsite.lab.guest import build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest, read_console

ROUNDS = 3
SIZES = {"1g": GIB, "64g": 64 * GIB}
BOOT_SECONDS_MAX = 120.0
CHECKED = "CHECK {"


@dataclass(frozen=True)
class Boot:
    """Seconds from the request."""

    first_line: float
    checked: float


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    boot_files = build_boot_files()
    with pair(work) as sites:
        for name, size_bytes in SIZES.items():
            spec = GuestSpec(name=f"boot-{name}", system_bytes=size_bytes)
            guest = create_guest(sites.sites.a, boot_files, spec)
            try:
                plain, tested = measure(sites, guest)
            finally:
                guest.remove()
            _report(report, name, plain, tested)


def _report(report: Report, name: str, plain: list[Boot], tested: list[Boot]) -> None:
    suffix = "" if name == "1g" else f"_{name}"

    def over(of: Callable[[Boot], float]) -> Figure:
        a, b = [of(boot) for boot in plain], [of(boot) for boot in tested]
        note = f"{median(b):.2f} s ({spread(b)}) against {median(a):.2f} s ({spread(a)})"
        return Figure("", median(b) - median(a), "s", note=note)

    first, checked = over(lambda boot: boot.first_line), over(lambda boot: boot.checked)
    report.add(
        Figure(f"boot_over_plain{suffix}_s", first.value, "s", at_most=2, note=first.note),
        Figure(f"boot_checked_over_plain{suffix}_s", checked.value, "s", note=checked.note),
    )


def measure(sites: Pair, guest: Guest) -> tuple[list[Boot], list[Boot]]:
    """Boot the original, and then test failovers of it; it is not protected before, nor after."""
    plain = []
    for _ in range(ROUNDS):
        guest.destroy()
        before = len(read_console(guest.console_log))
        start = time.monotonic()
        guest.start()
        plain.append(watch(lambda: guest.console_log, before, start))
    guest.wait_ready()
    sites.gateways.protect(guest.name, copy_frequency_seconds=5)
    sites.wait_for_points(guest.name, 5)
    guest.pause()
    try:
        sites.wait_until_quiet()
        tested = [test_failover(sites, guest.name) for _ in range(ROUNDS)]
    finally:
        guest.resume()
        sites.unprotect(guest.name)
    return plain, tested


def test_failover(sites: Pair, machine: str) -> Boot:
    """Boot a machine's newest point as a test, and clean that up."""
    site = sites.sites.b
    with sites.gateways.client(site) as client:
        number = client.points(machine)[-1].number
        start = time.monotonic()
        request = StartTestFailover(point=str(number), network="isolated")
        status = client.start_test_failover(machine, request)

        def log() -> Path | None:
            nonlocal status
            if status.console_log is None:
                status = client.operation(status.id)
                _raise_error(status)
            return site.host_path(status.console_log) if status.console_log else None

        try:
            return watch(log, 0, start)
        finally:
            # a client of its own: the gateway closes connections that were idle while the guest booted
            with sites.gateways.client(site) as another:
                proof.clean_up(another, machine, "bench", sites.sites.root)


def _raise_error(status: TestFailoverStatus) -> None:
    if status.error is not None:
        raise RemoteError(dict(status.error))


def watch(log: Callable[[], Path | None], lines_before: int, start: float) -> Boot:
    """Read the console until its checker has spoken; `log` gives the file once there is one."""
    first = None
    while time.monotonic() - start < BOOT_SECONDS_MAX:
        path = log()
        lines = read_console(path)[lines_before:] if path else []
        if lines and first is None:
            first = time.monotonic() - start
        if first is not None and any(CHECKED in line for line in lines):
            return Boot(first, time.monotonic() - start)
        time.sleep(0.02)
    raise RuntimeError(f"the guest did not boot: {lines[-5:]}")
