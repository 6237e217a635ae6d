"""Steady churn: what RPO holds while machines are written to at a given rate, at a copy frequency of 5 s.

Azure Site Recovery names 54 MB/s as the limit of one machine: random writes of 16 KiB, half random data,
half text, on a disk of 2 GiB; then the same rate in 4 KiB writes, then more and more until the RPO does not
stay below 10 s. Change tracking is as coarse as QEMU's, 64 KiB, so a source reads up to 4 (16) times what
was written. Two real gateways with mutual TLS between them, a directory store at B. No guest: the machines
are those of a simulated hypervisor in a process of its own (`churn_host`), which feeds them and serves their
captures over NBD on a unix socket as QEMU does. It shares the cores with both gateways; what it takes of them
is a figure. Ten machines share the same rate afterwards: the worst machine's RPO is held against the
median's, and memory is counted for each further machine.

It takes 6 minutes at most, `--quick` 2: when the time is up, what is left is not measured, and the note says
so. Figures are printed and kept as they come.
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

from bench.churn_fabric import Line
from bench.churn_wire import Ask, Do
from bench.measure import anonymous_mib, cpu_seconds_of
from bench.report import Figure, Report, median, spread
from secondsite.base.units import GIB, MIB
from secondsite.gateway.control.client import GatewayUnreachable
from secondsite.gateway.messages.gateway import ProtectionState, ProtectionStatus
from support.gateway_pair import A, B, Pair

RATE_MB_S, RPO_MAX_SECONDS = 54.0, 10.0
FREQUENCY_SECONDS = 5.0
HIGHER_MB_S = (80.0, 110.0, 150.0, 200.0)
SAMPLE_SECONDS = 0.25
# A gateway that has all cores full answers late; one that is gone does not answer at all.
SILENCE_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class Plan:
    """How long each part takes, seconds; `total` bounds all, `ten` is kept free for the last part."""

    warm: float = 2.5 * FREQUENCY_SECONDS
    steady: float = 60
    small: float = 25
    higher: float = 20
    total: float = 360
    ten: float = 110


FULL = Plan()
QUICK = Plan(warm=2 * FREQUENCY_SECONDS, steady=15, small=10, higher=10, total=150, ten=50)


@dataclass
class Site:
    """The hypervisor and both gateways, as processes of their own."""

    pair: Pair
    source: subprocess.Popen[str]
    target: subprocess.Popen[bytes]
    host: subprocess.Popen[bytes]
    line: Line
    names: list[str]

    def written(self) -> int:
        """Bytes written at a rate so far."""
        return self.line.ask(Ask(do=Do.TOLD)).written_bytes

    def write(self, mb_s: float, block_bytes: int) -> None:
        """From now on, all machines together."""
        self.line.ask(Ask(do=Do.RATE, mb_s=mb_s, block_bytes=block_bytes))

    def statuses(self) -> tuple[ProtectionStatus, ...]:
        """Of all machines; waits for a gateway that is slow to answer."""
        end = time.monotonic() + SILENCE_SECONDS_MAX
        while True:
            try:
                with self.pair.client_a() as client:
                    return client.status().protections
            except GatewayUnreachable:
                if time.monotonic() > end or self.source.poll() is not None:
                    raise
                time.sleep(SAMPLE_SECONDS)


@dataclass
class Load:
    """What one load did."""

    rpo: dict[str, list[float]] = field(default_factory=dict)
    written_mb_s: float = 0.0
    sent_ratio: float = 0.0  # stored bytes sent for each byte written
    cores: list[float] = field(default_factory=list)  # source gateway, target gateway, hypervisor
    source_mib: list[float] = field(
        default_factory=list
    )  # anonymous memory, as often as the RPO is looked at
    target_mib: list[float] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The worst RPO of any machine, seconds."""
        return max(max(found) for found in self.rpo.values())


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    plan = QUICK if report.quick else FULL
    end = time.monotonic() + plan.total
    with _site(work / "churn-1", machines=1, disk_bytes=2 * GIB) as site:
        steady = _load(site, plan, RATE_MB_S, 16384, plan.steady)
        _report_steady(report, steady)
        small = _load(site, plan, RATE_MB_S, 4096, plan.small)
        note = f"{small.written_mb_s:.0f} MB/s in 4 KiB, {small.sent_ratio:.2f} bytes sent for each"
        report.add(Figure("churn_4k_rpo_worst_s", small.worst, "s", note=note))
        report.write()
        _highest(report, site, plan, steady, end - plan.ten)
    if time.monotonic() > end - plan.ten / 2:
        report.add(Figure("churn_10_machines_rpo_worst_s", None, "s", note="the time was up"))
        return
    _ten(report, work, plan, steady)


