"""Pairs over the real API: enrolled gateways, each asked over its own connection to reach the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from secondsite.server.database.engine import Database
from secondsite.server.mappings.errors import CloudInPair
from secondsite.server.people.roles import Grant, Role
from secondsite.server.topology.errors import CloudPaired
from support.catalogue import Catalogue
from support.databases import Databases
from support.server import Answer, Caller, owner, user_with
from support.twosites import TwoSites, two_sites
from support.until import until

BASE = "/api/v1/vaults/North"
PAIRS = f"{BASE}/replicationProtectionContainerMappings"


@pytest.fixture
def sites(databases: Databases, tmp_path: Path) -> Iterator[TwoSites]:
    with databases.ready("sqlite") as url, two_sites(url, tmp_path) as made:
        yield made


@pytest.fixture
def call(sites: TwoSites) -> Caller:
    return sites.call(owner(sites.services))


def ended(call: Caller, begun: Answer) -> Any:
    assert begun.status == 202, begun.data
    location = begun.headers["location"]
    until(lambda: call("GET", location).json()["endedAt"] is not None, "the job's end")
    return call("GET", location).json()


def log_of(call: Caller, job: Any) -> list[str]:
    return [line["text"] for line in call("GET", f"/api/v1/jobs/{job['id']}/log").json()["value"]]


def pair(call: Caller, primary: str = "gateway-a", target: str = "gateway-b") -> Answer:
    return call("POST", PAIRS, {"primary": primary, "target": target})


def test_two_clouds_are_paired_by_a_job_that_asks_every_host(sites: TwoSites, call: Caller) -> None:
    sites.add("gateway-a", "Site A")
    target = sites.add("gateway-b", "Site B")
    job = ended(call, pair(call))
    assert (job["state"], job["title"]) == ("Succeeded", "Pair the cloud gateway-a with gateway-b")
    assert job["output"] == {
        "hosts": [{"host": "host-a", "ready": True, "by": "gateway-a to gateway-b", "problems": []}]
    }
    assert "host host-a reaches gateway-b: gateway-a to gateway-b" in log_of(call, job)
    shown = call("GET", f"{PAIRS}/gateway-b").json()  # by either cloud
    assert (shown["state"], shown["primary"], shown["target"]) == ("Paired", "gateway-a", "gateway-b")
    [host] = shown["hosts"]
    [way] = host["ways"]
    assert (way["ok"], way["url"], way["freeBytes"]) == (True, target.url, target.room)
    assert way["roundTripSeconds"] > 0
    [first, second] = call("GET", f"{BASE}/replicationProtectionContainers").json()["value"]
    assert (first["role"], first["pairedWith"], second["role"]) == ("Primary", "gateway-b", "Target")
    audit = call("GET", "/api/v1/audit?operation=pair.write").json()["value"]
    assert [(row["actor"], row["target"]) for row in audit] == [("olga", "gateway-a -> gateway-b")]
    changed = call("PATCH", f"{PAIRS}/gateway-a", {"target": "another"})
    assert (changed.status, changed.code) == (409, "pair.target-fixed")
    assert "Delete the pair" in changed.json()["action"]
    assert call("DELETE", f"{PAIRS}/gateway-a").status == 204
    assert call("GET", PAIRS).json()["value"] == []
    assert call("GET", f"{PAIRS}/gateway-a").code == "pair.unknown"


def test_a_host_that_does_not_reach_the_target_is_named_and_retried(
    sites: TwoSites, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.server.operations.pairing.CHECK_SECONDS_MAX", 1.5)
    monkeypatch.setattr("secondsite.server.operations.gathering.LOOK_SECONDS", 0.2)
    sites.add("gateway-a", "Site A")
    lonely = sites.add("gateway-c", "Site A")
    target = sites.add("gateway-b", "Site B")
    made = {"name": "Production", "fabric": "site a", "hosts": ["host-a", "host-c"]}
    assert call("POST", f"{BASE}/replicationProtectionContainers", made).status == 201
    lonely.stop.close()  # its uplink is down: it does not answer
    job = ended(call, pair(call, "production"))
    assert job["state"] == "Failed"
    error = job["error"]
    assert error["code"] == "pair.hosts-not-ready"
    assert "1 of 2 hosts of the cloud Production cannot replicate to gateway-b: host-c" in error["happened"]
    assert "did not answer within" in error["happened"]
    assert "retry the job" in error["action"]
    shown = call("GET", f"{PAIRS}/Production").json()
    assert shown["state"] == "PairingFailed"
    assert [(host["name"], host["ready"]) for host in shown["hosts"]] == [("host-a", True), ("host-c", False)]
    [problem] = shown["hosts"][1]["problems"]
    assert problem["code"] == "calls.gateway-silent"
    # the target has no room any more: asked again, both hosts say so
    target.room = 7
    again = ended(call, call("POST", f"/api/v1/jobs/{job['id']}/retry"))
    assert "2 of 2 hosts" in again["error"]["happened"]
    assert "has 7 bytes left" in again["error"]["happened"]
    # taken back, nothing is left of it
    assert ended(call, call("POST", f"/api/v1/jobs/{job['id']}/cancel"))["state"] == "Cancelled"
    assert call("GET", PAIRS).json()["value"] == []
    assert call("GET", f"{BASE}/replicationProtectionContainers/Production").json()["role"] == "None"


def test_it_is_checked_again_later(sites: TwoSites, call: Caller) -> None:
    sites.add("gateway-a", "Site A")
    target = sites.add("gateway-b", "Site B")
    assert ended(call, pair(call))["state"] == "Succeeded"
    assert target.ingest is not None
    target.ingest.close()
    job = ended(call, call("POST", f"{PAIRS}/gateway-a/check"))
    assert (job["state"], job["error"]["code"]) == ("Failed", "pair.hosts-not-ready")
    shown = call("GET", f"{PAIRS}/gateway-a").json()
    assert (shown["state"], shown["hosts"][0]["ready"]) == ("PairingFailed", False)
    told = call("GET", "/api/v1/events").json()["value"]
    [event] = [one for one in told if one["code"].startswith("pair.")]
    assert (event["code"], event["severity"]) == ("pair.host-unreachable", "Warning")
    assert "The host host-a does not reach gateway-b" in event["text"]
    assert shown["hosts"][0]["problems"][0]["code"] == "link.down"


def test_what_makes_no_pair_is_refused_with_what_to_do(sites: TwoSites, call: Caller) -> None:
    sites.add("gateway-a", "Site A", publish="none")
    sites.add("gateway-b", "Site B")
    containers = f"{BASE}/replicationProtectionContainers"
    same = pair(call, "gateway-b", "gateway-b").json()
    assert "they are the same cloud" in same["happened"]
    hidden = pair(call).json()
    assert (hidden["code"], "is not published" in hidden["happened"]) == ("pair.refused", True)
    assert "secondsite cloud publish VAULT gateway-a" in hidden["action"]
    assert call("PATCH", f"{containers}/gateway-a", {"published": True}).json()["published"] is True
    assert pair(call, "gateway-a", "nowhere").code == "cloud.unknown"
    # a second cloud of a site whose only gateway is the same
    sites.gateways["gateway-b"].fabric.host = "host-b2"
    sites.read(sites.gateways["gateway-b"])
    made = {"name": "Second", "fabric": "Site B", "hosts": ["host-b2"]}
    assert call("POST", containers, made).status == 201
    only = pair(call, "Second", "gateway-b").json()
    assert only["code"] == "pair.refused"
    assert ended(call, pair(call, "gateway-a", "Second"))["state"] == "Succeeded"
    taken = pair(call, "Second", "gateway-b").json()
    assert taken["code"] == "pair.cloud-taken"
    assert "gateway-a -> Second" in taken["happened"]
    assert call("DELETE", f"{containers}/Second").code == "cloud.paired"
    assert call("PATCH", f"{containers}/gateway-a", {"published": False}).code == "cloud.paired"


def test_of_two_requests_at_once_one_pairs_the_cloud(sites: TwoSites, call: Caller) -> None:
    for name, site in (("gateway-a", "Site A"), ("gateway-b", "Site B"), ("gateway-c", "Site C")):
        sites.add(name, site)
    barrier, answers = threading.Barrier(2), {}

    def ask(target: str) -> None:
        barrier.wait(30)
        answers[target] = pair(call, "gateway-a", target)

    threads = [threading.Thread(target=ask, args=(target,)) for target in ("gateway-b", "gateway-c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answer.status for answer in answers.values()) == [202, 409]
    [refused] = [answer for answer in answers.values() if answer.status == 409]
    assert refused.code == "pair.cloud-taken"
    assert len(call("GET", PAIRS).json()["value"]) == 1


def test_the_table_decides_where_two_writers_saw_no_pair(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two servers would whose looks came before either's write."""
    with Catalogue.open(database, tmp_path) as catalogue:
        for name in ("a", "b", "c"):
            catalogue.told(catalogue.gateway(name, f"Site {name}"), host=f"h-{name}")
        catalogue.pair("a", "b")
        monkeypatch.setattr("secondsite.server.mappings.pairs._check", lambda *_: None)
        with pytest.raises(IntegrityError) as raised:
            catalogue.pair("c", "b")
        said = catalogue.topology.pairs.taken(catalogue.vault, "c", "b", raised.value)
        assert isinstance(said, CloudInPair)
        assert "The cloud b is in a pair already: a -> b" in str(said)
        assert [found.name for found in catalogue.topology.pairs.list(catalogue.vault)] == ["a -> b"]
        with pytest.raises(CloudPaired):
            catalogue.topology.clouds.change(catalogue.vault, "b", published=False)


def test_only_those_who_set_up_may(sites: TwoSites) -> None:
    sites.add("gateway-a", "Site A")
    sites.add("gateway-b", "Site B")
    call = sites.call(user_with(sites.services, "otto", Grant(sites.vault, Role.OPERATOR)))
    refused = pair(call)
    assert refused.status == 403
    assert "It needs one of the roles contributor, owner" in refused.json()["cause"]
    assert call("GET", PAIRS).status == 200
