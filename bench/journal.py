"""Journals for years: merging, promoting and scrubbing in MB/s, and how soon a day of points opens.

Merging, promoting and scrubbing work on 200 cycles of 4 MiB over a base of 4 GiB (half of a cycle in single
4 KiB blocks, half in runs of 64 KiB; half random, half text), guest bytes a second until all is synced. The
peer is `qemu-img commit` of a qcow2 overlay with the same blocks into the same raw image: it neither decrypts
nor decompresses nor keeps sums; scrubbing is held against BLAKE3 alone. The day of points is 17,280 of them
(24 h at 5 s), 48 changed blocks each, opened by a process that starts anew: the chain, then a view of the
newest point, with pages as the upkeep of a journal leaves them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import blake3

from bench import disks, journals
from bench.measure import settle
from bench.report import Figure, Report, median, spread
from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import open_disk_index
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.merge import merge
from secondsite.journal.page_write import write_log_page, write_page
from secondsite.journal.promote import promote
from secondsite.journal.scrub import scrub
from secondsite.journal.state import BaseState
from secondsite.journal.store_local import LocalStore
from secondsite.journal.sweep import delete_retired
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId
from secondsite.nbd.client import NbdClient
from support.nbd_peers import qemu_nbd

CYCLES, CYCLE_BYTES = 200, 4 * MIB
DAY_POINTS, DAY_CHANGED_BYTES = 17_280, 24 * 8192
OPENINGS = 5


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    raw = work / "mixed.raw"
    if not raw.exists():
        disks.make_mixed(raw)
    place = work / "upkeep"
    place.mkdir()
    made = journals.make(place, raw, cycles=CYCLES, bytes_per_cycle=CYCLE_BYTES)
    settle()
    _upkeep(report, made, work)
    _day(report, work)


def _upkeep(report: Report, made: journals.Made, work: Path) -> None:
    journal, keys = _open(made)
    overlay = _overlay(made, journal, keys, work)
    _scrub(report, made)
    points = [point.number for point in journal.points()]
    clock = SystemClock()
    settle()
    started = time.perf_counter()
    done = merge(journal, points[0], points[-2], keys, clock=clock)
    delete_retired(journal, clock=clock)
    merged = made.journal_bytes / 1e6 / (time.perf_counter() - started)

    def open_base(_disk: DiskId, _size_bytes: int, _known: BaseState | None) -> BaseImage:
        return RawBase(made.base)

    settle()
    started = time.perf_counter()
    promoted = promote(journal, points[-1], keys, open_base, clock=clock)
    ours = promoted.written_bytes / 1e6 / (time.perf_counter() - started)
    settle()
    started = time.perf_counter()
    subprocess.run(["qemu-img", "commit", "-q", str(overlay)], check=True)
    os.sync()
    theirs = promoted.written_bytes / 1e6 / (time.perf_counter() - started)
    alive = done.read_bytes / made.journal_bytes
    report.add(
        Figure("merge_mb_s", merged, "MB/s", note=f"of what arrived; {alive:.0%} of it was alive"),
        Figure("promote_mb_s", ours, "MB/s", note="written to the base, synced, summed"),
        Figure("commit_qemu_img_mb_s", theirs, "MB/s", note="the same blocks, synced"),
        Figure("promote_to_qemu_img", ours / theirs, "times"),
    )


def _scrub(report: Report, made: journals.Made) -> None:
    files = [path for path in made.store.rglob("*") if path.is_file()]
    stored = sum(path.stat().st_size for path in files)
    journal, keys = _open(made)
    settle()
    started = time.perf_counter()
    found = scrub(
        journal,
        keys,
        lambda _disk: RawBase(made.base, read_only=True),
        clock=SystemClock(),
        points=(),
    )
    seconds = time.perf_counter() - started
    assert not found.damaged, found
    started = time.perf_counter()
    for path in files:
        blake3.blake3(max_threads=1).update_mmap(path).digest()
    hashing = time.perf_counter() - started
    report.add(
        Figure(
            "scrub_mb_s", stored / 1e6 / seconds, "MB/s", note="stored bytes: read, hashed, opened, digested"
        ),
        Figure(
            "scrub_to_hashing_alone", hashing / seconds, "times", note="BLAKE3 of the same files, one thread"
        ),
    )


def _overlay(made: journals.Made, journal: Journal, keys: KeyRing, work: Path) -> Path:
    """A qcow2 over a copy of the base with everything the journal changed."""
    base, overlay, socket = work / "peer.raw", work / "peer.qcow2", work / "peer-overlay.sock"
    subprocess.run(["cp", "--sparse=always", str(made.base), str(base)], check=True)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)]
    subprocess.run(create, check=True)
    changed = open_disk_index(journal, journals.DISK, journal.state(), made.newest, keys).layer.extents()
    with (
        open_view(journal, made.newest, keys, bases=lambda _disk: RawBase(made.base, read_only=True)) as view,
        qemu_nbd(overlay, socket, image_format="qcow2", writable=True),
        NbdClient.connect_unix(str(socket), "") as client,
    ):
        disk = view.disks[journals.DISK]
        for at, length in changed.pieces(MIB):
            client.write(at, disk.read(at, length))
        client.flush()
    return overlay


def _open(made: journals.Made) -> tuple[Journal, KeyRing]:
    store, vault = LocalStore(made.store), VaultKey.load(made.key_file)
    return Journal(store, journals.MACHINE, vault), KeyRing(store, journals.MACHINE, vault)


def _day(report: Report, work: Path) -> None:
    place, raw = work / "day", work / "empty.raw"
    place.mkdir()
    with raw.open("wb") as file:
        file.truncate(4 << 30)
    made = journals.make(place, raw, cycles=DAY_POINTS, bytes_per_cycle=DAY_CHANGED_BYTES)
    journal, keys = _open(made)
    started = time.perf_counter()
    pages = 0
    while write_log_page(journal, without=set()) or write_page(journal, keys, without=set()):
        pages += 1
    paging = time.perf_counter() - started
    settle()
    found = [_opening(made) for _ in range(OPENINGS)]
    walls = [one["seconds"] for one in found]
    report.add(
        Figure("open_17280_points_s", median(walls), "s", at_most=1.0, note=spread(walls)),
        Figure("open_17280_points_cpu_s", median([one["cpu_seconds"] for one in found]), "s"),
        Figure(
            "open_17280_points_mib",
            median([one["mib"] for one in found]),
            "MiB",
            note="more memory than before",
        ),
        Figure("pages_17280_points_s", paging, "s", note=f"to make {pages} pages"),
    )


_OPEN = """
import json, sys, time
from pathlib import Path
from bench import journals
from bench.journal import _open
from secondsite.journal.bases import RawBase
from secondsite.journal.view import open_view

def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

made = journals.Made(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 0, 0)
before = resident_mib()
started, cpu = time.perf_counter(), time.process_time()
journal, keys = _open(made)
number = journal.head().point.number
view = open_view(journal, number, keys, bases=lambda disk: RawBase(made.base, read_only=True))
view.disks[journals.DISK].read(0, 4096)
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
mib = resident_mib() - before
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "mib": mib}))
"""


def _opening(made: journals.Made) -> dict[str, float]:
    """One opening by a process that starts anew."""
    command = [sys.executable, "-c", _OPEN, str(made.store), str(made.key_file), str(made.base)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told)
    return found