def _report_steady(report: Report, steady: Load) -> None:
    all_rpo = [value for values in steady.rpo.values() for value in values]
    report.add(
        Figure("churn_54mb_s_rpo_worst_s", steady.worst, "s", at_most=RPO_MAX_SECONDS, note=spread(all_rpo)),
        Figure("churn_54mb_s_rpo_median_s", median(all_rpo), "s"),
        Figure("churn_54mb_s_written_mb_s", steady.written_mb_s, "MB/s", note="what the feeder reached"),
        Figure("churn_54mb_s_sent_per_written", steady.sent_ratio, "bytes/byte"),
        Figure("churn_54mb_s_source_cores", steady.cores[0], "cores"),
        Figure("churn_54mb_s_target_cores", steady.cores[1], "cores"),
        Figure("churn_54mb_s_host_cores", steady.cores[2], "cores", note="the simulated hypervisor"),
    )
    report.write()


def _highest(report: Report, site: Site, plan: Plan, steady: Load, end: float) -> None:
    """Raise the rate until the RPO does not stay below the limit, the feeder fails, or time is up."""
    holds = steady.written_mb_s if steady.worst <= RPO_MAX_SECONDS else 0.0
    why = "the RPO was not held at the first rate" if not holds else "the highest tried"
    for rate in HIGHER_MB_S if holds else ():
        if time.monotonic() + plan.warm + plan.higher > end:
            why = f"the time was up before {rate:g} MB/s"
            break
        found = _load(site, plan, rate, 16384, plan.higher)
        cores = ", ".join(f"{share:.2f}" for share in found.cores)
        print(f"  {rate:g} MB/s: {found.written_mb_s:.0f} written, RPO {found.worst:.1f} s at worst, "
              f"cores of source, target, hypervisor {cores}", flush=True)  # fmt: skip
        if found.worst > RPO_MAX_SECONDS:
            why = f"at {rate:g} MB/s it was {found.worst:.1f} s"
            break
        holds = found.written_mb_s
        if found.written_mb_s < 0.9 * rate:
            why = f"of {rate:g} MB/s the feeder reached no more; the RPO held"
            break
    site.write(0, 16384)
    note = f"at which the RPO stays below {RPO_MAX_SECONDS:g} s; {why}"
    report.add(Figure("churn_holds_mb_s", holds, "MB/s", note=note))
    report.write()


def _ten(report: Report, work: Path, plan: Plan, single: Load) -> None:
    with _site(work / "churn-10", machines=10, disk_bytes=256 * MIB) as site:
        shared = _load(site, plan, RATE_MB_S, 16384, min(plan.steady, 45))
    worst = [max(values) for values in shared.rpo.values()]
    report.add(
        Figure(
            "churn_10_machines_rpo_worst_s", shared.worst, "s", at_most=RPO_MAX_SECONDS, note=spread(worst)
        ),
        Figure("churn_10_machines_written_mb_s", shared.written_mb_s, "MB/s"),
        Figure("churn_10_worst_to_median", shared.worst / median(worst), "times"),
        _further("churn_mib_a_further_machine", single.source_mib, shared.source_mib),
        _further("churn_target_mib_a_further_machine", single.target_mib, shared.target_mib),
    )
    report.write()


