"""The runbook's pages about a site that is lost and comes back, typed as they stand.

Both gateways run in this process over twins of a hypervisor; see tests/e2e/test_failover.py for real guests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.fabrics.base import Life, Recovered
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.config import load_config
from secondsite.gateway.main import Gateway
from secondsite.model.machines import PowerState
from secondsite.nbd.client import NbdClient
from support.hosts import Hosts
from support.runbook import DO, SURE, WORKED, Step, page, walk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


BOOTS = bytes(510) + b"\x55\xaa"  # what a BIOS looks for in a disk's first sector


class Bios(MemoryFabric):
    """Its recovered machines come up only from a disk that can be booted from."""

    def life_of(self, recovered: Recovered) -> Life:
        disk = next(disk for disk in self.recovered_spec(recovered).disks if disk.id == "vda")
        sector = bytearray(len(BOOTS))
        client = NbdClient.connect_unix(disk.socket_path, disk.export_name)
        try:
            client.read_into(0, memoryview(sector))
        finally:
            client.close()
        boots = bytes(sector) == BOOTS
        return Life(power=PowerState.RUNNING, console=boots, agent=boots)


class TwinHosts(Hosts):
    """Site B has a hypervisor as well."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.b_fabric = MemoryFabric()
        self.b_gateway: Gateway | None = None

    def start_b(self) -> None:
        text = self.path("B", "/etc/secondsite/gateway.toml").read_text()
        config = self.root / "B" / "gateway.placed.toml"
        config.write_text(self._placed("B", text))
        self.b_gateway = Gateway(load_config(config), fabric=self.b_fabric)
        self.b_gateway.start()

    def close(self) -> None:
        if self.b_gateway is not None:
            self.b_gateway.stop()
        super().close()


@pytest.fixture
def hosts() -> Iterator[TwinHosts]:
    with tempfile.TemporaryDirectory(prefix="rf") as name:
        made = TwinHosts(Path(name))
        try:
            made.start_b()
            made.start("A")
            made.protect()
            yield made
        finally:
            made.close()
            for host in ("A", "B"):
                made._end_others(host)


def test_site_lost(hosts: TwinHosts) -> None:
    hosts.stop("A")
    lost = page("site lost")
    walk(lost.steps(SURE), hosts.run, repeat=True, evidence=hosts.evidence)
    walk(lost.steps(DO), hosts.run, repeat=False, evidence=hosts.evidence)
    walk(lost.steps(WORKED), hosts.run, repeat=True, evidence=hosts.evidence)
    assert hosts.b_fabric.runs(hosts.machine)
    assert hosts.b_fabric.recovered() == [], "it is a machine of the site like any other"
    with hosts.client("B") as client:
        assert client.exports("shop") == []


def test_returning_source_held(hosts: TwinHosts) -> None:
    hosts.stop("A")
    hosts.shell("B", 'secondsite failover shop --confirm "shop may still run at gateway-a"')
    hosts.start("A")
    held = page("returning source held")
    walk(held.steps(SURE), hosts.run, repeat=True, evidence=hosts.evidence)
    assert not hosts.fabric.runs(hosts.machine)
    walk(held.steps(DO), hosts.run, repeat=False, evidence=hosts.evidence)
    walk(held.steps(WORKED), hosts.run, repeat=True, evidence=hosts.evidence)
    assert not hosts.fabric.runs(hosts.machine)
    assert hosts.b_fabric.runs(hosts.machine)


def test_recovered_machine_does_not_boot(hosts: TwinHosts) -> None:
    """Something overwrote the first sector a point ago."""
    assert hosts.b_gateway is not None
    hosts.b_gateway.stop()
    hosts.b_fabric = Bios()
    hosts.start_b()
    good, bad = (_point_with(hosts, sector) for sector in (BOOTS, bytes(512)))
    hosts.stop("A")
    hosts.shell("B", 'secondsite failover shop --confirm "shop may still run at gateway-a"')
    dead = page("recovered machine does not boot")
    walk(dead.steps(SURE), hosts.run, repeat=True, evidence=hosts.evidence)
    with hosts.client("B") as client:
        assert bad <= max(point.number for point in client.points("shop"))
    shown = hosts.shell("B", "secondsite failover status shop")
    assert "console" not in shown
    assert "user space" not in shown
    steps = [_of_point(step, good) for step in dead.steps(DO)]
    walk(steps, hosts.run, repeat=False, evidence=hosts.evidence)
    walk(dead.steps(WORKED), hosts.run, repeat=True, evidence=hosts.evidence)


def _point_with(hosts: TwinHosts, sector: bytes) -> int:
    hosts.fabric.write(hosts.machine, "vda", 0, sector)
    with hosts.client("A") as client:
        return client.take_point("shop").number


def _of_point(step: Step, number: int) -> Step:
    expected = [line.replace("POINT", str(number)) for line in step.expected]
    return Step(step.host, step.command.replace("POINT", str(number)), expected)


def test_planned_move(hosts: TwinHosts) -> None:
    """It writes to its last moment, and is busy until then."""
    move = page("planned move")
    hosts.busy(bytes_per_second=2_000_000)
    walk(move.steps(SURE), hosts.run, repeat=True, evidence=hosts.evidence)
    hosts.quiet()
    hosts.fabric.write(hosts.machine, "vdb", 8192, b"the last thing it did" * 100)
    content = {disk: hosts.fabric.content(hosts.machine, disk) for disk in ("vda", "vdb")}
    stop, start, *rest = move.steps(DO)
    walk([stop, start], hosts.run, repeat=False, evidence=hosts.evidence)
    assert hosts.read_point(hosts.points()[-1].number) == content
    walk(rest, hosts.run, repeat=False, evidence=hosts.evidence)
    walk(move.steps(WORKED), hosts.run, repeat=True, evidence=hosts.evidence)
    assert not hosts.fabric.runs(hosts.machine)
    assert hosts.b_fabric.runs(hosts.machine)
