"""What may be lost, killed or wrong at a site without losing or holding up anything."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.lab import processes
from secondsite.lab.place import Site
from secondsite.transfer.pki import Authority
from support.lab import namespaces_of, processes_in
from support.pair import Pair, now, running_pair

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.fault, pytest.mark.timeout(400)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as both:
        yield both


def _guards(pair: Pair) -> list[int]:
    inside = processes_in(namespaces_of(pair.sites.root))
    return [int(line.split()[0]) for line in inside if "libvirt.guard" in line]


def test_a_killed_guard_is_replaced_and_nothing_is_lost(pair: Pair) -> None:
    pair.protect()
    killed: set[int] = set()
    # during the first copy and then during cycles
    for _ in range(3):
        victims = processes.wait_until(
            lambda: [pid for pid in _guards(pair) if pid not in killed],
            what="a guard",
            root=pair.sites.root,
            seconds=60,
            poll_seconds=0.1,
            evidence=pair.log_tails,
        )
        for pid in victims:
            processes.kill(pid)
            killed.add(pid)
        pair.wait_records(10)  # the guest is neither stopped nor frozen
        pair.wait_protected()
        pair.wait_point(asked_after=now())
    pair.compare_now()
    assert {point.epoch for point in pair.points()} == {1}


def test_a_lost_cache_volume_costs_nothing_but_a_comparison(pair: Pair) -> None:
    pair.protect()
    pair.wait_protected()
    pair.compare_now()
    # something waits in the spool when the volume goes
    pair.sites.link(pair.sites.b, up=False)
    queued = itertools.count()
    processes.wait_until(
        lambda: next(queued) > 20 and pair.status().spool_bytes > 0,
        what="a spooled instant",
        root=pair.sites.root,
        seconds=120,
        poll_seconds=0.2,
        evidence=pair.log_tails,
    )
    before = pair.points()
    for site in pair.sites.sites:
        pair.gateways.running[site.name].kill()
        _wipe_cache(site)
    pair.wait_records(20)
    pair.sites.link(pair.sites.b, up=True)
    for site in reversed(pair.sites.sites):
        pair.gateways.start(site)
    pair.wait_point(asked_after=now())
    pair.compare_now()
    after = {point.number: point.asked_at for point in pair.points()}
    assert all(after[point.number] == point.asked_at for point in before)


def _wipe_cache(site: Site) -> None:
    cache = site.directory / "gateway" / "cache"
    shutil.rmtree(cache)
    cache.mkdir()


def _refusal(pair: Pair) -> str:
    """What the source gateway says about a protection that cannot begin."""
    try:
        pair.protect()
    except RemoteError as error:
        return str(error)

    def told() -> str | None:
        status = pair.status()
        assert status.last_point is None
        return status.note or None

    return processes.wait_until(
        told, what="a refusal", root=pair.sites.root, seconds=60, evidence=pair.log_tails
    )


def test_a_certificate_of_another_authority_writes_nothing(pair: Pair) -> None:
    a = pair.sites.a
    tls, name = a.directory / "gateway" / "tls", pair.gateways.name(a)
    right = {path: path.read_bytes() for path in (tls / f"{name}.crt", tls / f"{name}.key")}
    pair.gateways.running["A"].stop()
    stranger = Authority.create(pair.sites.root / "safe" / "stranger", clock=SystemClock(), name="stranger")
    stranger.issue(name).save(tls, name)
    pair.gateways.start(a)
    refused = _refusal(pair)
    assert "certificate" in refused.lower(), refused
    assert not pair.points_exist()
    assert not list((pair.sites.b.directory / "gateway" / "store").rglob("segments/*/*/*"))
    # with its own certificate again it does what it was asked
    pair.gateways.running["A"].stop()
    for path, data in right.items():
        path.write_bytes(data)
    pair.gateways.start(a)
    pair.protect()
    pair.wait_protected()
    pair.compare_now()
