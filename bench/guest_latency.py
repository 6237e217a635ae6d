"""The guest's write latency as the guest itself sees it: idle, in cycles, in a throttled first copy.

A program in the lab's guest (latency.c, brought in on a third disk) writes 4 KiB with O_DIRECT|O_DSYNC a
hundred times a second to random places of 48 MiB of that disk, which nothing else uses and whose clusters all
hold data. Many of the writes are the first to their 64 KiB cluster since the last instant: what hurts where a
hypervisor saves old content before it lets a write through.

The guest's processor is emulated and shares the machine's cores with both hypervisors, both gateways and
their sealing: a figure here is an upper bound of what a guest with a processor of its own would see. Idle is
measured before and after; what the machine does otherwise shows in the difference.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import libvirt

from bench.machines import qcow2_of
from bench.measure import cpu_seconds_of
from bench.pair import Pair, pair
from bench.report import Figure, Report
from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.lab import processes
from secondsite.lab.guest import build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest

SOURCE = Path(__file__).with_name("latency.c")
PROGRAM_BYTES = 4 * MIB  # room for the program at the disk's start
REGION_BYTES = 192 * MIB
WRITTEN_BYTES = 48 * MIB  # of it; an increment of a first copy under load must come to an end
BANDWIDTH = 10_000_000
PER_SECOND = 100
IDLE_SECONDS, FIRST_COPY_SECONDS, CYCLES_SECONDS, AGAIN_SECONDS = 20, 36, 26, 8
# A window after each instant in which a cycle reads, hashes and seals what changed.
NEAR_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """One write."""

    at: float  # when it began, in seconds of this machine's clock
    took: float  # milliseconds
    late: float  # milliseconds it began after it was due


@dataclass(frozen=True)
class Phase:
    """The writes of one phase and what it cost besides."""

    samples: list[Sample]
    seconds: float
    cores: float  # used by both gateways, without the processes they started
    load: float
    about: str = ""

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return percentile([sample.took for sample in self.samples], share)

    def note(self) -> str:
        """What stands beside the p99."""
        late = percentile([sample.late for sample in self.samples], 99)
        return (
            f"p50 {self.percentile(50):.2f}, p99.9 {self.percentile(99.9):.1f}, max "
            f"{self.percentile(100):.1f} ms; {len(self.samples)} writes, "
            f"{len(self.samples) / self.seconds:.0f}/s; begun late p99 {late:.1f} ms; "
            f"gateways {self.cores:.2f} cores, load {self.load:.1f}{self.about}"
        )


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    boot_files = build_boot_files()
    spec = GuestSpec(name="latency", files_bytes=32 * MIB, pages_bytes=16 * MIB)
    with pair(work, bandwidth_bytes_per_second=BANDWIDTH) as sites:
        guest = create_guest(sites.sites.a, boot_files, spec)
        disk = sites.sites.a.disks / "latency-vdc.qcow2"
        try:
            _make_disk(work, disk)
            _attach_disk(guest, disk)
            guest.start()
            guest.wait_ready()
            code, output = guest.execute("/bin/sh", "-c", _FETCH)
            if code:
                raise RuntimeError(f"the sampler cannot be brought in: {output}")
            phases = _phases(sites, guest)
        finally:
            guest.remove()
            disk.unlink(missing_ok=True)
    _report(report, phases)


_FETCH = "dd if=/dev/vdc of=/bin/latency bs=1M count=4 2>/dev/null && chmod 755 /bin/latency"


def _report(report: Report, phases: dict[str, Phase]) -> None:
    idle = phases["idle"]
    for name, phase in phases.items():
        report.add(Figure(f"guest_write_p99_{name}_ms", phase.percentile(99), "ms", note=phase.note()))
    for name in ("cycles", "first_copy"):
        phase = phases[name]
        half = f"p50 {phase.percentile(50) / idle.percentile(50):.2f} times"
        value = phase.percentile(99) / idle.percentile(99)
        report.add(Figure(f"guest_write_p99_{name}_vs_idle", value, "times", note=half))


def _phases(sites: Pair, guest: Guest) -> dict[str, Phase]:
    phases = {"idle": _sample(sites, guest, IDLE_SECONDS, 1)}

    def first_copy() -> str:
        start = _now()
        sites.gateways.protect(guest.name, copy_frequency_seconds=5)
        status = sites.wait_for_points(guest.name, 1, poll_seconds=0.5)
        return f"; {status.total_sent_bytes / MIB:.0f} MiB sent in {_now() - start:.0f} s"

    phases["first_copy"] = _sample(sites, guest, FIRST_COPY_SECONDS, 2, until=first_copy)
    before = _instants(sites, guest)
    cycles = _sample(sites, guest, CYCLES_SECONDS, 3)
    phases["cycles"] = _tell_cycles(cycles, sorted(_instants(sites, guest) - before))
    sites.unprotect(guest.name)
    sites.wait_until_quiet()
    phases["idle_again"] = _sample(sites, guest, AGAIN_SECONDS, 4)
    return phases


def _sample(
    sites: Pair, guest: Guest, seconds: int, seed: int, *, until: Callable[[], str] | None = None
) -> Phase:
    """Run the sampler; of its samples those count that began before `until` came to its end."""
    ahead = _clock_ahead(guest)
    words = ["/dev/vdc", PROGRAM_BYTES, WRITTEN_BYTES, PER_SECOND, seconds, seed]
    arguments: dict[str, Any] = {
        "path": "/bin/latency",
        "arg": [str(word) for word in words],
        "capture_output": True,
    }
    pid = guest.agent("guest-exec", **arguments)["pid"]
    begun, before = _now(), _cpu_seconds(sites)
    about = until() if until else ""
    if not until:
        # nobody asks the agent meanwhile: its answers would take the guest's only processor
        time.sleep(seconds)
    end = _now()
    cores, load = (_cpu_seconds(sites) - before) / (end - begun), os.getloadavg()[0]
    time.sleep(max(0.0, begun + seconds - end))
    samples = [sample for sample in _read(_output(guest, pid), ahead) if sample.at < end]
    if len(samples) < 500:
        raise RuntimeError(f"the guest wrote {len(samples)} times in {end - begun:.0f} s")
    return Phase(samples, samples[-1].at + samples[-1].took - samples[0].at, cores, load, about)


def _tell_cycles(phase: Phase, instants: Sequence[float]) -> Phase:
    """Say how the writes right after an instant compare with the others."""
    groups: tuple[list[float], list[float]] = ([], [])
    for sample in phase.samples:
        near = any(-NEAR_SECONDS / 2 <= sample.at - at < NEAR_SECONDS for at in instants)
        groups[near].append(sample.took)
    if not all(groups):
        return phase
    others, near_ones = (percentile(group, 99) for group in groups)
    about = (
        f"; {len(instants)} instants, p99 around them {near_ones:.2f} ms ({len(groups[1])} writes), "
        f"between them {others:.2f} ms"
    )
    return replace(phase, about=about)


def _instants(sites: Pair, guest: Guest) -> set[float]:
    with sites.gateways.client(sites.sites.b) as client:
        return {datetime.fromisoformat(point.at).timestamp() for point in client.points(guest.name)}


def _cpu_seconds(sites: Pair) -> float:
    return sum(map(cpu_seconds_of, sites.gateway_pids()))


def _clock_ahead(guest: Guest) -> float:
    """Seconds the guest's clock is ahead of this machine's, give or take half of what the asking took."""
    asked = _now()
    answer = guest.agent("guest-get-time") / 1e9
    return float(answer - (asked + _now()) / 2)


def _output(guest: Guest, pid: int) -> str:
    done = processes.wait_until(
        lambda: status if (status := guest.agent("guest-exec-status", pid=pid))["exited"] else None,
        what="the sampler in the guest",
        root=guest.site.root,
        seconds=60,
        poll_seconds=0.5,
    )
    if done.get("exitcode") != 0:
        raise RuntimeError(f"the sampler failed: {base64.b64decode(done.get('err-data', '')).decode()}")
    return base64.b64decode(done["out-data"]).decode()


def _read(output: str, ahead: float) -> list[Sample]:
    clock, *lines = output.splitlines()
    zero = int(clock.removeprefix("CLOCK ")) / 1e9 - ahead
    rows = (tuple(int(word) / 1e6 for word in line.split()) for line in lines)
    return [
        Sample(at=zero + begun, took=(done - begun) * 1000, late=(begun - due) * 1000)
        for due, begun, done in rows
    ]


def _make_disk(work: Path, disk: Path) -> None:
    """The third disk: the program at its start, behind it the region, all of it random data."""
    program, raw = work / "latency", work / "latency.raw"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, SOURCE], check=True)
    content = program.read_bytes()
    if len(content) > PROGRAM_BYTES:
        raise RuntimeError(f"the sampler has {len(content)} bytes")
    with raw.open("wb") as output:
        output.write(content.ljust(PROGRAM_BYTES, b"\0"))
        for _ in range(REGION_BYTES // MIB):
            output.write(os.urandom(MIB))
    qcow2_of(raw, disk)
    raw.unlink()


def _attach_disk(guest: Guest, disk: Path) -> None:
    """As the other disks of the machine are, from its next start on."""
    xml = f"""
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
        <source file='{disk}'/><target dev='vdc' bus='virtio'/>
      </disk>"""
    with contextlib.closing(guest.site.connect()) as connection:
        domain = connection.lookupByName(guest.name)
        domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        connection.storagePoolLookupByName(guest.site.pool).refresh()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


def _now() -> float:
    return SystemClock().utc().timestamp()
