"""Site A is cut off while its guest writes; B takes the machine over; A comes back, is held, gets it back.

One guest, so one story, by the server's commands as an operator types them: taken over, seen to hold all its
records up to the point, the source isolated within seconds and kept so by the guard, rolled back instead of
committed with an increment, moved in order with every byte, turned to another point three times, committed.
A gateway is killed at one mark of each step, and the server's job goes on; tests/e2e/test_guests.py has the
marks of a planned move, by gateways' own commands.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import pytest

from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.failover import fencing
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.gateway.messages.gateway import PointSummary
from secondsite.lab import processes
from secondsite.lab.machine import read_checks, wait_console
from secondsite.lab.place import Site
from secondsite.lab.server import VAULT
from secondsite.model import confirmations
from support.lab import SMALL_GUEST
from support.pair import Pair
from support.station import Station

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.timeout(900)]

SPEC = replace(SMALL_GUEST, name="mover")
SURE = confirmations.taken_over("mover", "gateway-a")
MOVED = confirmations.moved("mover", "gateway-a", "gateway-b")
LOST = confirmations.lost("mover")
KEPT = confirmations.kept("mover")


@pytest.fixture
def mover(station: Station) -> Iterator[Pair]:
    with station.another(SPEC) as pair:
        pair.protect()
        pair.wait_protected()
        pair.wait_records(20)
        yield pair


def killed_in(pair: Pair, site: Site, mark: str, verb: str, *words: str) -> None:
    """An order at the server while a gateway dies at a mark; started again, the job goes on to its end."""
    pair.kill_at(site, mark)
    pair.job = pair.item(verb, *words, "--no-wait")["id"]
    pair.revive(site)
    pair.follow()


def at(pair: Pair, site: Site) -> FailoverClient:
    return FailoverClient(pair.gateways.control_socket(site))


def wait(pair: Pair, condition: Any, what: str, seconds: float = 60) -> None:
    root = pair.sites.root
    processes.wait_until(condition, what=what, root=root, seconds=seconds, evidence=pair.log_tails)


def links(domain: Any) -> list[str]:
    """The state of each adapter's link."""
    root = ET.fromstring(domain.XMLDesc())
    found = [interface.find("link") for interface in root.findall("devices/interface")]
    return [link.get("state", "up") if link is not None else "up" for link in found]


def paused(domain: Any) -> bool:
    return bool(domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)


def test_a_site_is_lost_comes_back_held_gets_its_machine_back_and_gives_it_up(mover: Pair) -> None:
    pair, (a, b) = mover, mover.sites.sites
    pair.sites.link(a, up=False)
    pair.wait_records(20)  # A's guest does not notice; what it writes now is what will be lost
    how = ["--network", b.network, "--confirm", SURE]
    killed_in(pair, b, failoverrun.AFTER_CLAIMED, "failover", *how)
    status = _failed_over(pair, "Completed")
    shown = pair.item("show")["failover"]
    assert (shown["id"], shown["point"], shown["state"]) == (status.id, status.point, "Completed")
    assert status.epoch == 2
    assert (status.loss_seconds or 0) > 0
    log = b.host_path(status.console_log or "")
    check = _check(pair, log, _point(pair, status))
    assert pair.running.witness.acknowledged > check.last, "A's guest wrote on, and nobody could stop it"

    with contextlib.closing(a.connect()) as at_a, contextlib.closing(b.connect()) as at_b:
        source, taken = at_a.lookupByName(pair.machine), at_b.lookupByName(pair.machine)
        assert source.UUIDString() == taken.UUIDString()
        _comes_back_held(pair, source, status)
        _is_given_back(pair, source)
        assert not any(domain.name() == pair.machine for domain in at_b.listAllDomains())
        moved, point = _is_moved_in_order(pair, source)
        status = _is_turned_to_other_points(pair, moved)
        _is_committed(pair, at_b, status, point)
    pair.item("disable", "--delete-replica")
    pair.frequency = None


def _failed_over(pair: Pair, state: str) -> FailoverStatus:
    """The newest failover, as its gateway has it, which compared the machine with what was asked for."""

    def look() -> FailoverStatus | None:
        with at(pair, pair.sites.b) as client:
            status = [one for one in client.failovers() if one.machine_name == pair.machine][-1]
        return status if status.verified else None

    status = pair.until(look, "the machine compared with what was asked for", seconds=30)
    assert status.state.value == state
    assert [check for check in status.verified if not check.passed] == []
    return status


