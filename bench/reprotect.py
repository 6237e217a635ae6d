"""What travels when a machine that was taken over is protected back onto its old disks, against a full copy.

The lab's guest (1 GiB and 512 MiB, 224 MiB of it in use) is protected at B, taken over there and
committed; then a hundredth of its disks is written anew, A is reversed onto, and B protects the machine
to A. Bytes are counted on the line between the sites, headers and TLS with them, from asking for the
protection to its first point.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from bench.failing import Bench, until
from bench.pair import Pair, pair
from bench.report import Figure, Report
from secondsite.base.errors import RemoteError
from secondsite.base.units import KIB, MIB
from secondsite.gateway.messages.failover import CommitFailover
from secondsite.gateway.messages.reverse import ReverseRequest, ReverseState
from secondsite.lab.guest import build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest
from secondsite.lab.place import Site
from secondsite.model import confirmations
from secondsite.model.failover import FailoverState, HeldState
from secondsite.model.reversals import reversed_onto

CHANGED = 0.01
FREQUENCY_SECONDS = 3600.0  # only the first copy is counted


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    boot_files = build_boot_files()
    with pair(work) as sites:
        guest = create_guest(sites.sites.a, boot_files, GuestSpec(name="turn"))
        try:
            _turn(report, sites, guest)
        finally:
            guest.remove()


def _turn(report: Report, sites: Pair, guest: Guest) -> None:
    bench = Bench(sites, guest)
    guest.start()
    guest.wait_ready()
    full, full_seconds = _protect(bench, bench.a)
    guest.pause()
    operation, _ = bench.fail_over()
    taken = Guest(bench.b, guest.spec)
    try:
        until(taken.agent_answers, "the machine's agent at B")
        with bench.at(bench.b) as client:
            client.commit_failover(operation, CommitFailover(confirm=confirmations.kept(bench.name)))
        bench.wait(operation, FailoverState.COMMITTED)
        size_bytes = int(sum(guest.spec.disks_bytes.values()) * CHANGED)
        words = ["if=/dev/urandom", "of=/data-disk/pages", "bs=64k", f"count={size_bytes // (64 * KIB)}"]
        code, said = taken.execute("dd", *words, "conv=notrunc,fsync")
        if code:
            raise RuntimeError(said)
        _reverse(bench)
        moved, seconds = _protect(bench, bench.b)
        with bench.at(bench.b) as client:
            client.unprotect(bench.name)
    finally:
        taken.remove()
    note = f"{moved / MIB:.1f} MiB in {seconds:.0f} s against {full / MIB:.0f} MiB in {full_seconds:.0f} s"
    changed = f"; {size_bytes / MIB:.0f} MiB, 1 % of the disks, were changed"
    report.add(Figure("reprotect_over_full_copy", moved / full, "times", at_most=0.25, note=note + changed))


def _protect(bench: Bench, site: Site) -> tuple[int, float]:
    """Bytes and seconds until the first point."""
    before, begun = bench.sites.line_bytes(), time.monotonic()
    bench.sites.gateways.protect(bench.name, copy_frequency_seconds=FREQUENCY_SECONDS, at=site)

    def done() -> bool:
        with bench.at(site) as client:
            return client.protection(bench.name).last_point is not None

    until(done, f"a first point of {site.name}")
    return bench.sites.line_bytes() - before, time.monotonic() - begun


def _reverse(bench: Bench) -> None:
    with bench.at(bench.a) as client:
        until(lambda: [held.state for held in client.held()] == [HeldState.HELD], "the source held")
        request = ReverseRequest(operation=secrets.token_hex(16), confirm=reversed_onto(bench.name))
        client.reverse(bench.name, request)

        def ready() -> bool:
            status = client.reversal(bench.name)
            if status.error is not None:
                raise RemoteError(dict(status.error))
            return status.state is ReverseState.READY

        until(ready, "reversed onto")
