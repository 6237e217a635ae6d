"""Bytes sent for bytes changed: random writes of 4, 16 and 64 KiB, by us and by two kinds of increments.

A disk of 1 GiB, all of it allocated (a quarter files, the rest random), under a real QEMU without a guest:
the machine is paused and the bench writes 32 MiB in blocks at random places through QEMU's own block layer,
half of each block random, half text. Ours is what the line between the sites carried for the one cycle that
follows, both ways, TLS and headers with it; whatever travels is compressed and sealed.

The peers' machine has the same content and gets the same writes. `virtnbdbackup -l inc -z` (lz4): what its
directory grew by. QEMU's own incremental backup, which libvirt starts in push mode: the data in the image it
writes, which is the dirty bitmap's extents, 64 KiB each, copied whole; and that image put through `qemu-img
convert -c` with zstd. None of the peers' is encrypted.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import libvirt

from bench import disks, machines, peers
from bench.cycles import LONG_SECONDS, rest
from bench.measure import settle
from bench.pair import Pair, pair
from bench.report import Figure, Report
from secondsite.base.units import GIB, KIB, MIB
from secondsite.lab.place import Site

DISK_BYTES = GIB
WRITTEN_BYTES = 32 * MIB
BLOCKS_BYTES = (4 * KIB, 16 * KIB, 64 * KIB)
CONTENTS = 16  # different blocks; many of one would compress as no guest's do
PUSH_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class Sent:
    """Bytes for one workload."""

    ours: int
    stored: int  # of ours, in segments
    virtnbdbackup: int
    extents: int
    extents_zstd: int


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    peers.install()
    written = WRITTEN_BYTES // 4 if report.quick else WRITTEN_BYTES
    raw = work / "traffic.raw"
    disks.make_full(raw, DISK_BYTES)
    with pair(work) as sites:
        site = sites.sites.a
        images = [site.disks / "traffic-ours.qcow2", site.disks / "traffic-peer.qcow2"]
        for image in images:
            machines.qcow2_of(raw, image)
        raw.unlink()
        output = work / "virtnbdbackup"
        with (
            machines.idle_machine(site, "traffic-ours", images[0]) as ours,
            machines.idle_machine(site, "traffic-peer", images[1]) as theirs,
        ):
            sites.gateways.protect(ours.name, copy_frequency_seconds=LONG_SECONDS)
            sites.wait_for_points(ours.name, 1)
            peers.virtnbdbackup(site, theirs.name, output, level="full")
            for block in BLOCKS_BYTES:
                _report(report, block, written, _one(sites, ours, theirs, output, (block, written)))
                report.write()
            sites.unprotect(ours.name)


def _one(
    sites: Pair,
    ours: machines.IdleMachine,
    theirs: machines.IdleMachine,
    output: Path,
    load: tuple[int, int],
) -> Sent:
    """One workload on both machines, and what each tool makes of it."""
    block, written = load
    points = rest(sites, ours.name)
    for machine in (ours, theirs):
        _write(machine, block, written)
    settle()
    line = sites.line_bytes()
    sites.gateways.protect(ours.name, copy_frequency_seconds=1.0)
    status = sites.wait_for_points(ours.name, points + 1)
    sites.gateways.protect(ours.name, copy_frequency_seconds=LONG_SECONDS)
    line = sites.line_bytes() - line
    if status.changed_bytes < written:
        raise RuntimeError(f"the cycle carried {status.changed_bytes} bytes, not what was written")
    extents, zstd = _push(sites.sites.a, theirs.name)
    before = _size_of(output)
    peers.virtnbdbackup(sites.sites.a, theirs.name, output, level="inc")
    return Sent(line, status.sent_bytes, _size_of(output) - before, extents, zstd)


def _write(machine: machines.IdleMachine, block: int, written: int) -> None:
    """The same on every machine: `written` bytes in blocks at places that are all different."""
    dice = random.Random(block)
    places = dice.sample(range(0, DISK_BYTES, block), written // block)
    text = b"a line of a log file, number %d, and what it says\n"
    for number in range(CONTENTS):
        half = b"".join(text % (number * 1000 + line) for line in range(block // 2 // 40))[: block // 2]
        machine.write(places[number::CONTENTS], half + dice.randbytes(block - len(half)))


def _push(site: Site, name: str) -> tuple[int, int]:
    """Bytes of QEMU's increment since virtnbdbackup's last checkpoint: as they are, and with zstd."""
    image = site.disks / "increment.qcow2"
    try:
        with contextlib.closing(site.connect()) as connection:
            domain = connection.lookupByName(name)
            leaf = [c.getName() for c in domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_LEAVES)]
            domain.backupBegin(
                f"""
                <domainbackup mode='push'>
                  <incremental>{leaf[0]}</incremental>
                  <disks><disk name='vda' type='file'>
                    <driver type='qcow2'/><target file='{image}'/>
                  </disk></disks>
                </domainbackup>""",
                None,
            )
            deadline = time.monotonic() + PUSH_SECONDS_MAX
            while domain.jobStats()["type"] != libvirt.VIR_DOMAIN_JOB_NONE:
                if time.monotonic() > deadline:
                    raise RuntimeError("QEMU's incremental backup does not end")
                time.sleep(0.1)
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", image], check=True)
        told = subprocess.run(
            ["qemu-img", "map", "--output=json", "-f", "qcow2", image], check=True, capture_output=True
        )
        extents = sum(extent["length"] for extent in json.loads(told.stdout) if extent["data"])
        packed = image.with_suffix(".zstd")
        peers.qemu_img_zstd(str(image), packed, source_format="qcow2")
        zstd = packed.stat().st_size
        packed.unlink()
        return extents, zstd
    finally:
        image.unlink(missing_ok=True)


def _size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _report(report: Report, block: int, written: int, sent: Sent) -> None:
    key = f"traffic_{block // KIB}k"

    def theirs(name: str, count: int) -> Figure:
        note = f"{count / written:.2f} bytes for each written"
        return Figure(f"{key}_{name}_vs_ours", count / sent.ours, "times", note=note)

    note = f"{written / 1e6:.0f} MB written; in segments {sent.stored / written:.3f}"
    report.add(
        Figure(f"{key}_sent_per_changed", sent.ours / written, "bytes/byte", note=note),
        theirs("virtnbdbackup", sent.virtnbdbackup),
        theirs("extents", sent.extents),
        theirs("extents_zstd", sent.extents_zstd),
    )
