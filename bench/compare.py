"""Resynchronisation by hash compare: when nothing is known of a disk but that the target holds most of it.

The source's gateway is killed, which voids its table, and the machine's checkpoints are deleted with their
bitmaps. Three disks: one of 64 GiB, sparse, with 1 GiB of data, unchanged; one of 4 GiB without a hole,
unchanged; the same with 1 % of it written meanwhile, in pieces of 64 KiB at random places. Ours is from the
event that says the resynchronisation begins until the point that ends it is committed at the other gateway;
bytes are what the line between the sites carried, both ways, TLS and headers with them, processor time both
gateways'. The machine stands still.

The peer is `rsync --inplace` of the raw image onto its older copy with its own delta algorithm, over a pipe
to a second rsync, sizes and times not believed: bytes as it counts them, uncompressed as it comes. Beside
both stands a full copy: our own first copy of the disk, and `qemu-img convert` to a raw file on the same
volume. Once each: rsync reads 64 GiB of zeros several times. `--quick`: 8 GiB sparse instead of 64.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import disks, machines, peers
from bench.measure import Cost, cpu_seconds_of, settle, sync_of
from bench.measure import run as run_program
from bench.pair import Pair, Watch, pair
from bench.report import Figure, Report
from secondsite.base.units import GIB, KIB, MIB

CHANGED_PIECE_BYTES = 64 * KIB
LONG_SECONDS = 3600.0
SECONDS_MAX = 600.0


@dataclass(frozen=True)
class Case:
    """A disk and what happens to it."""

    name: str
    size_bytes: int
    data_bytes: int
    changed_bytes: int = 0


@dataclass(frozen=True)
class Result:
    """Of one case."""

    first: peers.Moved  # our full copy
    again: peers.Moved  # our resynchronisation
    rsync: peers.Moved
    copy: Cost  # qemu-img's full copy


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    peers.install()
    sparse = 8 * GIB if report.quick else 64 * GIB
    cases = [
        Case("sparse", sparse, GIB),
        Case("full", 4 * GIB, 4 * GIB),
        Case("changed", 4 * GIB, 4 * GIB, changed_bytes=40 * MIB),
    ]
    raw = work / "compare.raw"
    with pair(work) as sites:
        made = None
        for case in cases:
            if case.size_bytes != made:
                raw.unlink(missing_ok=True)
                _make(raw, case)
                made = case.size_bytes
            _report(report, case, _measure(sites, case, raw, work))
            report.write()
    raw.unlink()


def _make(raw: Path, case: Case) -> None:
    if case.data_bytes < case.size_bytes:
        disks.make_sparse(raw, case.size_bytes, case.data_bytes)
    else:
        disks.make_full(raw, case.size_bytes)


def _measure(sites: Pair, case: Case, raw: Path, work: Path) -> Result:
    site = sites.sites.a
    name = f"compare-{case.name}"
    image = site.disks / f"{name}.qcow2"
    machines.qcow2_of(raw, image)
    older = work / "older.raw"
    try:
        settle()
        copy = run_program(["qemu-img", "convert", "-f", "raw", "-O", "raw", raw, older])
        copy = Cost(copy.seconds, copy.cpu_seconds, sync_of(work))
        pieces = random.Random(1).sample(
            range(0, case.size_bytes, CHANGED_PIECE_BYTES), case.changed_bytes // CHANGED_PIECE_BYTES
        )
        content = os.urandom(CHANGED_PIECE_BYTES)
        with machines.idle_machine(site, name, image) as machine:
            settle()
            first = _first_copy(sites, name)
            sites.wait_until_quiet()  # what was committed becomes the replica's base
            sites.forget_everything(name)
            machine.write(pieces, content)
            settle()
            again = _again(sites, name)
            sites.wait_until_quiet()
            sites.unprotect(name)
        with raw.open("r+b") as file:
            for piece in pieces:
                os.pwrite(file.fileno(), content, piece)
        settle()
        theirs = peers.rsync(raw, older)
        return Result(first, again, theirs, copy)
    finally:
        older.unlink(missing_ok=True)
        image.unlink(missing_ok=True)


def _first_copy(sites: Pair, name: str) -> peers.Moved:
    line = sites.line_bytes()
    with Watch(sites.gateway_pids()) as watch:
        start = datetime.now(UTC)
        sites.gateways.protect(name, copy_frequency_seconds=LONG_SECONDS)
        sites.wait_for_points(name, 1, poll_seconds=0.25, seconds=SECONDS_MAX)
        seconds = (sites.last_committed_at(name) - start).total_seconds()
        line = sites.line_bytes() - line
    return peers.Moved(Cost(seconds, sum(watch.cpu_seconds.values())), line)


def _again(sites: Pair, name: str) -> peers.Moved:
    """From the event on; the gateway's own start is in the processor time, about a second."""
    line = sites.line_bytes()
    before = sum(map(cpu_seconds_of, sites.gateway_pids()))  # B's
    sites.start_source()
    sites.wait_for_points(name, 1, poll_seconds=0.1, seconds=SECONDS_MAX)
    cpu = sum(map(cpu_seconds_of, sites.gateway_pids())) - before
    seconds = (sites.last_committed_at(name) - sites.event_at("replicate.resync")).total_seconds()
    return peers.Moved(Cost(seconds, cpu), sites.line_bytes() - line)


def _report(report: Report, case: Case, found: Result) -> None:
    key, ours, theirs = f"compare_{case.name}", found.again, found.rsync
    moved = f"{ours.bytes / 1e6:.2f} MB against {theirs.bytes / 1e6:.2f} MB"
    cpu = f"{ours.cost.cpu_seconds:.1f} s against {theirs.cost.cpu_seconds:.1f} s"
    full = f"qemu-img {found.copy.seconds:.1f} s, {found.copy.seconds + found.copy.sync_seconds:.1f} s synced"
    first = f"{found.first.cost.seconds:.1f} s, {found.first.bytes / 1e6:.0f} MB, {full}"
    report.add(
        Figure(f"{key}_s", ours.cost.seconds, "s", note=f"rsync {theirs.cost.seconds:.1f} s"),
        Figure(f"{key}_vs_rsync", theirs.cost.seconds / ours.cost.seconds, "times", note="seconds"),
        Figure(f"{key}_vs_first_copy", found.first.cost.seconds / ours.cost.seconds, "times", note=first),
        Figure(f"{key}_cpu_vs_rsync", theirs.cost.cpu_seconds / ours.cost.cpu_seconds, "times", note=cpu),
        Figure(f"{key}_moved_vs_rsync", theirs.bytes / ours.bytes, "times", note=moved),
        Figure(f"{key}_moved_mb", ours.bytes / 1e6, "MB", note=f"{case.changed_bytes / 1e6:.1f} MB changed"),
    )
