"""Reading a recovery point through its export: random 4 KiB reads a second and sequential MB/s.

The point stands on a base of 4 GiB (half holes, a quarter files, a quarter random) and a journal of 100
cycles that together rewrote about 10 % of it: half in single 4 KiB blocks at random places, half in runs of
64 KiB; half of both random, half text. It is served by the process the gateway starts for an export. The
reader is `qemu-img bench`, the block layer a recovered machine reads with, at depth 16 on one connection;
its step is the golden section of the disk, which visits places all over it once each. qemu-nbd on the base
alone, read in the same way, is the peer: it has no journal to look into.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench import disks, journals
from bench.measure import anonymous_mib, settle
from bench.report import Figure, Report, median, spread
from secondsite.base.units import MIB
from secondsite.gateway.recovery.exports import ExportSpec, SocketAccess
from support.nbd_peers import qemu_nbd, uri

RANDOM_READS = 60_000
ROUNDS = 3
CYCLES = 100


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    raw = work / "mixed.raw"
    if not raw.exists():
        disks.make_mixed(raw)
    size_bytes = raw.stat().st_size
    place = work / "journal"
    place.mkdir(exist_ok=True)
    made = journals.make(place, raw, cycles=CYCLES, bytes_per_cycle=size_bytes // 10 // CYCLES)
    settle()
    ours: dict[str, list[float]] = {"random": [], "sequential": []}
    theirs: dict[str, list[float]] = {"random": [], "sequential": []}
    with serving(made, work) as (socket_path, pid), qemu_nbd(made.base, work / "peer.sock"):
        for _ in range(ROUNDS):
            for found, address in (
                (ours, uri(socket_path, journals.DISK)),
                (theirs, uri(work / "peer.sock")),
            ):
                found["random"].append(random_reads(address, size_bytes))
                found["sequential"].append(sequential(address, size_bytes))
        memory = anonymous_mib(pid)
    for kind, key, unit, target in (
        ("random", "export_random_4k_per_s", "reads/s", 20_000),
        ("sequential", "export_sequential_mb_s", "MB/s", 500),
    ):
        report.add(
            Figure(key, median(ours[kind]), unit, at_least=target, note=spread(ours[kind])),
            Figure(f"{key}_qemu_nbd_on_base", median(theirs[kind]), unit, note=spread(theirs[kind])),
        )
    report.add(Figure("export_rss_mib", memory, "MiB", note="anonymous memory of the export's process"))


@contextmanager
def serving(made: journals.Made, work: Path) -> Iterator[tuple[Path, int]]:
    """The export's own process, as the gateway starts it; yields its socket and process number."""
    directory, socket_path = work / "export", work / "export.sock"
    directory.mkdir(exist_ok=True)
    spec = ExportSpec(
        id="bench",
        machine=journals.MACHINE,
        machine_name="bench",
        point=made.newest,
        holder="export:bench",
        reason="bench",
        store_url=f"file://{made.store}",
        key_file=str(made.key_file),
        socket_path=str(socket_path),
        access=SocketAccess(),
        disks={journals.DISK: made.base.stat().st_size},
    )
    (directory / "spec.json").write_bytes(msgspec.json.encode(spec))
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "secondsite.gateway.recovery.export", str(directory), str(writing)],
        pass_fds=[writing],
    )
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as ready:
            if not ready.read():
                raise RuntimeError(f"the export did not start: {(directory / 'run.json').read_text()}")
        yield socket_path, process.pid
    finally:
        process.terminate()
        process.wait(30)


def random_reads(address: str, size_bytes: int) -> float:
    """Reads a second."""
    step = int(size_bytes * 0.3819660113) // 8192 * 8192 + 4096  # odd in blocks; qemu-img takes 31 bits
    assert step < 1 << 31
    return RANDOM_READS / _bench(address, RANDOM_READS, 4096, step)


def sequential(address: str, size_bytes: int) -> float:
    """MB/s over the whole disk, holes and all."""
    count = size_bytes // MIB
    return size_bytes / 1e6 / _bench(address, count, MIB, MIB)


def _bench(address: str, count: int, length: int, step: int) -> float:
    command = ["qemu-img", "bench", "-f", "raw", "-c", count, "-d", 16, "-s", length, "-S", step, address]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    found = re.search(r"completed in ([0-9.]+) seconds", done.stdout)
    assert found, done.stdout
    return float(found[1])
