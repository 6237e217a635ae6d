"""From asking for a failover to the first userspace line, against booting the original in the same run.

The guest of the lab boots at A from its own disks; then at B as a test, by an unplanned failover (its
source paused, its gateway alive), by a planned one, each of these two rolled back again. With a system disk
of 1 GiB, and of 64 GiB (sparse, with a gibibyte of files); from a journal of about ten points, then from one
of a day's points at 5 s (17,280), made up of segments that say again what is there. The downtime of a planned
move counts from the request to stop its source. At last the machine of 1 GiB is committed while it writes
records: how fast its disks became plain, and what it noticed.

Parts are chosen by `--size`, `--points` and `--kind`; figures are written as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.boot import SIZES, test_failover, watch
from bench.failing import Bench, raise_error, until
from bench.longjournal import POINTS_A_DAY, lengthen
from bench.pair import Pair, pair
from bench.report import Figure, Report, median, spread
from secondsite.base.units import GIB, MIB
from secondsite.gateway.messages.failover import CommitFailover, FailoverStatus
from secondsite.lab.guest import BootFiles, build_boot_files
from secondsite.lab.machine import Guest, GuestSpec, create_guest, read_console
from secondsite.lab.witness import Witness
from secondsite.model import confirmations
from secondsite.model.failover import FailoverState

ROUNDS = 3
FEW, MANY = "10", "17280"
KINDS = ("test", "unplanned", "planned")
SETTLE_SECONDS = 5.0
# What a figure of many points may be of the same figure of few: what a failover costs follows change.
LONGER_MAX = 1.5


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    boot_files = build_boot_files()
    with pair(work) as sites:
        for name, size_bytes in SIZES.items():
            # of quick runs the small one only, unless the other is asked for
            if report.wants("size", name) and (name == "1g" or not report.quick or "size" in report.chosen):
                files_bytes = GIB if size_bytes > 2 * GIB else GuestSpec.files_bytes
                spec = GuestSpec(name=f"fo-{name}", system_bytes=size_bytes, files_bytes=files_bytes)
                _Part(report, sites, boot_files, name, spec).run()
                report.write()


class _Part:
    """One machine, all that is measured of it."""

    def __init__(
        self, report: Report, sites: Pair, boot_files: BootFiles, size: str, spec: GuestSpec
    ) -> None:
        self._report, self._sites, self._size = report, sites, size
        self._rounds = 1 if report.quick else ROUNDS
        self._begun = time.monotonic()
        self._say("its disks are made")
        self._guest = create_guest(sites.sites.a, boot_files, spec)
        self._bench = Bench(sites, self._guest)
        self._plain: list[float] = []
        self._few: dict[str, list[float]] = {}

    def _say(self, text: str) -> None:
        print(f"  {time.monotonic() - self._begun:5.0f} s  {self._size}: {text}", flush=True)

    def run(self) -> None:
        """All parts that were asked for."""
        name, sites = self._guest.name, self._sites
        try:
            self._plain = [self._boot(number) for number in range(self._rounds)]
            self._guest.wait_ready()
            self._say("its first copy")
            sites.gateways.protect(name, copy_frequency_seconds=1)
            sites.wait_for_points(name, int(FEW), seconds=600)
            if self._report.wants("points", FEW):
                self._kinds("")
            if self._report.wants("points", MANY):
                short = self._report.quick and "points" not in self._report.chosen
                points = 500 if short else POINTS_A_DAY
                self._lengthen(points)
                self._kinds(f"_{points}_points")
            if self._size == "1g" and self._report.wants("kind", "flatten"):
                self._say("committed while it writes")
                self._guest.pause()
                _flattening(self._report, self._bench)
        finally:
            sites.unprotect(name)
            self._guest.remove()

    def _boot(self, number: int) -> float:
        self._say(f"boot of the original, {number + 1} of {self._rounds}")
        self._guest.destroy()
        before = len(read_console(self._guest.console_log))
        start = time.monotonic()
        self._guest.start()
        return watch(lambda: self._guest.console_log, before, start).first_line

    def _kinds(self, points: str) -> None:
        suffix = points if self._size == "1g" else f"_{self._size}{points}"
        away: list[float] = []
        for kind in KINDS:
            if not self._report.wants("kind", kind):
                continue
            times = []
            for number in range(self._rounds):
                self._say(f"{kind}{points.replace('_', ' ')}, {number + 1} of {self._rounds}")
                times.append(self._one(kind, away))
            _ratio(self._report, f"failover_{kind}_over_plain{suffix}", times, self._plain)
            if not points:
                self._few[kind] = times
            elif kind in self._few:
                longer = median(times) / median(self._few[kind])
                note = f"{median(times):.2f} s against {median(self._few[kind]):.2f} s from about ten points"
                key = f"failover_{kind}_longer{suffix}"
                self._report.add(Figure(key, longer, "times", at_most=LONGER_MAX, note=note))
            if kind == "planned":
                note = f"from asking the source to stop; {spread(away)}"
                key = f"failover_planned_away{suffix}_s"
                self._report.add(Figure(key, median(away), "s", note=note))
            self._report.write()

    def _one(self, kind: str, away: list[float]) -> float:
        """Seconds of one; the machine runs at its source before and after."""
        if kind == "planned":
            seconds, whole = self._bench.planned(self._say)
            away.append(whole)
            return seconds
        if kind == "unplanned":
            return self._bench.unplanned(self._say)
        self._guest.pause()
        try:
            return test_failover(self._sites, self._guest.name).first_line
        finally:
            self._guest.resume()

    def _lengthen(self, points: int) -> None:
        """A journal of so many points; both gateways are away meanwhile."""
        gateways = self._sites.gateways
        machine = self._sites.status(self._guest.name).machine
        self._guest.pause()
        for site in (self._bench.a, self._bench.b):
            gateways.running.pop(site.name).stop()
        lengthen(self._bench.b.directory / "gateway", machine, points, self._say)
        gateways.start(self._bench.b)
        gateways.start(self._bench.a)
        self._guest.resume()
        before = self._sites.status(self._guest.name).points
        self._sites.wait_for_points(self._guest.name, before + 3, seconds=600)
        with self._bench.at(self._bench.b) as client:
            there = len(client.points(self._guest.name))
        if there < points:
            raise RuntimeError(f"there are only {there} points of {points}")
        self._say(f"{there} points")


def _ratio(report: Report, key: str, ours: Sequence[float], plain: Sequence[float]) -> None:
    note = f"{median(ours):.2f} s ({spread(ours)}) against {median(plain):.2f} s ({spread(plain)})"
    report.add(Figure(key, median(ours) / median(plain), "times", note=note))


def _flattening(report: Report, bench: Bench) -> None:
    """Commit while the machine appends records; see how many a second it does before, meanwhile, after."""
    operation, _ = bench.fail_over()
    taken = Guest(bench.b, bench.guest.spec)
    witness = Witness()
    try:
        until(taken.agent_answers, "the machine's agent at B")
        witness.attach(taken.channel_path())
        until(lambda: witness.acknowledged > 0, "a first record at B")
        before = _rate(witness, lambda: True)
        begun = time.monotonic()
        with bench.at(bench.b) as client:
            client.commit_failover(operation, CommitFailover(confirm=confirmations.kept(bench.name)))
        ended: list[FailoverStatus] = []

        def goes_on() -> bool:
            with bench.at(bench.b) as client:
                status = client.failover(operation)
            raise_error(status)
            if status.state is FailoverState.COMMITTED:
                ended.append(status)
            return not ended

        during = _rate(witness, goes_on, seconds=0.0)
        seconds = time.monotonic() - begun
        after = _rate(witness, lambda: True)
        pause = ""
        if not after:  # not a stop of the machine for good, which is no figure
            still, acknowledged = time.monotonic(), witness.acknowledged
            until(lambda: witness.acknowledged > acknowledged, "a record after the commit")
            pause = f", the first {SETTLE_SECONDS + time.monotonic() - still:.0f} s after it"
    finally:
        witness.close()
        taken.remove()
    total = ended[0].total_bytes
    report.add(
        Figure(
            "failover_flatten_mb_s", total / 1e6 / seconds, "MB/s", note=f"{total / MIB:.0f} MiB of disks"
        ),
        Figure(
            "failover_flatten_records",
            during / before,
            "times",
            note=f"records a second: {before:.0f} on the export, {during:.0f} meanwhile, {after:.0f} after"
            f"{pause}; started again {ended[0].restarts} times",
        ),
    )


def _rate(witness: Witness, goes_on: Callable[[], bool], *, seconds: float = SETTLE_SECONDS) -> float:
    """Records acknowledged a second, for that long and as long as it goes on."""
    begun, first = time.monotonic(), witness.acknowledged
    while (time.monotonic() - begun < seconds or seconds == 0.0) and goes_on():
        time.sleep(0.1)
    return (witness.acknowledged - first) / (time.monotonic() - begun)
