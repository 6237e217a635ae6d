"""What may be lost, killed or wrong at a site without losing or holding up anything."""

from __future__ import annotations

import itertools
import shutil

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from secondsite.lab import processes
from secondsite.lab.place import Site
from secondsite.transfer.pki import Authority
from support.lab import namespaces_of, processes_in
from support.pair import Pair, files_of, moment, now
from support.station import Station

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.fault, pytest.mark.timeout(400)]


def _guards(pair: Pair) -> list[int]:
    inside = processes_in(namespaces_of(pair.sites.root))
    return [int(line.split()[0]) for line in inside if "libvirt.guard" in line]


def test_a_killed_guard_is_replaced_and_nothing_is_lost(unprotected: Pair) -> None:
    pair = unprotected
    pair.protect()
    killed: set[int] = set()
    # during the first copy and then during cycles
    for _ in range(3):
        for pid in pair.until(lambda: [each for each in _guards(pair) if each not in killed], "a guard"):
            processes.kill(pid)
            killed.add(pid)
        pair.wait_records(10)  # the guest is neither stopped nor frozen
        pair.wait_protected()
        pair.wait_point(asked_after=now())
    pair.compare_now()
    assert len({point.epoch for point in pair.points()}) == 1
    pair.shows("Protected")


def test_a_lost_cache_volume_costs_nothing_but_a_comparison(station: Station, pair: Pair) -> None:
    pair.compare_now()
    # something waits in the spool when the volume goes
    pair.sites.link(pair.sites.b, up=False)
    queued = itertools.count()
    pair.until(
        lambda: next(queued) > 20 and pair.status().spool_bytes > 0, "a spooled instant", poll_seconds=0.2
    )
    before = pair.points()
    for site in pair.sites.sites:
        station.gateways.running[site.name].kill()
        _wipe_cache(site)
    pair.wait_records(20)
    station.settle()
    pair.wait_point(asked_after=now())
    pair.compare_now()
    after = {point.number: point.asked_at for point in pair.points()}
    assert all(after[point.number] == point.asked_at for point in before)
    pair.shows("Protected")


def _wipe_cache(site: Site) -> None:
    cache = site.directory / "gateway" / "cache"
    shutil.rmtree(cache)
    cache.mkdir()


def test_a_certificate_of_another_authority_writes_nothing(station: Station, unprotected: Pair) -> None:
    """Neither to the other gateway nor to the server; the job it was asked by goes on once it is right."""
    pair, a = unprotected, unprotected.sites.a
    tls, name = a.directory / "gateway" / "tls", pair.gateways.name(a)
    right = {path: path.read_bytes() for path in (tls / f"{name}.crt", tls / f"{name}.key")}
    pair.sites.limit(8_000)  # 1 MB/s: known at A, and far from its first point
    pair.protect()
    pair.until(lambda: _copied(pair) > MIB, "the first copy on its way")
    station.gateways.running["A"].stop()
    stranger = Authority.create(pair.sites.root / "safe" / "stranger", clock=SystemClock(), name="stranger")
    stranger.issue(name).save(tls, name)
    pair.sites.limit(None)
    since = now()
    station.gateways.start(a)
    refused = pair.until(lambda: pair.status().note, "a refusal")
    assert "certificate" in refused.lower(), refused
    held = _segments(pair)
    pair.wait_records(40)
    assert not pair.points_exist()
    assert _segments(pair) == held
    assert moment(_last_contact(pair)) < moment(since), "the server takes it for the gateway"
    # with its own certificate again it does what it was asked
    station.gateways.running["A"].stop()
    for path, data in right.items():
        path.write_bytes(data)
    station.gateways.start(a)
    pair.wait_protected()
    pair.compare_now()
    pair.until(
        lambda: moment(_last_contact(pair)) > moment(since), "the server to hear of it", poll_seconds=0.3
    )


def _copied(pair: Pair) -> int:
    status = pair.taken_up()
    return status.first_copy.done_bytes if status is not None and status.first_copy is not None else 0


def _segments(pair: Pair) -> list[str]:
    return files_of(pair.sites.b.directory / "gateway" / "store")


def _last_contact(pair: Pair) -> str:
    told = pair.order("gateway", "show", pair.gateways.name(pair.sites.a))["lastContact"]
    pair.said.pop()
    return str(told)
