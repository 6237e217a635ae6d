"""Who protects a machine and keeps its replica where nobody says so: what its clouds suggest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.databases import Databases
from support.items import ServedItems, a_machine, served_items
from support.server import owner, tls_caller, trusting
from support.until import until

SHOP = a_machine()
ITEMS = "/api/v1/vaults/North/replicationProtectedItems"


@pytest.fixture
def place(databases: Databases, tmp_path: Path) -> Iterator[ServedItems]:
    with databases.ready("sqlite") as url, served_items(tmp_path / "server", url) as made:
        yield made


def test_the_machines_cloud_and_its_pair_decide(place: ServedItems, tmp_path: Path) -> None:
    address = place.served.server.address
    assert address is not None
    authority = trusting(tmp_path / "server" / "authority.crt")
    call = tls_caller("127.0.0.1", address[1], authority, owner(place.services))
    unpaired = call("POST", ITEMS, {"machine": SHOP.id})
    assert (unpaired.status, unpaired.code) == (409, "pair.none")
    topology = place.services.topology
    assert topology is not None
    primary, target = sorted(topology.clouds.list(place.vault), key=lambda cloud: cloud.gateways[0].name)
    with place.services.database.write() as connection:
        topology.pairs.insert(connection, place.vault, primary.id, target.id, actor="ann")
    begun = call("POST", ITEMS, {"machine": SHOP.id})
    assert begun.status == 202, begun.data
    assert begun.json()["title"] == "Protect shop from gateway-a to gateway-b"
    location = begun.headers["location"]
    until(lambda: call("GET", location).json()["endedAt"] is not None, "the end of the protection")
    assert call("GET", location).json()["state"] == "Succeeded"
    shown = call("GET", f"{ITEMS}/shop").json()
    assert (shown["provider"], shown["targetProvider"], shown["state"]) == (
        "gateway-a",
        "gateway-b",
        "Protected",
    )
    elsewhere = call("POST", ITEMS, {"machine": SHOP.id, "provider": "gateway-x", "targetProvider": "b"})
    assert (elsewhere.status, elsewhere.code) == (404, "gateway.unknown")


def test_the_look_before_takes_the_settings_the_job_takes(place: ServedItems, tmp_path: Path) -> None:
    """They were given to the failover alone: what does not fit was told after it was asked for."""
    address = place.served.server.address
    assert address is not None
    authority = trusting(tmp_path / "server" / "authority.crt")
    call = tls_caller("127.0.0.1", address[1], authority, owner(place.services))
    ends = {"provider": "gateway-a", "targetProvider": "gateway-b"}
    location = call("POST", ITEMS, {"machine": SHOP.id, **ends}).headers["location"]
    until(lambda: call("GET", location).json()["endedAt"] is not None, "the end of the protection")
    there = place.gateways["gateway-b"].failovers
    assert call("GET", f"{ITEMS}/shop/unplannedFailover").status == 200
    assert there.checked == [], "nothing is set: nothing is given"
    assert call("PUT", f"{ITEMS}/shop/recoveredMachine/forward", {"cpus": 2}).status == 200
    for way in ("unplannedFailover", "plannedFailover"):
        seen = call("GET", f"{ITEMS}/shop/{way}?network=nowhere")
        assert seen.status == 200, seen.data
        failed = [check["name"] for check in seen.json()["checks"] if not check["passed"]]
        assert failed == ["networks"], way
    assert [(one["settings"]["cpus"], one["network"]) for one in there.checked] == [(2, "nowhere")] * 2
