"""A guest under load, kept at a second site: what is there is what was here, whatever happens in between.

Asked for at the server, as a user does; looked at where it is.
"""

from __future__ import annotations

import itertools
import random

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.messages.gateway import PointSummary, ProtectionState
from secondsite.gateway.messages.testfailover import TestFailoverStatus
from secondsite.lab import processes, proof, watch
from support.pair import Pair, now
from support.station import SPOOL_BYTES, Station

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(400)]


def test_ten_points_in_a_row_equal_the_source_at_their_instants(pair: Pair) -> None:
    epoch = pair.status().epoch
    compared: list[tuple[PointSummary, dict[str, str]]] = []
    for _ in range(10):
        pair.wait_records(15)
        compared.append(pair.compare_now())
    numbers = [point.number for point, _ in compared]
    assert numbers == sorted(set(numbers))
    # each was another content, so no comparison was with an old one; and an old point still reads the same
    assert (
        len({hashes["vda"] for _, hashes in compared}) == len({hashes["vdb"] for _, hashes in compared}) == 10
    )
    pair.require_right(*compared[0])
    pair.require_right(*compared[5])
    assert {point.epoch for point in pair.points() if point.number >= numbers[0]} == {epoch}
    told = {point["number"]: point["at"] for point in pair.item("points", "--limit", "500")}
    assert all(told[point.number] == point.at for point, _ in compared), "the server names the same points"


def test_every_point_in_between_passes_the_guests_own_check(pair: Pair) -> None:
    """Points under full load, as they come: the newest and one of some cycles back boot and check."""
    first = pair.points()[-1].number
    pair.until(lambda: pair.points()[-1].number >= first + 6, "points")
    points = pair.points()
    for point in (points[-1], points[-5]):
        with pair.gateways.client(pair.sites.b) as client:

            def begin(point: PointSummary = point) -> TestFailoverStatus:
                pair.item("test-failover", "--point", str(point.number), "--no-wait")
                return watch.test_begun(client, pair.machine, pair.sites.root)

            proof.test_failover(client, pair.sites.b, pair.running.witness, point, begin)
        pair.item("clean-up", "--notes", "checked")
    # and the tests did not touch the replica
    pair.compare_now()


def test_a_cut_beyond_the_spool_catches_up_without_a_full_copy(pair: Pair) -> None:
    """The server is at B: it is cut off from A as well."""
    pair.compare_now()
    before = pair.status()
    pair.sites.link(pair.sites.b, up=False)
    # more than the spool takes, and not compressible
    command = "dd if=/dev/urandom of=/data-disk/big bs=1M count=96; sync"
    assert pair.running.guest.execute("/bin/sh", "-c", command)[0] == 0
    pair.until(lambda: pair.status().state is ProtectionState.PAUSED, "capture to pause")
    pair.wait_records(50)  # the guest does not wait for us
    spool = pair.sites.a.directory / "gateway" / "cache"
    stored = sum(path.stat().st_blocks * 512 for path in spool.rglob("*") if path.is_file())
    assert stored <= SPOOL_BYTES
    healed_at = now()
    pair.sites.link(pair.sites.b, up=True)
    pair.wait_point(asked_after=healed_at)
    pair.compare_now()
    sent = pair.status().total_sent_bytes - before.total_sent_bytes
    # what changed and no second first copy: that would be the 32 MiB of files and pages more
    assert 96 * MIB < sent < (96 + 24) * MIB
    assert pair.status().epoch == before.epoch
    pair.shows("Protected")
    assert pair.running.guest.execute("/bin/sh", "-c", "rm /data-disk/big; sync")[0] == 0


@pytest.mark.fault
def test_gateways_and_server_killed_in_the_first_copy_finish_it(station: Station, unprotected: Pair) -> None:
    """One after the other, while the server's job waits for it: the job comes to its end."""
    pair = unprotected
    pair.sites.limit(24_000)  # 3 MB/s: the first copy takes long enough to be killed in
    pair.protect()

    def on_its_way(more: int) -> int | None:
        copy = status.first_copy if (status := pair.taken_up()) is not None else None
        return copy.done_bytes if copy is not None and copy.done_bytes > more else None

    done = 0
    for victim in ("A", "B", "server"):
        done = pair.until(lambda: on_its_way(done + 4 * MIB), f"4 MiB more before {victim} dies")  # noqa: B023
        assert not pair.points_exist()
        if victim == "server":
            assert station.server.process is not None
            station.server.process.kill()
            station.server.start()
        else:
            station.gateways.running[victim].kill()
            pair.wait_records(10)
            station.settle_gateways()
    pair.sites.limit(None)
    pair.wait_protected()
    pair.compare_now()
    pair.shows("Protected")


@pytest.mark.fault
def test_gateways_and_server_killed_in_cycles_lose_nothing(station: Station, pair: Pair) -> None:
    moments = random.Random(2)
    committed: dict[int, tuple[str, dict[str, str | None]]] = {}
    for victim, _ in zip(itertools.cycle(("B", "A", "server")), range(7), strict=False):
        processes.pause(moments.uniform(0.2, 1.6))
        process = station.server.process if victim == "server" else station.gateways.running[victim]
        assert process is not None
        process.kill()
        pair.wait_records(10)
        if victim == "server":
            pair.wait_point(asked_after=now())  # goes on without it
        station.settle()
        pair.wait_point(asked_after=now())
        for point in pair.points():
            known = committed.setdefault(point.number, (point.asked_at, point.fingerprints))
            assert known == (point.asked_at, point.fingerprints), f"point {point.number} changed"
    assert committed.keys() <= {point.number for point in pair.points()}
    assert not pair.running.witness.trouble
    pair.compare_now()
    pair.shows("Protected")


def test_unprotect_leaves_nothing_of_ours_in_libvirt(pair: Pair) -> None:
    pair.wait_records(20)
    older = pair.compare_now()
    pair.unprotect()
    proof.require_nothing_left(pair.sites, pair.machine)
    pair.wait_records(20)
    # its points stay at the other site, and are there when it is protected again
    assert pair.points()
    pair.protect()
    pair.wait_protected()
    pair.require_right(*older)
    pair.compare_now()
