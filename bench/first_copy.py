"""The first copy of a 4 GiB disk, and the same disk through the tools people use today.

The disk is half holes, a quarter real files, a quarter random: a qcow2 image of a machine that stands
still. Ours: from the request to protect until the first recovery point is committed at the other gateway:
read from QEMU's backup export, digested, compressed (zstd 1), sealed, over mutual TLS, hash checked,
synced. The peers neither seal nor send nor sync: `virtnbdbackup -z` (lz4), `qemu-img convert -c` (zstd) and
`nbdcopy` (plain) write a local file, the last two from qemu-nbd on the same image. On the same file system,
MB of data and not of holes, medians. Our rounds run first, then the peers', then ours once more: in turn
with them ours varied between 167 and 435 MB/s, for a reason not found. The peers' time with a sync is a
figure of its own, and so is what the disk does by itself in synced pieces of 16 MiB: where that is little,
it bounds us and not the peers, which leave their output in memory. ``BENCH_DIR=/dev/shm`` takes the disk
out of all of them.
"""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime
from pathlib import Path

from bench import disks, machines, peers
from bench.measure import Cost, disk_mb_s, settle, sync_of
from bench.pair import Pair, Watch, pair
from bench.report import Figure, Report, median, spread
from support.nbd_peers import qemu_nbd, uri

ROUNDS = 3
MACHINE = "bench"
PEERS = ("virtnbdbackup", "qemu_img", "qemu_img_tuned", "nbdcopy")


def run(report: Report, work: Path) -> None:
    """Measure and report."""
    peers.install()
    raw = work / "mixed.raw"
    data_bytes = disks.make_mixed(raw)
    disk: list[float] = []
    costs: dict[str, list[Cost]] = {name: [] for name in ("ours", *PEERS)}
    memory: list[float] = []
    with pair(work) as sites:
        site = sites.sites.a
        image = site.disks / f"{MACHINE}.qcow2"
        machines.qcow2_of(raw, image)
        output = work / "output"
        for number in range(ROUNDS):
            cost, anonymous = _our_round(sites, image, f"{MACHINE}-{number}", work, disk)
            costs["ours"].append(cost)
            memory.append(anonymous)
        for number in range(ROUNDS):
            with machines.idle_machine(site, f"{MACHINE}-peer-{number}", image, start=False) as machine:
                for peer in PEERS:
                    settle()
                    cost = _peer(peer, sites, machine, output)
                    costs[peer].append(dataclasses.replace(cost, sync_seconds=sync_of(work)))
                    _remove(output)
        after, _ = _our_round(sites, image, f"{MACHINE}-after", work, disk)
    _report(report, costs, memory, data_bytes)
    note = "once more, after the peers"
    report.add(Figure("first_copy_after_peers_mb_s", data_bytes / 1e6 / after.seconds, "MB/s", note=note))
    report.add(Figure("disk_synced_mb_s", median(disk), "MB/s", note=spread(disk)))


def _our_round(sites: Pair, image: Path, name: str, work: Path, disk: list[float]) -> tuple[Cost, float]:
    """Ours with a machine that B has never seen: for one it knows, a first copy is a comparison."""
    with machines.idle_machine(sites.sites.a, name, image, start=False) as machine:
        settle()
        disk.append(disk_mb_s(work))
        with machine.running():
            settle()
            found = ours(sites, name)
        sites.wait_until_quiet()  # B goes on: what was committed becomes the replica's base
    return found


def ours(sites: Pair, machine: str) -> tuple[Cost, float]:
    """Protect, wait for the first point, end the protection; returns the larger gateway's memory too."""
    with Watch(sites.gateway_pids()) as watch:
        start = datetime.now(UTC)
        sites.gateways.protect(machine, copy_frequency_seconds=3600)
        sites.wait_for_points(machine, 1, poll_seconds=0.25)
        seconds = (sites.last_committed_at(machine) - start).total_seconds()
    sites.unprotect(machine)
    return Cost(seconds, sum(watch.cpu_seconds.values())), max(watch.memory_mib.values())


def _peer(name: str, sites: Pair, machine: machines.IdleMachine, output: Path) -> Cost:
    if name == "virtnbdbackup":
        return peers.virtnbdbackup(sites.sites.a, machine.name, output)
    socket_path = output.with_name("peer.sock")
    with qemu_nbd(machine.image, socket_path, image_format="qcow2"):
        if name == "nbdcopy":
            return peers.nbdcopy(uri(socket_path), output)
        return peers.qemu_img_zstd(uri(socket_path), output, tuned=name.endswith("tuned"))


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def _report(report: Report, costs: dict[str, list[Cost]], memory: list[float], data_bytes: int) -> None:
    def rate(name: str) -> list[float]:
        return [data_bytes / 1e6 / cost.seconds for cost in costs[name]]

    def ratio(name: str, *, synced: bool = False) -> list[float]:
        pairs = zip(costs["ours"], costs[name], strict=True)
        return [(theirs.seconds + theirs.sync_seconds * synced) / ours.seconds for ours, theirs in pairs]

    targets = {"virtnbdbackup": 2.5, "qemu_img": 1.4}
    report.add(Figure("first_copy_mb_s", median(rate("ours")), "MB/s", note=spread(rate("ours"))))
    for name in PEERS:
        report.add(
            Figure(
                f"first_copy_vs_{name}",
                median(ratio(name)),
                "times",
                at_least=targets.get(name),
                note=f"{median(rate(name)):.0f} MB/s ({spread(rate(name))})",
            )
        )
        durable = median(ratio(name, synced=True))
        note = "the peer's time until what it wrote is on the disk, as ours is"
        report.add(Figure(f"first_copy_vs_{name}_synced", durable, "times", note=note))
    for name, found in costs.items():
        cpu = median([cost.cpu_seconds for cost in found])
        report.add(
            Figure(f"first_copy_cpu_s_{name}", cpu, "s", note="processor time, both gateways for ours")
        )
    report.add(
        Figure(
            "gateway_rss_mib",
            max(memory),
            "MiB",
            at_most=200,
            note="largest anonymous memory of either gateway",
        )
    )
