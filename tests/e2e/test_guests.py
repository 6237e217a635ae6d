"""A guest that is made differently: UEFI, three disks, two adapters with fixed addresses, no agent.

It is moved in order, while both gateways are killed at one mark of each step (all marks: `./run kills`), and
committed. Without an agent nothing is frozen, and it is the power button that shuts it down. There is no
server: gateways move a machine by their own commands too, when it is gone (test_circle_server.py has one).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import pytest

from secondsite.base.units import MIB
from secondsite.fabrics.libvirt import domxml
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.messages.failover import CommitFailover, FailoverStatus, PlannedStop, StartFailover
from secondsite.gateway.source import plannedstop
from secondsite.lab import processes
from secondsite.lab.machine import read_checks, read_console
from secondsite.model.failover import FailoverKind, FailoverState
from secondsite.model.points import Consistency
from support.lab import SMALL_GUEST
from support.pair import Pair, running_pair

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.fault, pytest.mark.timeout(600)]

SPEC = replace(
    SMALL_GUEST,
    uefi=True,
    agent=False,
    more_disks_bytes=(48 * MIB,),
    addresses=("192.168.50.101/24", "192.168.50.102/24"),
)
STOP, MOVE = "5" * 32, "a" * 32
STOPPED = "shop was stopped at gateway-a"
KEPT = "shop stays here and has no other point to turn to"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair(SPEC) as both:
        both.protect()
        both.wait_protected()
        both.wait_records(20)
        yield both


def wait(pair: Pair, condition: Any, what: str, seconds: float = 120) -> None:
    root = pair.sites.root
    processes.wait_until(condition, what=what, root=root, seconds=seconds, evidence=pair.log_tails)


def at(pair: Pair, site: str) -> FailoverClient:
    return FailoverClient(pair.gateways.control_socket(pair.sites.a if site == "A" else pair.sites.b))


def test_a_uefi_guest_with_more_disks_and_adapters_and_no_agent_is_moved(pair: Pair) -> None:
    a, b = pair.sites.a, pair.sites.b
    seen = [line for line in read_console(pair.running.guest.console_log) if _says_who_it_is(line)]
    assert len(seen) == 4, seen
    assert {point.consistency for point in pair.points()} == {Consistency.CRASH}

    _stop(pair)
    hashes = {disk: _sha256(a.disks, path) for disk, path in pair.running.guest.disk_paths.items()}
    assert len(hashes) == 3
    status = _move(pair)
    log = b.host_path(status.console_log or "")
    _require_same_guest(pair, log, seen, boot=2)
    point = next(each for each in pair.points() if each.number == status.point)
    assert pair.exported_hashes(point) == hashes, "every byte of its three disks is in the point"

    with contextlib.closing(b.connect()) as connection:
        taken = connection.lookupByName(pair.machine)
        adapters = ET.fromstring(taken.XMLDesc()).findall("devices/interface")
        macs = [adapter.find("mac").get("address") for adapter in adapters]  # type: ignore[union-attr]
        assert macs == list(SPEC.hardware_addresses)
        _commit(pair)
        taken.destroy()
        taken.create()  # cold, from nothing but files of the site
        text = taken.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert Path(domxml.nvram_path(domxml.parse(text)) or "").is_relative_to(b.disks)
        _require_same_guest(pair, log, seen, boot=3)
        taken.destroy()
        taken.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    with pair.gateways.client(a) as client:
        client.unprotect(pair.machine)


def _says_who_it_is(line: str) -> bool:
    return line.startswith(("FIRMWARE keeps", "ADDRESS", "BOOTS"))


def _stop(pair: Pair) -> None:
    """Its gateway dies between the last point and the proof."""
    pair.kill_at(pair.sites.a, plannedstop.LAST_POINT)
    with at(pair, "A") as client:
        client.stop_in_order(pair.machine, PlannedStop(operation=STOP))
    pair.revive(pair.sites.a)
    with at(pair, "A") as client:
        wait(pair, lambda: client.planned_stop(pair.machine).state == "Completed", "stopped in order")
        stopped = client.planned_stop(pair.machine)
    assert (stopped.shut_down_by, stopped.proved) == ("power button", True)


def _move(pair: Pair) -> FailoverStatus:
    """The gateway that takes over dies once the machine runs, before it has written that down."""
    pair.kill_at(pair.sites.b, failoverrun.AFTER_BOOT)
    request = StartFailover(operation=MOVE, point="latest", kind=FailoverKind.PLANNED, confirm=STOPPED)
    with at(pair, "B") as client:
        client.start_failover(pair.machine, request)
    pair.revive(pair.sites.b)
    return _ended(pair, FailoverState.COMPLETED)


def _commit(pair: Pair) -> None:
    """It dies when its disks are plain."""
    pair.kill_at(pair.sites.b, failoverrun.COMMIT_FLATTENED)
    with at(pair, "B") as client:
        client.commit_failover(MOVE, CommitFailover(confirm=KEPT))
    pair.revive(pair.sites.b)
    status = _ended(pair, FailoverState.COMMITTED)
    assert status.flattened_bytes == status.total_bytes
    assert len(status.verified) == 5, "running, with its size, on its networks, by the hypervisor's word"
    assert [check for check in status.verified if not check.passed] == []


def _ended(pair: Pair, state: FailoverState) -> FailoverStatus:
    with at(pair, "B") as client:

        def look() -> bool:
            status = client.failover(MOVE)
            assert status.error is None, f"{status.error}\n{pair.log_tails()}"
            return status.state is state

        wait(pair, look, f"{state}")
        return client.failover(MOVE)


def _require_same_guest(pair: Pair, log: Path, seen: list[str], *, boot: int) -> None:
    """It booted: its variables, addresses and disks are those it had, to the last record."""
    boots = next(line for line in seen if line.startswith("BOOTS")).removesuffix(" 1")
    wait(pair, lambda: f"{boots} {boot}" in read_console(log), f"boot {boot}")
    wait(pair, lambda: "READY" in _last_boot(log), f"the end of boot {boot}")
    said = _last_boot(log)
    assert all(line in said for line in seen if not line.startswith("BOOTS")), said
    check = read_checks(log)[-1]
    assert check.good, check
    assert check.last >= pair.running.witness.acknowledged, "the last record came with it"


def _last_boot(log: Path) -> str:
    return "\n".join(read_console(log)).rpartition("HELLO")[2]


def _sha256(directory: Path, path: Path) -> str:
    """Of what a machine that is off would read, by QEMU's own program."""
    raw = directory / "raw"
    processes.run(["qemu-img", "convert", "-O", "raw", path, raw])
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()
