"""What replication costs the guest: how long its durable writes take idle, in cycles, in a first copy.

The lab's guest appends records: two writes of 4 KiB with O_DIRECT|O_DSYNC, one to each disk, every eighth
time two synced appends to files and a random page more. What is measured is the time from one record's
acknowledgement to the next, without the pause between them, as the host sees it; it includes the guest's
emulated processor. First without any protection, then during a first copy throttled to 8 MB/s, then with a
cycle each second, then idle again: what the machine does otherwise shows in the two idle figures.
"""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

from bench.pair import Pair, pair
from bench.report import Figure, Report
from secondsite.base.clock import SystemClock
from secondsite.lab.guest import build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest
from secondsite.lab.witness import Witness

PHASE_SECONDS = 20.0
THROTTLED_BYTES_PER_SECOND = 8_000_000
PAUSE_US = 5000


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    spec = GuestSpec(name="writes", pause_us=PAUSE_US, record_slots=65536)
    boot_files = build_boot_files()
    with pair(work, bandwidth_bytes_per_second=THROTTLED_BYTES_PER_SECOND) as sites:
        guest = create_guest(sites.sites.a, boot_files, spec)
        witness = Witness()
        try:
            guest.start()
            guest.wait_ready()
            witness.attach(guest.channel_path())
            phases = _phases(sites, guest, witness)
        finally:
            witness.close()
            guest.remove()
    idle = phases["idle"]
    for name, gaps in phases.items():
        for share in (50, 99):
            value = _percentile(gaps, share) * 1000
            ratio = value / (_percentile(idle, share) * 1000)
            note = f"{ratio:.2f} times idle; longest {max(gaps) * 1000:.0f} ms of {len(gaps)}"
            report.add(Figure(f"guest_write_{name}_p{share}_ms", value, "ms", note=note))


def _phases(sites: Pair, guest: Guest, witness: Witness) -> dict[str, list[float]]:
    phases = {"idle": _for_a_while(witness)}
    start = _now()
    sites.gateways.protect(guest.name, copy_frequency_seconds=1)
    sites.wait_for_points(guest.name, 1, poll_seconds=0.25)
    phases["first_copy"] = _gaps(witness, start, _now())
    phases["cycles"] = _for_a_while(witness)
    sites.unprotect(guest.name)
    sites.wait_until_quiet()
    phases["idle_again"] = _for_a_while(witness)
    return phases


def _for_a_while(witness: Witness) -> list[float]:
    start = _now()
    time.sleep(PHASE_SECONDS)
    return _gaps(witness, start, _now())


def _gaps(witness: Witness, start: float, end: float) -> list[float]:
    times = witness.acknowledged_between(start, end)
    if len(times) < 100:
        raise RuntimeError(f"the guest wrote {len(times)} records in {end - start:.0f} s")
    pause = PAUSE_US / 1e6
    return [max(0.0, b - a - pause) for a, b in itertools.pairwise(times)]


def _percentile(values: list[float], share: int) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(len(values) * share / 100) - 1)]


def _now() -> float:
    return SystemClock().utc().timestamp()