def _comes_back_held(pair: Pair, source: Any, status: FailoverStatus) -> None:
    pair.kill_at(pair.sites.a, fencing.HELD_INTENDED)
    pair.sites.link(pair.sites.a, up=True)
    pair.revive(pair.sites.a)
    started = time.monotonic()
    wait(pair, lambda: paused(source), "the source paused")
    print(f"gateway back to held: {time.monotonic() - started:.2f} s")
    [held] = pair.until(lambda: pair.order("item", "held", VAULT), "the server to know it", poll_seconds=0.5)
    assert (held["state"], held["claimant"], held["lastPoint"]) == ("Held", "gateway-b", status.point)
    assert set(links(source)) == {"down"}
    pair.gateways.running["A"].kill()
    source.resume()  # somebody means well; the gateway is gone, the guard of the host is not
    wait(pair, lambda: paused(source), "the source paused by the guard")
    pair.gateways.start(pair.sites.a)


def _is_given_back(pair: Pair, source: Any) -> None:
    killed_in(pair, pair.sites.b, failoverrun.ROLL_BACK_REMOVED, "roll-back", "--confirm", LOST)
    wait(pair, lambda: not paused(source), "the source let go")
    assert set(links(source)) == {"up"}
    pair.wait_records(10)
    wait(pair, lambda: pair.points()[-1].epoch == 3, "a point of the new epoch", 120)
    first = next(point for point in pair.points() if point.epoch == 3)
    assert first.changed_bytes < 64 * 2**20, "an increment, not a copy"
    pair.compare_now()


def _is_moved_in_order(pair: Pair, source: Any) -> tuple[FailoverStatus, PointSummary]:
    a = pair.sites.a
    asked = time.monotonic()
    pair.item("planned-failover", "--network", "none", "--confirm", MOVED)
    with at(pair, a) as client:
        stopped = client.planned_stop(pair.machine)
    print(f"moved: {time.monotonic() - asked:.2f} s, {stopped.steps}")
    assert (stopped.state, stopped.shut_down_by, stopped.proved) == ("Completed", "agent", True)
    assert not source.isActive()
    sums = {disk: _sha256_of_image(a, path) for disk, path in pair.running.guest.disk_paths.items()}
    status = _failed_over(pair, "Completed")
    assert (status.point, status.loss_seconds) == (stopped.point, 0)
    point = _point(pair, status)
    assert pair.exported_hashes(point) == sums, "every byte of the source's images is in the point"
    assert not source.isActive()
    source.create()  # somebody means well
    wait(pair, lambda: paused(source), "the source paused by the guard")
    assert set(links(source)) == {"down"}
    source.destroy()
    return status, point


def _is_turned_to_other_points(pair: Pair, moved: FailoverStatus) -> FailoverStatus:
    """To an earlier one, the first, and back to the last; what it wrote on each is kept until the commit."""
    earlier = [point.number for point in pair.points() if point.number < moved.point]
    for tried, number in enumerate((earlier[-1], earlier[0], moved.point), start=1):
        pair.item("change-point", "--point", str(number), "--confirm", LOST)
        status = _failed_over(pair, "Completed")
        assert (status.id, status.point, len(status.former_writes)) == (moved.id, number, tried)
    _check(pair, pair.sites.b.host_path(status.console_log or ""), _point(pair, status))
    return status


def _sha256_of_image(site: Site, path: Path) -> str:
    """Of what a machine that is off would read, by QEMU's own program."""
    raw = site.directory / "raw"
    site.run("qemu-img", "convert", "-O", "raw", str(path), str(raw))
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()


def _is_committed(pair: Pair, at_b: Any, status: FailoverStatus, point: PointSummary) -> None:
    pair.item("commit", "--confirm", KEPT)
    done = _failed_over(pair, "CommitFailoverCompleted")
    assert done.flattened_bytes == done.total_bytes
    assert done.former_writes == ()
    kept = at_b.lookupByName(pair.machine)
    assert "nbd" not in kept.XMLDesc(0) + kept.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    kept.reset()  # it reads its disks again, with nothing of ours beneath
    _check(pair, pair.sites.b.host_path(status.console_log or ""), point, count=2)
    wait(pair, lambda: not pair.points_exist(), "the end of its points")
    kept.destroy()
    kept.undefine()


def _point(pair: Pair, status: FailoverStatus) -> PointSummary:
    """That it runs on."""
    return next(each for each in pair.points() if each.number == status.point)


def _check(pair: Pair, log: Path, point: PointSummary, *, count: int = 1) -> Any:
    """The guest's own checker: every record acknowledged before the point is there, and none is damaged."""
    wait_console(log, "READY", root=pair.sites.root, seconds=120)
    wait(pair, lambda: len(read_checks(log)) >= count, f"check {count}", 120)
    check = read_checks(log)[-1]
    assert check.good, check
    expected = pair.running.witness.expectation(point.asked_at, point.at)
    assert not expected.unmet(last=check.last, token=check.token)
    return check
