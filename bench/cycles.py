"""What a replication cycle takes: nothing changed; 64 MiB of random 4 KiB changes on disks of two sizes.

The machine stands still (paused, no guest), so a cycle copies exactly what the bench wrote: 16,384 blocks of
4 KiB at random places in the disk's first 1 GiB, the same places for a disk of 1 GiB and a sparse one of
64 GiB. A cycle's time is the gateway's own figure: from asking libvirt for the instant until the point is
committed at the other site.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from bench import machines
from bench.pair import Pair, pair
from bench.report import Figure, Report, median, spread
from secondsite.base.units import GIB, MIB

CHANGED_BYTES = 64 * MIB
EMPTY_CYCLES = 20
ROUNDS = 2
LONG_SECONDS = 3600.0
REST_SECONDS = 4.0
SIZES = {"1g": GIB, "64g": 64 * GIB}


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    offsets = random.Random(1).sample(range(0, GIB, 4096), CHANGED_BYTES // 4096)
    changed: dict[str, list[float]] = {}
    with pair(work) as sites:
        for name, size_bytes in SIZES.items():
            image = sites.sites.a.disks / f"cycle-{name}.qcow2"
            machines.empty_qcow2(image, size_bytes)
            with machines.idle_machine(sites.sites.a, f"cycle-{name}", image) as machine:
                # the first GiB is allocated before: growing the file would be measured as well
                machine.write(range(0, GIB, MIB), os.urandom(MIB))
                sites.gateways.protect(machine.name, copy_frequency_seconds=LONG_SECONDS)
                sites.wait_for_points(machine.name, 1)
                changed[name] = [_changed_cycle(sites, machine, offsets) for _ in range(ROUNDS)]
                empty = _empty_cycles(sites, machine.name)
                sites.unprotect(machine.name)
            image.unlink()
            report.add(_empty_figure(name, empty))
    for name, found in changed.items():
        report.add(Figure(f"cycle_64mib_{name}_s", median(found), "s", note=spread(found)))
    ratio = median(changed["64g"]) / median(changed["1g"])
    report.add(Figure("cycle_size_ratio_64g_vs_1g", ratio, "times", at_most=1.2))


def _empty_figure(name: str, seconds: list[float]) -> Figure:
    key = "cycle_empty_ms" if name == "1g" else f"cycle_empty_{name}_ms"
    in_ms = [value * 1000 for value in seconds]
    return Figure(key, median(in_ms), "ms", at_most=150, note=spread(in_ms))


def _changed_cycle(sites: Pair, machine: machines.IdleMachine, offsets: list[int]) -> float:
    """Write while the next cycle is far off, then let it come."""
    points = rest(sites, machine.name)
    machine.write(offsets, os.urandom(4096))
    if sites.status(machine.name).points != points:
        raise RuntimeError("a cycle came while the bench was writing")
    sites.gateways.protect(machine.name, copy_frequency_seconds=1.0)
    status = sites.wait_for_points(machine.name, points + 1)
    sites.gateways.protect(machine.name, copy_frequency_seconds=LONG_SECONDS)
    seconds, changed = status.cycle_seconds, status.changed_bytes
    if seconds is None or changed < CHANGED_BYTES:
        raise RuntimeError(f"the cycle carried {changed} bytes in {seconds} s, not what was written")
    return seconds


def rest(sites: Pair, machine: str) -> int:
    """Wait until no point has come for a while (one was due already when the frequency was lowered)."""
    points, since = sites.status(machine).points, time.monotonic()
    while time.monotonic() - since < REST_SECONDS:
        time.sleep(0.2)
        found = sites.status(machine).points
        if found != points:
            points, since = found, time.monotonic()
    return points


def _empty_cycles(sites: Pair, machine: str) -> list[float]:
    """Cycles in a row with nothing changed."""
    sites.gateways.protect(machine, copy_frequency_seconds=1.0)
    found: list[float] = []
    last = sites.status(machine).points
    while len(found) < EMPTY_CYCLES:
        status = sites.wait_for_points(machine, last + 1)
        last = status.points
        if status.changed_bytes == 0 and status.cycle_seconds is not None:
            found.append(status.cycle_seconds)
        time.sleep(0.1)
    return found