def _further(key: str, one: list[float], ten: list[float]) -> Figure:
    """From the most that was seen of each; the medians beside it."""
    note = (
        f"largest {max(one):.0f} and {max(ten):.0f} MiB, median {median(one):.0f} and {median(ten):.0f} MiB, "
        "with one and ten machines"
    )
    return Figure(key, (max(ten) - max(one)) / 9, "MiB", at_most=10.0, note=note)


@contextlib.contextmanager
def _site(root: Path, *, machines: int, disk_bytes: int) -> Iterator[Site]:
    root.mkdir()
    pair = Pair(root, cache_limit_bytes=4 * GIB)
    port = _free_port()
    pair.config(B, listen=port, peers={A: "https://127.0.0.1:1"})
    pair.config_a(("127.0.0.1", port))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    log = (root / "gateways.log").open("w")
    command = [sys.executable, "-m", "bench.churn_host", str(root), str(machines), str(disk_bytes)]
    host = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, env=environment)
    command = [sys.executable, "-m", "secondsite", "gateway", "--config", str(root / B / "gateway.toml")]
    target = subprocess.Popen(command, stderr=log, env=environment)
    command = [sys.executable, "-m", "bench.churn_source", str(root), str(root)]
    source = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    try:
        assert source.stdout is not None
        assert source.stdin is not None
        if source.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the source did not start: {(root / 'gateways.log').read_text()[-2000:]}")
        names = [f"churn-{number}" for number in range(machines)]
        line = Line(root)
        site = Site(pair, source, target, host, line, names)
        line.ask(Ask(do=Do.FILL))
        for name in names:
            pair.protect(name, frequency_seconds=FREQUENCY_SECONDS)
        _wait_until_protected(site)
        yield site
        line.ask(Ask(do=Do.RATE, mb_s=0, block_bytes=4096))
        source.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            source.wait(STOP_SECONDS_MAX)
    except BaseException:
        found = [process.poll() for process in (source, target, host)]
        tail = (root / "gateways.log").read_text()[-3000:]
        print(f"  ends of source, target and hypervisor: {found}\n{tail}", flush=True)
        raise
    finally:
        for process in (source, target, host):
            _end(process)
        log.close()


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """In order, or at once when that takes long: what it had is thrown away with its directory."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: int = server.getsockname()[1]
        return found


def _wait_until_protected(site: Site, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = site.statuses()
        if {status.state for status in found} == {ProtectionState.PROTECTED} and min(
            status.points for status in found
        ) >= 1:
            return
        time.sleep(SAMPLE_SECONDS)
    raise RuntimeError(f"after {seconds} s: {[(status.name, status.state, status.note) for status in found]}")


def _load(site: Site, plan: Plan, rate: float, block: int, seconds: float) -> Load:
    """Write for some cycles first, then watch."""
    load = Load({name: [] for name in site.names})
    site.write(rate, block)
    time.sleep(plan.warm)
    processes = (site.source, site.target, site.host)
    cpu = [cpu_seconds_of(process.pid) for process in processes]
    written, sent = site.written(), _sent(site)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        time.sleep(SAMPLE_SECONDS)
        for status in site.statuses():
            assert status.rpo_seconds is not None, "there was a point before the load began"
            load.rpo[status.name].append(status.rpo_seconds)
        load.source_mib.append(anonymous_mib(site.source.pid))
        load.target_mib.append(anonymous_mib(site.target.pid))
    took = time.monotonic() - started
    done = site.written() - written
    load.written_mb_s = done / 1e6 / took
    load.sent_ratio = (_sent(site) - sent) / max(done, 1)
    now = [cpu_seconds_of(process.pid) for process in processes]
    load.cores = [(after - before) / took for after, before in zip(now, cpu, strict=True)]
    return load


def _sent(site: Site) -> int:
    return sum(status.total_sent_bytes for status in site.statuses())
