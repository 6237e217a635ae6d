"""Mappings of networks and pools: what is refused and noted, what items get of it, and saving as a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import sqlalchemy as sa

from secondsite.base.clock import SystemClock
from secondsite.model.machines import Network, Pool
from secondsite.server.database.engine import open_database
from secondsite.server.database.tables_identity import gateway_contacts
from secondsite.server.events.service import Events
from secondsite.server.items.records import Item
from secondsite.server.items.seams import PolicySource, Seams
from secondsite.server.items.service import GatewayRef, Items, NewItem
from secondsite.server.mappings.errors import MappingRefused, NotPaired, PairInUse
from secondsite.server.mappings.records import DEFAULT_POOL, HostCheck, Kind
from secondsite.server.mappings.service import Plan
from secondsite.server.topology.addresses import peers_of
from secondsite.server.topology.clouds import NewCloud
from secondsite.server.topology.errors import CloudInUse
from secondsite.transfer.desired import WantedMapping
from support.catalogue import IMAGES, LAN, Catalogue
from support.databases import Databases
from support.server import Answer, Caller, owner
from support.twosites import TwoSites, two_sites
from support.until import until

DMZ = Network(name="dmz", active=True, isolated=False, subnets=("198.51.100.0/24",))
SLOW = Pool(name="slow", path="/s", active=True, capacity_bytes=1 << 31, free_bytes=1 << 30)


@pytest.fixture
def catalogue(databases: Databases, tmp_path: Path) -> Iterator[Catalogue]:
    """a (host h1) -> Target (hosts h2, h3 with a gateway each)."""
    with (
        databases.ready("sqlite") as url,
        Catalogue.open(open_database(url, SystemClock()), tmp_path) as made,
    ):
        made.told(
            made.gateway("a", "Site A"),
            host="h1",
            machines=["web", "shop", "db"],
            networks=[LAN, DMZ],
            pools=[IMAGES, SLOW],
        )
        made.told(made.gateway("b", "Site B"), host="h2", networks=[LAN, DMZ], pools=[IMAGES, SLOW])
        made.told(made.gateway("c", "Site B"), host="h3", networks=[LAN], pools=[SLOW])
        made.topology.clouds.create(made.vault, NewCloud("Target", "Site B", ["h2", "h3"]))
        made.pair("a", "Target")
        yield made


def plan(catalogue: Catalogue, kind: Kind, wanted: dict[str, str | None]) -> Plan:
    with catalogue.database.read() as connection:
        pair = catalogue.topology.pairs.find(connection, catalogue.vault, "a")
        return catalogue.topology.mappings.plan(connection, pair, kind, wanted)


def write(catalogue: Catalogue, kind: Kind, wanted: dict[str, str | None]) -> None:
    pair = catalogue.topology.pairs.get(catalogue.vault, "a")
    mappings = catalogue.topology.mappings
    catalogue.database.run(lambda connection: mappings.write(connection, pair.id, kind, wanted))


def for_pair(catalogue: Catalogue, source: str, target: str, machine: str = "web") -> WantedMapping:
    with catalogue.database.read() as connection:
        return catalogue.topology.mappings.for_pair(connection, source, target, catalogue.id_of(machine))


def test_networks_are_blank_until_mapped(catalogue: Catalogue) -> None:
    pair, things = catalogue.topology.mappings.shown(catalogue.vault, "Target")
    assert pair.networks == {}
    lan = things.source_networks["lan"]
    assert (lan.subnets, lan.machines) == (("192.0.2.0/24",), ("db", "shop", "web"))
    assert things.target_networks["dmz"].missing_at == ("c",)
    assert things.target_networks["lan"].missing_at == ()
    assert for_pair(catalogue, "a", "b") == WantedMapping()  # attached to nothing
    write(catalogue, Kind.NETWORK, {"lan": "lan"})
    _, things = catalogue.topology.mappings.shown(catalogue.vault, "Target")
    assert things.target_networks["lan"].used_by == ("lan",)
    assert for_pair(catalogue, "a", "c") == WantedMapping(networks={"lan": "lan"})


def test_what_is_not_at_every_host_or_not_at_all_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(MappingRefused, match="the network 'dmz' is not at c"):
        plan(catalogue, Kind.NETWORK, {"lan": "dmz"})
    with pytest.raises(MappingRefused, match="the pool 'images' is not at c") as refused:
        plan(catalogue, Kind.POOL, {DEFAULT_POOL: "images"})
    assert "Make the pool there too" in refused.value.sentences()[2]
    with pytest.raises(MappingRefused, match="Target has no network 'nowhere'") as refused:
        plan(catalogue, Kind.NETWORK, {"lan": "nowhere"})
    assert "There is: dmz, lan" in refused.value.sentences()[1]
    with pytest.raises(MappingRefused, match="a has no pool 'nothing'"):
        plan(catalogue, Kind.POOL, {"nothing": "slow"})


def test_what_a_change_would_do_is_told(catalogue: Catalogue) -> None:
    write(catalogue, Kind.NETWORK, {"lan": "lan"})
    told = plan(catalogue, Kind.NETWORK, {"lan": None, "dmz": "lan"})
    assert [(one.source, one.before, one.after) for one in told.changes] == [
        ("dmz", None, "lan"),
        ("lan", "lan", None),
    ]
    assert told.notes == (
        "lan is used by lan already: their machines will share it",
        "lan: adapters on it come up attached to nothing after a failover",
    )
    assert plan(catalogue, Kind.NETWORK, {"lan": "lan"}).changes == ()
    # three disks of 1 GiB lie in images; the fullest host has 1 GiB free in slow
    told = plan(catalogue, Kind.POOL, {DEFAULT_POOL: "slow"})
    assert told.notes == (
        "slow has 1.0 GiB free at its fullest host; the disks that would go there have 3.0 GiB in all",
    )


def test_a_mapping_is_read_backwards_for_the_way_back(catalogue: Catalogue) -> None:
    write(catalogue, Kind.NETWORK, {"lan": "lan", "dmz": "lan"})
    write(catalogue, Kind.POOL, {"images": "slow", DEFAULT_POOL: "slow"})
    forward = for_pair(catalogue, "a", "b")
    assert forward == WantedMapping(
        networks={"lan": "lan", "dmz": "lan"}, pools={"images": "slow"}, default_pool="slow"
    )
    # two networks came together: neither is the one to go back to
    assert for_pair(catalogue, "b", "a", "other") == WantedMapping(pools={"slow": "images"})
    assert for_pair(catalogue, "b", "c", "other") == WantedMapping()
    assert for_pair(catalogue, "nobody", "a", "other") == WantedMapping()


def protect(catalogue: Catalogue) -> Item:
    """As the items do it that have their mapping from here."""
    seams = Seams(cast("PolicySource", None), catalogue.topology.mappings, Events(catalogue.database))
    items = Items(catalogue.database, catalogue.clock, seams)
    gateways = [one for cloud in catalogue.clouds() for one in cloud.gateways]
    known = {one.name: GatewayRef(one.id, one.name) for one in gateways}
    new = NewItem(catalogue.vault, catalogue.id_of("web"), "web", known["a"], known["b"])
    return catalogue.database.run(lambda connection: items.enable(connection, new, by="test"))


def test_items_take_what_is_mapped_and_hold_what_they_stand_on(catalogue: Catalogue) -> None:
    told: list[str] = []
    catalogue.topology.mappings.changed = lambda _connection, pair: told.append(pair)
    write(catalogue, Kind.NETWORK, {"lan": "lan"})
    pairs = catalogue.topology.pairs
    pair = pairs.get(catalogue.vault, "a")
    assert told == [pair.id]
    item = protect(catalogue)
    assert item.mapping == WantedMapping(networks={"lan": "lan"})
    shown = {one.machine.name: one for one in catalogue.protectable()}
    assert (shown["web"].item, shown["web"].state) == (item.id, "EnablingProtection")
    assert "it is protected already (EnablingProtection)" in shown["web"].reasons
    assert (shown["shop"].item, shown["shop"].state) == (None, "Unprotected")
    with (
        catalogue.database.read() as connection,
        pytest.raises(PairInUse, match=r"1 machine is protected with it \(web\)"),
    ):
        pairs.check_deletable(connection, pair)
    catalogue.database.run(lambda connection: pairs.delete(connection, pair.id))  # in spite of it
    with pytest.raises(CloudInUse, match="1 machine is protected in it"):
        catalogue.topology.clouds.change(catalogue.vault, "a", published=False)


def test_a_machine_whose_cloud_is_no_primary_goes_nowhere(catalogue: Catalogue) -> None:
    mappings = catalogue.topology.mappings
    with catalogue.database.read() as connection:
        choice = mappings.choose_gateway(connection, catalogue.id_of("web"))
        assert mappings.require_pair(connection, choice).target.name == "Target"
    pair = catalogue.topology.pairs.get(catalogue.vault, "a")
    catalogue.database.run(lambda connection: catalogue.topology.pairs.delete(connection, pair.id))
    with (
        catalogue.database.read() as connection,
        pytest.raises(NotPaired, match="The cloud a is the primary"),
    ):
        mappings.require_pair(connection, choice)
    [found] = [one for one in catalogue.protectable() if one.machine.name == "web"]
    assert found.reasons == ("its cloud a is not paired: `secondsite pair create` says where it goes",)


def test_where_another_gateway_is_follows_from_what_it_says_or_what_was_reached(
    catalogue: Catalogue,
) -> None:
    known = {one.name: one.id for cloud in catalogue.clouds() for one in cloud.gateways}

    def peers() -> dict[str, str]:
        with catalogue.database.read() as connection:
            return {one.name: one.url for one in peers_of(connection, known["a"], catalogue.vault)}

    assert peers() == {}
    pair = catalogue.topology.pairs.get(catalogue.vault, "a")
    reached = {"b": "https://192.0.2.7:9443", "c": "https://192.0.2.8:9443"}
    checks = [
        HostCheck(
            host="h1",
            gateway=known["a"],
            gateway_name="a",
            target=known[name],
            target_name=name,
            ok=name == "b",
            url=url,
        )
        for name, url in reached.items()
    ]
    not_asked = "its host h1 was not yet asked whether it reaches Target: `secondsite pair check`"
    assert {one.reasons for one in catalogue.protectable()} == {(not_asked,)}
    pairs = catalogue.topology.pairs
    catalogue.database.run(lambda connection: pairs.record(connection, pair.id, checks[1:]))
    refused = "its host h1 does not reach Target: `secondsite pair show` says why"
    assert {one.reasons for one in catalogue.protectable()} == {(refused,)}
    catalogue.database.run(lambda connection: pairs.record(connection, pair.id, checks))
    assert {one.reasons for one in catalogue.protectable()} == {()}
    assert peers() == {"b": "https://192.0.2.7:9443"}
    says = sa.update(gateway_contacts).where(gateway_contacts.c.gateway_id == known["b"])
    with catalogue.database.write() as connection:
        connection.execute(says.values(url="https://b.example:9443"))
    assert peers() == {"b": "https://b.example:9443"}


# over the API

BASE = "/api/v1/vaults/North/replicationProtectionContainerMappings"
NETWORKS = f"{BASE}/gateway-a/replicationNetworkMappings"
STORAGE = f"{BASE}/gateway-a/replicationStorageClassificationMappings"


@pytest.fixture
def sites(databases: Databases, tmp_path: Path) -> Iterator[TwoSites]:
    with databases.ready("sqlite") as url, two_sites(url, tmp_path) as made:
        made.add("gateway-a", "Site A")
        made.add("gateway-b", "Site B")
        yield made


def ended(call: Caller, begun: Answer) -> Any:
    assert begun.status == 202, begun.data
    location = begun.headers["location"]
    until(lambda: call("GET", location).json()["endedAt"] is not None, "the job's end")
    return call("GET", location).json()


def test_saved_by_a_job_after_the_target_was_asked(sites: TwoSites) -> None:
    call = sites.call(owner(sites.services))
    assert ended(call, call("POST", BASE, {"primary": "gateway-a", "target": "gateway-b"}))["error"] is None
    before = call("GET", NETWORKS).json()
    assert [(one["name"], one["subnets"], one["target"]) for one in before["sources"]] == [
        ("lan", ["192.0.2.0/24"], None)
    ]
    body = {"networks": {"lan": "lan"}}
    preview = call("POST", NETWORKS + "/preview", body).json()
    assert preview["changes"] == [{"source": "lan", "before": None, "after": "lan"}]
    assert call("GET", NETWORKS).json() == before
    job = ended(call, call("PATCH", NETWORKS, body))
    assert (job["state"], job["title"]) == ("Succeeded", "Map the networks of gateway-a to gateway-b")
    log = [line["text"] for line in call("GET", f"/api/v1/jobs/{job['id']}/log").json()["value"]]
    assert {"gateway gateway-b has lan", "lan: nothing -> lan"} <= set(log)
    after = call("GET", NETWORKS).json()
    assert (after["sources"][0]["target"], after["targets"][0]["usedBy"]) == ("lan", ["lan"])
    storage = {"defaultPool": "images"}
    assert ended(call, call("PATCH", STORAGE, storage))["state"] == "Succeeded"
    shown = call("GET", STORAGE).json()
    assert (shown["defaultPool"], shown["sources"][0]["byDefault"]) == ("images", True)
    assert ended(call, call("PATCH", STORAGE, {"clearDefault": True}))["state"] == "Succeeded"
    assert call("GET", STORAGE).json()["defaultPool"] is None


def test_what_went_since_the_site_was_read_fails_the_job_and_changes_nothing(sites: TwoSites) -> None:
    call = sites.call(owner(sites.services))
    ended(call, call("POST", BASE, {"primary": "gateway-a", "target": "gateway-b"}))
    target = sites.gateways["gateway-b"].fabric
    target.nets = [msgspec.structs.replace(target.nets[0], name="renamed")]
    job = ended(call, call("PATCH", NETWORKS, {"networks": {"lan": "lan"}}))
    assert (job["state"], job["error"]["code"]) == ("Failed", "mapping.refused")
    assert "gateway gateway-b has no network 'lan' (any more)" in job["error"]["happened"]
    assert call("GET", NETWORKS).json()["sources"][0]["target"] is None
