"""Clouds: made by themselves, arranged by people, published or not; each machine once, with its gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.model.ids import MachineId
from secondsite.model.machines import Machine, PowerState
from secondsite.server.database.engine import Database
from secondsite.server.inventory.service import Kind, ObjectUnknown
from secondsite.server.topology.choice import Candidate, choose
from secondsite.server.topology.clouds import NewCloud
from secondsite.server.topology.errors import (
    CloudKept,
    CloudNameTaken,
    CloudUnknown,
    HostUnknown,
    NoGateway,
    SiteUnknown,
)
from secondsite.transfer import enrolment as wire
from support.catalogue import Catalogue


@pytest.fixture
def catalogue(database: Database, tmp_path: Path) -> Iterator[Catalogue]:
    with Catalogue.open(database, tmp_path) as made:
        yield made


def test_a_gateway_has_a_cloud_of_its_own_and_its_hosts_go_there(catalogue: Catalogue) -> None:
    gateway = catalogue.gateway("gateway-a", "Site A")
    [cloud] = catalogue.clouds()
    assert (cloud.name, cloud.site, cloud.published, cloud.hosts) == ("gateway-a", "Site A", True, ())
    catalogue.told(gateway, host="h1", machines=["web", "shop"])
    catalogue.told(gateway, host="h1", machines=["web", "shop"])
    [cloud] = catalogue.clouds()
    assert [(host.name, [one.name for one in host.gateways]) for host in cloud.hosts] == [
        ("h1", ["gateway-a"])
    ]
    assert cloud.machines == 2
    assert [found.machine.name for found in catalogue.protectable()] == ["shop", "web"]
    [site] = catalogue.topology.clouds.sites(catalogue.vault)
    assert (site.name, site.gateways, site.clouds) == ("Site A", ("gateway-a",), ("gateway-a",))


def test_what_is_not_published_is_not_kept(catalogue: Catalogue) -> None:
    gateway = catalogue.gateway("gateway-a", "Site A", published=False)
    catalogue.told(gateway, host="h1", machines=["secret"])
    assert catalogue.protectable() == []
    with pytest.raises(ObjectUnknown):
        catalogue.inventories.find(gateway, Kind.MACHINE, catalogue.id_of("secret"))
    assert catalogue.inventories.find(gateway, Kind.HOST, "h1").name == "h1"  # its host can be published
    catalogue.topology.clouds.change(catalogue.vault, "GATEWAY-A", published=True)
    assert catalogue.inventories.due(gateway, seconds=300)  # read again at once, not in five minutes
    catalogue.told(gateway, host="h1", machines=["secret"])
    assert [found.machine.name for found in catalogue.protectable()] == ["secret"]
    catalogue.topology.clouds.change(catalogue.vault, "gateway-a", published=False)
    assert catalogue.protectable() == []
    with pytest.raises(ObjectUnknown):
        catalogue.inventories.find(gateway, Kind.MACHINE, catalogue.id_of("secret"))


def test_a_cloud_of_several_hosts_and_back(catalogue: Catalogue) -> None:
    first, second = catalogue.gateway("gateway-a", "Site A"), catalogue.gateway("gateway-c", "site a ")
    catalogue.told(first, host="h1", machines=["web"])
    catalogue.told(second, host="h2", machines=["shop"])
    clouds = catalogue.topology.clouds
    made = clouds.create(catalogue.vault, NewCloud("Production", "SITE A", ["h1", "h2"]))
    assert [host.name for host in made.hosts] == ["h1", "h2"]
    assert [gateway.name for gateway in made.gateways] == ["gateway-a", "gateway-c"]
    assert made.machines == 2
    # later inventories keep it so, also for a new machine
    catalogue.told(first, host="h1", machines=["web", "new"])
    assert {found.cloud.name for found in catalogue.protectable()} == {"Production"}
    with pytest.raises(CloudNameTaken):
        clouds.create(catalogue.vault, NewCloud("production", "Site A", ["h1"]))
    with pytest.raises(HostUnknown, match="known are h1, h2"):
        clouds.create(catalogue.vault, NewCloud("Other", "Site A", ["h9"]))
    with pytest.raises(SiteUnknown):
        clouds.create(catalogue.vault, NewCloud("Other", "Site Z", ["h1"]))
    with pytest.raises(CloudKept):
        clouds.delete(catalogue.vault, "gateway-a")
    clouds.delete(catalogue.vault, "Production")
    with pytest.raises(CloudUnknown):
        clouds.get(catalogue.vault, "Production")
    catalogue.told(first, host="h1", machines=["web"])
    catalogue.told(second, host="h2", machines=["shop"])
    assert {found.cloud.name for found in catalogue.protectable()} == {"gateway-a", "gateway-c"}


def test_two_gateways_of_a_site_tell_of_one_machine(catalogue: Catalogue) -> None:
    first, second = catalogue.gateway("gateway-a", "Site A"), catalogue.gateway("gateway-c", "Site A")
    for gateway in (first, second):
        catalogue.told(gateway, host="h1", machines=["web"])
    [found] = catalogue.protectable()
    assert (found.choice.name, found.choice.others) == ("gateway-a", ("gateway-c",))
    catalogue.identity.gateways.unregister("gateway-a", why="")
    [found] = catalogue.protectable()
    assert (found.choice.name, found.choice.others) == ("gateway-c", ())
    catalogue.identity.gateways.unregister("gateway-c", why="")
    assert catalogue.protectable() == []
    with catalogue.database.read() as connection, pytest.raises(NoGateway):
        catalogue.topology.mappings.choose_gateway(connection, catalogue.id_of("web"))


def test_pages_of_machines(catalogue: Catalogue) -> None:
    gateway = catalogue.gateway("gateway-a", "Site A")
    names = [f"m{number:02}" for number in range(25)]
    catalogue.told(gateway, host="h1", machines=names)
    seen: list[str] = []
    after = None
    clouds = [cloud.id for cloud in catalogue.clouds()]
    while page := catalogue.topology.machines.page(clouds, after=after, limit=10):
        seen += [found.machine.name for found in page]
        after = page[-1].key
    assert seen == names
    some = catalogue.topology.machines.page(clouds, name_contains="M1", limit=100)
    assert [found.machine.name for found in some] == names[10:20]


def test_names_of_any_script(catalogue: Catalogue) -> None:
    gateway = catalogue.gateway("gateway-a", "Köln")
    catalogue.told(gateway, host="hôte-東京", machines=["Bücher", "магазин"])
    clouds = catalogue.topology.clouds
    made = clouds.create(catalogue.vault, NewCloud("Größe 東京", "KÖLN", ["hôte-東京"]))
    assert clouds.get(catalogue.vault, "GRÖSSE 東京").id == made.id
    assert [found.machine.name for found in catalogue.protectable()] == ["Bücher", "магазин"]
    assert catalogue.topology.machines.page([made.id], name_contains="BÜCH", limit=5)


def test_the_same_id_at_two_sites_is_two(catalogue: Catalogue) -> None:
    first, second = catalogue.gateway("gateway-a", "Site A"), catalogue.gateway("gateway-b", "Site B")
    catalogue.told(first, host="h1", machines=["web"])
    catalogue.told(second, host="h2", machines=["web"])
    assert sorted(found.cloud.name for found in catalogue.protectable()) == ["gateway-a", "gateway-b"]
    [other] = [cloud for cloud in catalogue.clouds() if cloud.name == "gateway-b"]
    with catalogue.database.read() as connection:
        chosen = catalogue.topology.mappings.choose_gateway(
            connection, catalogue.id_of("web"), cloud=other.id
        )
    assert chosen.name == "gateway-b"


def test_a_host_of_one_name_at_two_sites_is_two(catalogue: Catalogue) -> None:
    for name, site in (("gateway-a", "Site A"), ("gateway-b", "Site B")):
        catalogue.told(catalogue.gateway(name, site), host="kvm", machines=[name])
    for cloud in catalogue.clouds():
        assert [[one.name for one in host.gateways] for host in cloud.hosts] == [[cloud.name]]


def test_a_gateway_that_is_removed_takes_its_cloud_along(catalogue: Catalogue) -> None:
    gateway = catalogue.gateway("gateway-a", "Site A")
    catalogue.told(gateway, host="h1", machines=["web"])
    catalogue.identity.gateways.unregister("gateway-a", why="")
    catalogue.identity.gateways.remove("gateway-a")
    assert catalogue.clouds() == []


def test_a_gateway_that_knows_no_publishing_still_proves_its_key() -> None:
    said = {
        "key_id": "0" * 32,
        "nonce": "n",
        "name": "gateway-a",
        "friendly_name": "a",
        "site": "a",
        "version": "0.1.0",
        "sent_at": "2026-05-04T12:00:00.000000Z",
        "request": "-",
        "proof": "-",
    }
    message = wire.proof_message(wire.Enrol.model_validate(said))
    assert b"publish" not in message  # what an older gateway signed
    other = wire.proof_message(wire.Enrol.model_validate({**said, "publish": "none"}))
    assert b'"publish":"none"' in other  # nobody on the way publishes what was not to be


def candidate(name: str, **said: object) -> Candidate:
    fields: dict[str, object] = {
        "host": "h1",
        "cloud": "c",
        "connected": True,
        "running": True,
        "on_host": False,
        "round_trip_seconds": None,
        "protected": 0,
        "told": Machine(id=MachineId("m"), name="m", host="h1", power=PowerState.RUNNING, disks=()),
        **said,
    }
    return Candidate(gateway=name, name=name, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"connected": False, "on_host": True}, {}, "is connected"),
        ({"running": False, "on_host": True}, {}, "the machine runs at b"),
        ({}, {"on_host": True, "protected": 9}, "the gateway of the host h1 itself"),
        (
            {"round_trip_seconds": 0.02},
            {"round_trip_seconds": 0.001, "protected": 9},
            "nearest to the target",
        ),
        ({}, {"round_trip_seconds": 0.5}, "nearest to the target"),
        ({"protected": 3}, {"protected": 2}, "protects 2 machines, a 3"),
    ],
)
def test_the_nearest_gateway_is_chosen_and_says_why(
    first: dict[str, object], second: dict[str, object], word: str
) -> None:
    for order in (1, -1):
        chosen = choose([candidate("a", **first), candidate("b", **second)][::order])
        assert (chosen.name, chosen.others) == ("b", ("a",))
        assert word in chosen.reason
    assert choose([candidate("b"), candidate("a")]).name == "a"
    alone = choose([candidate("a")])
    assert "only a tells of it; no gateway is on the host h1 alone" in alone.reason
