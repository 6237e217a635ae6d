"""Steady churn: what RPO holds while machines are written to at a given rate, at a copy frequency of 5 s.

Azure Site Recovery names 54 MB/s as the limit of one machine: random writes of 16 KiB, half random data,
half text, on a disk of 2 GiB; then the same rate in 4 KiB writes, then more and more until the RPO does not
stay below 10 s. Change tracking is as coarse as QEMU's, 64 KiB, so a source reads up to 4 (16) times what
was written. Two real gateways with mutual TLS between them, a directory store at B. The machines are those
of an in-memory fabric, in A's process: no hypervisor's work is in the figures (`cycles` has it), but the
feeder's is. Ten machines share the same rate afterwards: the worst machine's RPO is held against the
median's, and memory is counted for each further machine, the machines' own disks left out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import anonymous_mib, cpu_seconds_of
from bench.report import Figure, Report, median, spread
from secondsite.base.units import GIB, MIB
from secondsite.gateway.client import GatewayUnreachable
from secondsite.gateway.messages import ProtectionState
from support.gateway_pair import A, B, Pair

RATE_MB_S, RPO_MAX_SECONDS = 54.0, 10.0
FREQUENCY_SECONDS = 5.0
HIGHER_MB_S = (80.0, 110.0, 150.0, 200.0)
SAMPLE_SECONDS = 0.25


@dataclass
class Site:
    """Both gateways, as processes of their own."""

    pair: Pair
    source: subprocess.Popen[str]
    target: subprocess.Popen[bytes]
    names: list[str]

    def tell(self, line: str) -> list[int]:
        """Bytes written so far, and bytes the disks take in A's memory."""
        assert self.source.stdin is not None
        assert self.source.stdout is not None
        self.source.stdin.write(line + "\n")
        self.source.stdin.flush()
        return [int(word) for word in self.source.stdout.readline().split()]


@dataclass
class Load:
    """What one load did."""

    rpo: dict[str, list[float]] = field(default_factory=dict)
    written_mb_s: float = 0.0
    sent_ratio: float = 0.0  # stored bytes sent for each byte written
    source_cores: float = 0.0
    target_cores: float = 0.0

    @property
    def worst(self) -> float:
        """The worst RPO of any machine, seconds."""
        return max(max(found) for found in self.rpo.values())


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    with _site(work / "churn-1", machines=1, disk_bytes=2 * GIB) as site:
        steady = _load(site, RATE_MB_S, 16384, seconds=60)
        single_mib = _memory(site)
        small = _load(site, RATE_MB_S, 4096, seconds=40)
        holds = RATE_MB_S if steady.worst <= RPO_MAX_SECONDS else 0.0
        for rate in HIGHER_MB_S if holds else ():
            try:
                found = _load(site, rate, 16384, seconds=30)
            except GatewayUnreachable:
                break  # the feeder takes all there is of A's process
            if found.worst > RPO_MAX_SECONDS or found.written_mb_s < 0.9 * rate:
                break
            holds = found.written_mb_s
    all_rpo = [value for values in steady.rpo.values() for value in values]
    report.add(
        Figure("churn_54mb_s_rpo_worst_s", steady.worst, "s", at_most=RPO_MAX_SECONDS, note=spread(all_rpo)),
        Figure("churn_54mb_s_written_mb_s", steady.written_mb_s, "MB/s", note="what the feeder reached"),
        Figure("churn_54mb_s_sent_per_written", steady.sent_ratio, "bytes/byte"),
        Figure("churn_54mb_s_source_cores", steady.source_cores, "cores", note="the feeder's share included"),
        Figure("churn_54mb_s_target_cores", steady.target_cores, "cores"),
        Figure("churn_4k_rpo_worst_s", small.worst, "s", note=f"{small.written_mb_s:.0f} MB/s in 4 KiB"),
        Figure(
            "churn_holds_mb_s",
            holds,
            "MB/s",
            note=f"highest tried at which RPO stays below {RPO_MAX_SECONDS:g} s",
        ),
    )
    _ten(report, work, single_mib)


