"""Policies over the API: what is taken, said and noted; what a gateway measured; the client's words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.client import policies as client
from secondsite.server.api.app import build_app
from secondsite.server.database.engine import Database
from secondsite.server.people.roles import Grant, Role
from secondsite.server.policies.service import Policies
from secondsite.transfer.calls import Answer
from support.identity import URL, NewGateway, open_identity
from support.server import Caller, RunningApi, make_services, owner, running_api, user_with

SCHEMA_OF: dict[type[msgspec.Struct], str] = {
    client.Window: "BandwidthWindow",
    client.FirstCopy: "FirstCopyStart",
    client.Settings: "ReplicationPolicy",
    client.Policy: "PolicyView",
    client.Preset: "PresetView",
    client.Revision: "RevisionView",
    client.WindowKept: "WindowView",
    client.Measured: "MeasuredView",
    client.Estimate: "EstimateView",
}
# the SQL is tested on both kinds of databases under the API
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
WHERE = "/api/v1/vaults/North/replicationPolicies"


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    services = make_services(database, tmp_path)
    identity = open_identity(database, tmp_path, SystemClock())
    services.identity, services.policies = identity, Policies(database, SystemClock())
    services.vault_id = lambda vault: identity.vaults.get(vault).id
    identity.vaults.create("North")
    with running_api(services) as running:
        yield running


@pytest.fixture
def boss(api: RunningApi) -> Caller:
    return api.call.as_(owner(api.services))


def test_the_clients_words_are_the_descriptions(database: Database, tmp_path: Path) -> None:
    schemas = build_app(make_services(database, tmp_path)).openapi()["components"]["schemas"]
    for kind, name in SCHEMA_OF.items():
        properties = schemas[name]["properties"]
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(properties), name


def test_from_a_preset_to_its_end(boss: Caller) -> None:
    presets = boss("GET", "/api/v1/replicationPolicyPresets").json()["value"]
    assert [preset["settings"]["copyFrequencySeconds"] for preset in presets] == [5, 30, 300, 900]
    settings = {"applicationConsistentFrequencySeconds": 3600, "compressionLevel": None}
    body = {"friendlyName": "Gold", "preset": "30s", "settings": settings}
    made = boss("POST", WHERE, body)
    assert made.status == 201, made.data
    gold = made.json()
    assert (gold["settings"]["copyFrequencySeconds"], gold["settings"]["compressionLevel"]) == (30, None)
    assert (gold["encryption"], gold["revision"], gold["protectedItems"]) == ("Always", 1, 0)
    assert gold["retentionText"] == "every point for 4 h, one every 1 h for 1 d, one every 2 h for 7 d"
    assert any(text.startswith("Performance:") for text in gold["warnings"])

    window = {"from": "22:00", "until": "06:00", "bytesPerSecond": 5_000_000}
    change = {
        "settings": {"bandwidth": [window], "applicationConsistentFrequencySeconds": None},
        "revision": 1,
    }
    changed = boss("PATCH", f"{WHERE}/gold", change).json()
    assert changed["settings"]["bandwidth"] == [window]
    assert changed["settings"]["applicationConsistentFrequencySeconds"] is None
    assert changed["settings"]["copyFrequencySeconds"] == 30  # what was left out stayed
    assert boss("PATCH", f"{WHERE}/gold", change).code == "policy.changed-meanwhile"
    assert boss("PATCH", f"{WHERE}/Gold (failback)".replace(" ", "%20"), {}).code == "policy.failback-fixed"

    assert boss("POST", f"{WHERE}/gold/copy", {"friendlyName": "Silver"}).json()["revision"] == 1
    first = boss("GET", f"{WHERE}?limit=3").json()
    rest = boss("GET", first["nextLink"]).json()
    names = [one["friendlyName"] for one in first["value"] + rest["value"]]
    assert names == ["Gold", "Gold (failback)", "Silver", "Silver (failback)"]
    assert [one["id"] for one in boss("GET", "/api/v1/replicationPolicies").json()["value"]] == [
        one["id"] for one in first["value"] + rest["value"]
    ]
    said = boss("GET", f"{WHERE}/gold/revisions?limit=1").json()
    assert [one["revision"] for one in said["value"]] == [2]
    assert [one["revision"] for one in boss("GET", said["nextLink"]).json()["value"]] == [1]
    assert boss("DELETE", f"{WHERE}/{gold['id']}").status == 204
    assert boss("GET", f"{WHERE}/gold").code == "policy.unknown"
    noted = boss("GET", "/api/v1/audit").data
    assert noted.count(b'"policy.write"') == 4
    assert b"bytesPerSecond" not in noted or b"5000000" in noted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"copyFrequencySeconds": 0.5}, "copyFrequencySeconds"),
        ({"retention": "sometimes"}, "sometimes"),
        (
            {"copyFrequencySeconds": 300, "applicationConsistentFrequencySeconds": 60},
            "more often than points",
        ),
        ({"firstCopy": {"mode": "scheduled"}}, "names a time of day"),
        ({"retention": "latest", "applicationConsistentFrequencySeconds": 3600}, "latest point only"),
        (
            {"bandwidth": [{"from": "08:00", "until": "12:00"}, {"from": "11:59", "until": "13:00"}]},
            "overlap",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    boss: Caller, settings: dict[str, object], said: str
) -> None:
    refused = boss("POST", WHERE, {"friendlyName": "Gold", "settings": settings})
    assert refused.status == 400
    assert said in refused.json()["happened"]
    assert boss("GET", WHERE).json()["value"] == []


def test_who_may(api: RunningApi, boss: Caller) -> None:
    assert api.services.identity is not None
    vaults = api.services.identity.vaults
    north, south = vaults.get("North").id, vaults.create("South").id
    boss("POST", WHERE, {"friendlyName": "Gold"})
    boss("POST", f"/api/v1/vaults/{south}/replicationPolicies", {"friendlyName": "Gold"})
    reader = api.call.as_(user_with(api.services, "rita", Grant(north, Role.READER)))
    assert [one["vault"] for one in reader("GET", "/api/v1/replicationPolicies").json()["value"]] == [
        north
    ] * 2
    assert reader("POST", WHERE, {"friendlyName": "Lead"}).status == 403
    assert reader("PATCH", f"{WHERE}/gold", {}).status == 403
    operator = api.call.as_(user_with(api.services, "otto", Grant(north, Role.OPERATOR)))
    assert operator("DELETE", f"{WHERE}/gold").status == 403
    contributor = api.call.as_(user_with(api.services, "carl", Grant(north, Role.CONTRIBUTOR)))
    assert contributor("DELETE", f"{WHERE}/gold").status == 204


class Measuring:
    """A gateway that measured 8.64 GB a day."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer = Answer(id="1", status=200, body="{}")

    def ask_now(self, gateway: str, path: str, *, seconds_max: float) -> Answer:
        self.asked.append((gateway, path))
        return self.answer


