"""Vaults and gateways over the API: who may do what, what is noted, and the client's words for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.client import messages, vaults
from secondsite.server.api.app import build_app
from secondsite.server.database.engine import Database, open_database
from secondsite.server.identity.service import Identity
from secondsite.server.people.roles import Grant, Role
from secondsite.transfer.registration import parse_key
from support.identity import URL, NewGateway, open_identity
from support.server import Caller, RunningApi, make_services, owner, running_api, user_with

SCHEMA_OF: dict[type[msgspec.Struct], str] = {
    vaults.Vault: "VaultView",
    vaults.RegistrationKey: "KeyView",
    vaults.NewRegistrationKey: "NewKeyView",
    vaults.Provider: "ProviderView",
}


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    services = make_services(database, tmp_path)
    identity = open_identity(database, tmp_path, SystemClock())
    services.identity = identity
    services.vault_id = lambda vault: identity.vaults.get(vault).id
    with running_api(services) as running:
        yield running


@pytest.fixture
def identity(api: RunningApi) -> Identity:
    assert api.services.identity is not None
    return api.services.identity


@pytest.fixture
def boss(api: RunningApi) -> Caller:
    return api.call.as_(owner(api.services))


def _gateway(identity: Identity, vault: str, name: str) -> None:
    key, _ = identity.keys.create(vault, url=URL, by="maria")
    NewGateway(identity, name).enrol(key, SystemClock())


def test_the_clients_words_are_the_descriptions(tmp_path: Path) -> None:
    # described, never asked: no table is needed
    database = open_database(f"sqlite:///{tmp_path / 'x.db'}", SystemClock())
    schemas = build_app(make_services(database, tmp_path)).openapi()["components"]["schemas"]
    for kind, name in SCHEMA_OF.items():
        properties = schemas[name]["properties"]
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(properties), name
    database.close()


def test_a_vault_and_its_key(api: RunningApi, boss: Caller) -> None:
    made = boss("POST", "/api/v1/vaults", {"friendlyName": "Nørth"})
    assert made.status == 201
    assert made.json()["state"] == "Active"
    vault = made.json()["id"]
    created = boss("POST", f"/api/v1/vaults/{vault}/registrationKeys", {})
    assert created.status == 201
    text = created.json()["key"]
    assert parse_key(text).url == URL
    shown = boss("GET", "/api/v1/vaults/N%C3%B8rth/registrationKeys")
    [listed] = shown.json()["value"]
    assert (listed["state"], listed["createdBy"]) == ("Active", "olga")
    assert text.encode() not in shown.data
    assert (
        boss("DELETE", f"/api/v1/vaults/{vault}/registrationKeys/{listed['id']}").json()["state"] == "Revoked"
    )
    noted = boss("GET", "/api/v1/audit").data
    for operation in (b"vault.create", b"registration-key.write"):
        assert operation in noted
    assert text.encode() not in noted


def test_what_is_seen_and_done_follows_from_roles(api: RunningApi, boss: Caller, identity: Identity) -> None:
    north, south = (identity.vaults.create(name).id for name in ("North", "South"))
    _gateway(identity, "North", "gateway-n")
    _gateway(identity, "South", "gateway-s")
    reader = api.call.as_(user_with(api.services, "rita", Grant(north, Role.READER)))
    contributor = api.call.as_(user_with(api.services, "carl", Grant(north, Role.CONTRIBUTOR)))

    def names(caller: Caller, path: str, field: str) -> list[str]:
        return [found[field] for found in caller("GET", path).json()["value"]]

    assert names(boss, "/api/v1/recoveryServicesProviders", "name") == ["gateway-n", "gateway-s"]
    for caller in (reader, contributor):
        assert names(caller, "/api/v1/vaults", "friendlyName") == ["North"]
        assert names(caller, "/api/v1/recoveryServicesProviders", "name") == ["gateway-n"]
        assert caller("GET", f"/api/v1/vaults/{south}").status == 403
        # whether there is such a gateway in a vault one may not see is not told either
        for name in ("gateway-s", "gateway-x"):
            where = f"/api/v1/vaults/{south}/recoveryServicesProviders/{name}"
            assert caller("GET", where).code == "access.forbidden"
    mine = f"/api/v1/vaults/{north}"
    assert reader("POST", f"{mine}/registrationKeys", {}).status == 403
    assert contributor("POST", f"{mine}/registrationKeys", {}).status == 201
    gateway = f"{mine}/recoveryServicesProviders/gateway-n"
    for action in ("revoke", "unregister", "refresh"):
        assert reader("POST", f"{gateway}/{action}", {}).status == 403
    assert reader("DELETE", gateway).status == 403
    assert contributor("DELETE", mine).status == 403  # an owner's
    assert contributor("POST", f"{gateway}/unregister", {"why": "test"}).json()["state"] == "Unregistered"
    assert contributor("DELETE", gateway).status == 204
    # a gateway is not reached through a vault it is not of
    other = f"{mine}/recoveryServicesProviders/gateway-s"
    assert boss("POST", f"{other}/revoke", {}).code == "gateway.unknown"


def test_listings_come_in_pages(boss: Caller, identity: Identity) -> None:
    names = [f"vault {letter}" for letter in "dbca"]
    for name in names:
        identity.vaults.create(name)
    seen: list[str] = []
    link = "/api/v1/vaults?limit=3"
    while link:
        page = boss("GET", link).json()
        seen += [found["friendlyName"] for found in page["value"]]
        link = page["nextLink"]
    assert seen == sorted(names)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/vaults", {}),
        ("/api/v1/vaults", {"friendlyName": "x", "more": 1}),
        ("/api/v1/vaults", {"friendlyName": "*"}),
        ("/api/v1/vaults", {"friendlyName": "a/b"}),
        ("/api/v1/vaults", {"friendlyName": "x" * 101}),
        ("/api/v1/enrolment/challenges", {"keyId": "short"}),
        ("/api/v1/enrolment/certificates", {"keyId": "0" * 32}),
        ("/api/v1/vaults/North/registrationKeys", {"url": "http://plain"}),
        ("/api/v1/vaults/North/registrationKeys", {"forProvider": "Not A Name"}),
    ],
)
def test_what_does_not_fit_is_refused(
    boss: Caller, identity: Identity, path: str, body: dict[str, object]
) -> None:
    identity.vaults.create("North")
    answer = boss("POST", path, body)
    assert answer.status == 400
    assert answer.code in {"request.invalid", "input.invalid"}
    assert [vault.friendly_name for vault in identity.vaults.all()] == ["North"]


def test_pages_of_the_client_have_the_servers_shape() -> None:
    assert {field.encode_name for field in msgspec.structs.fields(messages.Page)} == {"value", "nextLink"}