def _ten(report: Report, work: Path, single_mib: float) -> None:
    with _site(work / "churn-10", machines=10, disk_bytes=256 * MIB) as site:
        shared = _load(site, RATE_MB_S, 16384, seconds=60)
        ten_mib = _memory(site)
    worst = [max(values) for values in shared.rpo.values()]
    report.add(
        Figure(
            "churn_10_machines_rpo_worst_s", shared.worst, "s", at_most=RPO_MAX_SECONDS, note=spread(worst)
        ),
        Figure("churn_10_worst_to_median", shared.worst / median(worst), "times"),
        Figure("churn_mib_a_further_machine", (ten_mib - single_mib) / 9, "MiB", at_most=10.0),
    )


@contextlib.contextmanager
def _site(root: Path, *, machines: int, disk_bytes: int) -> Iterator[Site]:
    root.mkdir()
    pair = Pair(root, cache_limit_bytes=4 * GIB)
    port = _free_port()
    pair.config(B, listen=port, peers={A: "https://127.0.0.1:1"})
    pair.config_a(("127.0.0.1", port))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    log = (root / "gateways.log").open("w")
    command = [sys.executable, "-m", "secondsite", "gateway", "--config", str(root / B / "gateway.toml")]
    target = subprocess.Popen(command, stderr=log, env=environment)
    command = [sys.executable, "-m", "bench.churn_source", str(root), str(machines), str(disk_bytes)]
    source = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    try:
        assert source.stdout is not None
        if source.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the source did not start: {(root / 'gateways.log').read_text()[-2000:]}")
        names = [f"churn-{number}" for number in range(machines)]
        site = Site(pair, source, target, names)
        site.tell("fill")
        for name in names:
            pair.protect(name, frequency_seconds=FREQUENCY_SECONDS)
        _wait_until_protected(site)
        yield site
        site.tell("end")
        source.wait(60)
    finally:
        for process in (source, target):
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        log.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: int = server.getsockname()[1]
        return found


def _wait_until_protected(site: Site, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with site.pair.client_a() as client:
            states = {status.state for status in client.status().protections}
            points = [status.points for status in client.status().protections]
        if states == {ProtectionState.PROTECTED} and min(points) >= 1:
            return
        time.sleep(0.5)
    raise RuntimeError(f"the machines are {states} after {seconds} s")


def _load(site: Site, rate: float, block: int, *, seconds: float) -> Load:
    """Write for some cycles first, then watch."""
    load = Load({name: [] for name in site.names})
    site.tell(f"rate {rate} {block}")
    time.sleep(3 * FREQUENCY_SECONDS)
    written = site.tell("told")[0]
    cpu = [cpu_seconds_of(process.pid) for process in (site.source, site.target)]
    sent = _sent(site)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        time.sleep(SAMPLE_SECONDS)
        with site.pair.client_a() as client:
            for status in client.status().protections:
                load.rpo[status.name].append(status.rpo_seconds if status.rpo_seconds is not None else 1e9)
    took = time.monotonic() - started
    done = site.tell("told")[0] - written
    load.written_mb_s = done / 1e6 / took
    load.sent_ratio = (_sent(site) - sent) / max(done, 1)
    used = [cpu_seconds_of(process.pid) for process in (site.source, site.target)]
    load.source_cores, load.target_cores = (
        (after - before) / took for before, after in zip(cpu, used, strict=True)
    )
    site.tell(f"rate 0 {block}")
    return load


def _sent(site: Site) -> int:
    with site.pair.client_a() as client:
        return sum(status.total_sent_bytes for status in client.status().protections)


def _memory(site: Site) -> float:
    """Anonymous memory of the source without the machines' own disks, MiB."""
    return anonymous_mib(site.source.pid) - site.tell("told")[1] / MIB
