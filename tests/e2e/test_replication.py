"""A guest under load, kept at a second site: what is there is what was here, whatever happens in between."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.messages import PointSummary, ProtectionState
from secondsite.lab import processes, proof
from support.lab import SMALL_GUEST
from support.pair import Pair, now, running_pair

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(400)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Sites, gateways and a guest of its own for each test: these tests kill and cut."""
    with running_pair() as both:
        yield both


def test_ten_points_in_a_row_equal_the_source_at_their_instants(pair: Pair) -> None:
    pair.protect()
    pair.wait_protected()
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
    assert {point.epoch for point in pair.points()} == {1}


def test_every_point_in_between_passes_the_guests_own_check(pair: Pair) -> None:
    """Points under full load, as they come: the newest and one of some cycles back boot and check."""
    pair.protect()
    pair.wait_protected()
    first = pair.points()[-1].number
    processes.wait_until(
        lambda: pair.points()[-1].number >= first + 6,
        what="points",
        root=pair.sites.root,
        seconds=120,
        poll_seconds=0.2,
    )
    points = pair.points()
    for point in (points[-1], points[-5]):
        with pair.gateways.client(pair.sites.b) as client:
            proof.test_failover(client, pair.sites.b, pair.running.witness, pair.machine, point)
            proof.clean_up(client, pair.machine, "checked", pair.sites.root)
    # and the tests did not touch the replica
    pair.compare_now()


def test_a_cut_beyond_the_spool_catches_up_without_a_full_copy() -> None:
    spool_bytes = 64 * MIB  # the least a gateway takes
    with running_pair(replace(SMALL_GUEST, data_bytes=256 * MIB), spool_bytes=spool_bytes) as pair:
        pair.protect()
        pair.wait_protected()
        pair.compare_now()
        before = pair.status()
        pair.sites.link(pair.sites.b, up=False)
        # more than the spool takes, and not compressible
        command = "dd if=/dev/urandom of=/data-disk/big bs=1M count=96; sync"
        assert pair.running.guest.execute("/bin/sh", "-c", command)[0] == 0
        processes.wait_until(
            lambda: pair.status().state is ProtectionState.PAUSED,
            what="capture to pause",
            root=pair.sites.root,
            seconds=120,
            poll_seconds=0.2,
            evidence=pair.log_tails,
        )
        pair.wait_records(50)  # the guest does not wait for us
        spool = pair.sites.a.directory / "gateway" / "cache"
        stored = sum(path.stat().st_blocks * 512 for path in spool.rglob("*") if path.is_file())
        assert stored <= spool_bytes
        healed_at = now()
        pair.sites.link(pair.sites.b, up=True)
        pair.wait_point(asked_after=healed_at)
        pair.compare_now()
        sent = pair.status().total_sent_bytes - before.total_sent_bytes
        # what changed and no second first copy: that would be the 32 MiB of files and pages more
        assert 96 * MIB < sent < (96 + 24) * MIB
        assert pair.status().epoch == before.epoch


@pytest.mark.fault
@pytest.mark.parametrize("victim", ["A", "B"])
def test_a_gateway_killed_in_the_first_copy_finishes_it(victim: str) -> None:
    spec = replace(SMALL_GUEST, system_bytes=192 * MIB, files_bytes=96 * MIB)
    with running_pair(spec) as pair:
        pair.sites.limit(80_000)  # 10 MB/s: the first copy takes long enough to be killed in
        pair.protect()
        site = pair.sites.a if victim == "A" else pair.sites.b

        def on_its_way() -> bool:
            copy = pair.status().first_copy
            return copy is not None and copy.done_bytes > 16 * MIB

        processes.wait_until(
            on_its_way, what="16 MiB", root=pair.sites.root, seconds=120, evidence=pair.log_tails
        )
        pair.gateways.running[site.name].kill()
        assert not pair.points_exist()
        pair.wait_records(20)
        pair.sites.limit(None)
        pair.gateways.start(site)
        pair.wait_protected()
        pair.compare_now()


@pytest.mark.fault
def test_gateways_killed_in_cycles_lose_nothing(pair: Pair) -> None:
    pair.protect()
    pair.wait_protected()
    moments = random.Random(2)
    committed: dict[int, tuple[str, dict[str, str | None]]] = {}
    for site, _ in zip(itertools.cycle(reversed(pair.sites.sites)), range(6), strict=False):
        processes.pause(moments.uniform(0.2, 1.6))
        pair.gateways.running[site.name].kill()
        pair.wait_records(10)
        pair.gateways.start(site)
        pair.wait_point(asked_after=now())
        for point in pair.points():
            known = committed.setdefault(point.number, (point.asked_at, point.fingerprints))
            assert known == (point.asked_at, point.fingerprints), f"point {point.number} changed"
    assert committed.keys() <= {point.number for point in pair.points()}
    assert not pair.running.witness.trouble
    pair.compare_now()


def test_unprotect_leaves_nothing_of_ours_in_libvirt(pair: Pair) -> None:
    pair.protect()
    pair.wait_protected()
    pair.wait_records(20)
    with pair.gateways.client(pair.sites.a) as client:
        client.unprotect(pair.machine)
    proof.require_nothing_left(pair.sites, pair.machine)
    pair.wait_records(20)
    # its points stay at the other site
    assert pair.points()
