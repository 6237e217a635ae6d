"""Every role x every operation over the real API, against a table written down once more by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.server.api.access import CERTIFICATE, PUBLIC, SELF
from secondsite.server.api.app import Route, build_app, routes_of
from secondsite.server.database.engine import Database
from secondsite.server.people.roles import TABLE, Caller, Grant, Operation, Role
from support.server import RunningApi, make_services, owner, running_api, user_with

# Who may: o(wner) c(ontributor) p (operator) a(pprover) r(eader). Not made from the code's table.
WHO = {
    "server.read": "ocpar",
    "user.read": "ocpar",
    "user.write": "o",
    "role.write": "o",
    "token.write": "o",
    "login.read": "ocpar",
    "login.write": "o",
    "audit.read": "oar",
    "server.backup": "ocp",
    "server.hand-over": "o",
    "authority.rotate": "o",
    "vault.read": "ocpar",
    "vault.create": "oc",
    "vault.write": "oc",
    "vault.delete": "o",
    "registration-key.write": "oc",
    "provider.read": "ocpar",
    "provider.write": "oc",
    "provider.revoke": "oc",
    "policy.read": "ocpar",
    "policy.write": "oc",
    "inventory.refresh": "ocp",
    "cloud.read": "ocpar",
    "cloud.write": "oc",
    "pair.write": "oc",
    "mapping.write": "oc",
    "point.take": "ocp",
    "item.read": "ocpar",
    "item.write": "oc",
    "item.operate": "ocp",
    "item.test": "ocp",
    "item.failover": "ocp",
    "item.disable": "oc",
    "recovery-key.prove": "ocp",
    "event.read": "ocpar",
    "alert.read": "ocpar",
    "alert.write": "oc",
    "job.read": "ocpar",
    "job.operate": "ocp",
    "job.answer": "ocp",
    "approval.give": "oa",
    "approval.write": "o",
}
LETTERS = {"o": Role.OWNER, "c": Role.CONTRIBUTOR, "p": Role.OPERATOR, "a": Role.APPROVER, "r": Role.READER}
NOWHERE = {"user": "nobody", "token": "0" * 16, "role": "reader", "vault": "north"}
DENIED = (401, 403)


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    services = make_services(database, tmp_path)
    owner(services)
    with running_api(services) as running:
        yield running


def _path(route: Route, vault: str) -> str:
    names = {**NOWHERE, "vault": vault}
    return re.sub(r"{(\w+)}", lambda match: names.get(match[1], "0" * 16), route.path)


def _guarded(api: RunningApi) -> Iterator[tuple[str, Route]]:
    for route in routes_of(build_app(api.services)):
        for mark in route.marks:
            yield mark, route


def test_the_table_is_what_was_decided() -> None:
    decided = {Operation(name): {LETTERS[letter] for letter in who} for name, who in WHO.items()}
    assert {operation: set(roles) for operation, roles in TABLE.items()} == decided
    assert set(TABLE) == set(Operation)


def test_every_route_says_who_may_use_it(api: RunningApi) -> None:
    known = {operation.value for operation in Operation} | {SELF, PUBLIC, CERTIFICATE}
    routes = list(routes_of(build_app(api.services)))
    assert len(routes) > 20
    for route in routes:
        found = route.marks
        assert len(found) == 1, (
            f"{route.path} is guarded by {found}: use requires(), requires_login() or public()"
        )
        assert found <= known
    public = {route.path for route in routes if PUBLIC in route.marks}
    enrolment = {path for path in public if path.startswith("/api/v1/enrolment/")}
    provider = {path for path in public if path.startswith(("/api/v1/oidc/logins", "/api/v1/oidc/devices"))}
    assert public - enrolment - provider == {
        "/api/v1/health",
        "/api/v1/ready",
        "/api/v1/sessions",
        "/api/v1/setup",
        "/api/v1/standby/hello",  # proved with a key made of the master key
    }
    assert len(provider) == 4


def test_every_role_by_every_operation_over_the_api(api: RunningApi) -> None:
    tokens = {role: user_with(api.services, role.value, Grant("*", role)) for role in Role}
    tried: set[str] = set()
    for mark, route in _guarded(api):
        if mark not in WHO:
            continue
        tried.add(mark)
        for role, token in tokens.items():
            # on what is not there: who may gets 404 or 400, and nothing changes
            status = api.call.as_(token)(route.method, _path(route, "north"), _body(route.method)).status
            may = role in {LETTERS[letter] for letter in WHO[mark]}
            assert (status not in DENIED) is may, f"{role} {route.method} {route.path}: {status}"
    assert {"server.read", "user.read", "user.write", "role.write", "token.write", "audit.read"} <= tried


def test_without_a_token_or_role_nothing_is_given(api: RunningApi) -> None:
    nobody = user_with(api.services, "robin")
    for mark, route in _guarded(api):
        path = _path(route, "north")
        if mark in (PUBLIC, CERTIFICATE):
            continue
        assert api.call(route.method, path, _body(route.method)).status == 401, path
        if mark != SELF:
            assert api.call.as_(nobody)(route.method, path, _body(route.method)).status == 403, path


def test_a_role_on_one_vault_is_none_on_another(api: RunningApi) -> None:
    token = user_with(api.services, "vera", Grant("north", Role.OWNER))
    for mark, route in _guarded(api):
        if mark not in WHO:
            continue
        call = api.call.as_(token)
        if "{vault}" in route.path:
            assert call(route.method, _path(route, "north"), _body(route.method)).status not in DENIED
            assert call(route.method, _path(route, "south"), _body(route.method)).status == 403
        elif mark in ("user.read", "user.write", "token.write", "audit.read", "server.read"):
            assert call(route.method, _path(route, ""), _body(route.method)).status == 403, route.path


def _body(method: str) -> dict[str, str] | None:
    # refused by every body's model, after the roles were looked at
    return {"no": "such field"} if method in ("POST", "PUT", "PATCH") else None


def _caller(*grants: Grant, vault: str | None = None, role: Role | None = None) -> Caller:
    return Caller("1", "maria", "api:1", frozenset(grants), vault, role)


def test_a_limit_takes_away_and_never_adds() -> None:
    everything = Grant("*", Role.OWNER)
    assert _caller(everything, role=Role.READER).may(Operation.VAULT_READ, "north")
    assert not _caller(everything, role=Role.READER).may(Operation.VAULT_WRITE, "north")
    assert not _caller(Grant("*", Role.READER), role=Role.OWNER).may(Operation.VAULT_WRITE, "north")
    assert _caller(everything, vault="north").may(Operation.VAULT_WRITE, "north")
    assert not _caller(everything, vault="north").may(Operation.VAULT_WRITE, "south")
    assert not _caller(everything, vault="north").may(Operation.USER_READ, None)
    assert _caller(everything, vault="north").vaults(Operation.VAULT_READ) == frozenset({"north"})
    assert _caller(everything).vaults(Operation.VAULT_READ) is None
    two = _caller(Grant("north", Role.OWNER), Grant("south", Role.READER))
    assert two.vaults(Operation.VAULT_WRITE) == frozenset({"north"})
    assert two.vaults(Operation.VAULT_READ) == frozenset({"north", "south"})
    assert _caller().vaults(Operation.VAULT_READ) == frozenset()