def test_what_it_costs_where_measured(api: RunningApi, boss: Caller) -> None:
    identity = api.services.identity
    assert identity is not None
    key, _ = identity.keys.create("North", url=URL, by="maria")
    NewGateway(identity, "gateway-b").enrol(key, SystemClock())
    api.services.calls = measuring = Measuring()  # type: ignore[assignment]
    boss("POST", WHERE, {"friendlyName": "Gold", "settings": {"retention": "all:2h,1h:1d"}})
    plain = boss("GET", f"{WHERE}/gold/estimate?retention=latest%2B4").json()
    assert (plain["measured"], plain["retentionText"]) == (None, "one every 1 h for 4 h")
    assert plain["windows"] == [
        {"everySeconds": 3600.0, "reachSeconds": 14400.0, "recoveryPoints": 5, "pointBytes": None}
    ]
    report = {
        "machine": "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        "name": "shop",
        "points": 12,
        "journalBytes": 1000,
        "measuredSeconds": 7200.0,
        "storedBytesPerDay": 8.64e9,
        "pointSeconds": 5.0,
        "cost": {"points": 9, "journalBytes": 5000, "shares": [{"everySeconds": 3600.0, "share": 0.5}]},
        "nextPass": {"more": "than is known"},
    }
    measuring.answer = Answer(id="1", status=200, body=msgspec.json.encode(report).decode())
    found = boss("GET", f"{WHERE}/gold/estimate?provider=gateway-b&machine=shop%20one").json()
    # 100 kB a second: 5 s of them are half a megabyte, an hour of which merging leaves half
    assert [one["pointBytes"] for one in found["windows"]] == [500_000, 180_000_000]
    assert found["measured"]["storedBytesAtMost"] == 5000
    [(gateway, path)] = measuring.asked
    assert gateway == identity.gateways.get("gateway-b").id
    assert path == "/v1/machines/shop%20one/retention?policy=all%3A2h%2C1h%3A1d"
    for answer, code in ((Answer(id="1", status=200, body="[]"), "policy.estimate-unknown"),):
        measuring.answer = answer
        refused = boss("GET", f"{WHERE}/gold/estimate?provider=gateway-b&machine=shop")
        assert refused.code == code
    assert boss("GET", f"{WHERE}/gold/estimate?machine=shop").status == 400
    assert boss("GET", f"{WHERE}/gold/estimate?retention=never").status == 400
    identity.vaults.create("South")
    boss("POST", "/api/v1/vaults/South/replicationPolicies", {"friendlyName": "Gold"})
    other = "/api/v1/vaults/South/replicationPolicies/gold/estimate?provider=gateway-b&machine=shop"
    assert boss("GET", other).code == "gateway.unknown"
