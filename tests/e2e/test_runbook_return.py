"""The runbook's page about a machine that comes back to its former site, typed as it stands.

Both gateways run in this process, each a source and a target, over twins of a hypervisor; see
tests/e2e/test_circle.py for a real guest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.config import load_config
from secondsite.gateway.failover import fencing
from secondsite.gateway.main import Gateway
from support.circle import CircleFabric
from support.hosts import DISKS, MACHINE, Hosts, systemd
from support.runbook import DO, SURE, WORKED, Step, page, walk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PORT = 9444  # of the gateway at A; B's is 9443, and both have one address


class BothWays(Hosts):
    """Either site keeps the other's machines."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fabric: MemoryFabric = CircleFabric(root / "images-a")
        self.machine = self.fabric.add_machine(MACHINE, DISKS)
        self.b_fabric = CircleFabric(root / "images-b")
        self.b_gateway: Gateway | None = None
        place = {"store": "file:///srv/replicas", "base_dir": "/srv/bases"}
        self.write_config("A", **place, listen={"host": self.address, "port": PORT})
        settings = self.path("B", "/etc/secondsite/gateway.toml")
        settings.write_text(
            settings.read_text().replace("https://127.0.0.1:1", f"https://{self.address}:{PORT}")
        )

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
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[BothWays]:
    monkeypatch.setattr(fencing, "ASK_SECONDS", 0.5)
    with tempfile.TemporaryDirectory(prefix="rr") as name:
        made = BothWays(Path(name))
        with systemd(made):
            try:
                made.start_b()
                made.start("A")
                made.protect()
                yield made
            finally:
                made.close()
                for host in ("A", "B"):
                    made._end_others(host)


def test_return_to_the_former_site(hosts: BothWays) -> None:
    _taken_over(hosts)
    back = page("return to the former site")
    walk(back.steps(SURE), hosts.run, repeat=True, evidence=hosts.evidence)
    content = _walk_moving(hosts, back.steps(DO))
    walk(back.steps(WORKED), hosts.run, repeat=True, evidence=hosts.evidence)
    _require_back(hosts, content)


def _taken_over(hosts: BothWays) -> None:
    hosts.shell("B", 'secondsite failover shop --confirm "shop may still run at gateway-a"')
    kept = "shop stays here and has no other point to turn to"
    hosts.shell("B", f'secondsite failover commit shop --confirm "{kept}"')
    hosts.b_fabric.write(hosts.machine, "vda", 8192, b"what was done at the other site" * 50)


def _walk_moving(hosts: BothWays, steps: list[Step]) -> dict[str, bytes]:
    """Type them; what only shows something until it does. Returns what the machine held when it stopped."""
    content: dict[str, bytes] = {}
    for step in steps:
        shows = step.command.endswith(("status", "list")) or step.command.startswith("secondsite check")
        walk([step], hosts.run, repeat=shows, evidence=hosts.evidence)
        if step.command == "secondsite failover stop shop":
            content = _content(hosts.b_fabric, hosts)
    return content


def _require_back(hosts: BothWays, content: dict[str, bytes]) -> None:
    assert _content(hosts.fabric, hosts) == content
    assert hosts.fabric.runs(hosts.machine)
    assert not hosts.b_fabric.runs(hosts.machine)


def _content(fabric: MemoryFabric, hosts: BothWays) -> dict[str, bytes]:
    return {disk: fabric.content(hosts.machine, disk) for disk in DISKS}
