"""Ids of another vault, in every place of every route: nothing of that vault is seen, and nothing changes.

The routes are taken from the application, the bodies from its description, so that a route nobody thought of
here is tried, too. Beside the owner of one vault, everything that can be held in another carries a mark in
what people wrote there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from secondsite.base.clock import FakeClock
from secondsite.model.events import Severity
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.api.access import CERTIFICATE, PUBLIC
from secondsite.server.api.app import Route, build_app, routes_of
from secondsite.server.api.services import Services
from secondsite.server.database.tables import METADATA
from secondsite.server.items.service import GatewayRef, NewItem
from secondsite.server.jobs.worker import Worker
from secondsite.server.operations.approvals import CHANGE_APPROVALS, ChangeApprovals
from secondsite.server.people.asking import set_demanded
from secondsite.server.people.roles import Grant, Role
from support.catalogue import IMAGES, LAN, Catalogue
from support.databases import Databases
from support.server import Caller, RunningApi, running_api, user_with, whole_server
from support.until import until

MARK = "geheim-im-sueden"
# Rows of these tables are of the caller, or of every request.
NOT_OF_A_VAULT = frozenset({"audit", "audit_head", "tokens", "users", "grants", "job_workers", "event_head"})
LISTINGS_SEEN_MIN = 8


@dataclass
class Vault:
    """What is in a vault: name -> id, by the parameter that names such a thing in a path or body."""

    id: str
    things: dict[str, list[str]] = field(default_factory=dict)

    def one_of_each(self) -> Iterator[str]:
        """Of each kind of thing, the first; of the vault its id and its name."""
        yield self.things["vault"][1]
        for found in self.things.values():
            yield found[0]


@dataclass
class Place:
    """A server with two vaults, and the owner of one."""

    api: RunningApi
    north: Vault
    south: Vault
    call: Caller

    @property
    def services(self) -> Services:
        return self.api.services

    def rows_of_the_south(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row that names the vault or something in it."""
        ids = {self.south.id, *itertools.chain(*self.south.things.values())}
        found: dict[str, list[tuple[Any, ...]]] = {}
        with self.services.database.read() as connection:
            for table in METADATA.sorted_tables:
                if table.name not in NOT_OF_A_VAULT:
                    rows = [tuple(row) for row in connection.execute(sa.select(table))]
                    mine = [row for row in rows if any(text in str(value) for value in row for text in ids)]
                    found[table.name] = sorted(mine, key=repr)
        return found


def _fill(services: Services, catalogue: Catalogue, name: str, mark: str) -> Vault:
    identity, database = services.identity, services.database
    assert identity is not None
    assert services.jobs is not None
    assert services.items is not None
    vault = Vault(identity.vaults.create(name, description=mark).id)
    catalogue.vault = vault.id
    key, record = identity.keys.create(vault.id, url="https://server.example", by="maria")
    ends = [f"{name.lower()}-a", f"{name.lower()}-b"]
    gateways = [catalogue.gateway(end, f"{mark} {end}") for end in ends]
    machines = [f"{mark}-shop", f"{mark}-web"]
    for number, gateway in enumerate(gateways):
        host = f"{mark}-host-{number}"
        catalogue.told(
            gateway, host=host, machines=machines if not number else (), networks=[LAN], pools=[IMAGES]
        )
        identity.gateways.rename(ends[number], f"{mark} {number}")
    clouds = [cloud.id for cloud in catalogue.clouds()]
    pair = catalogue.pair(clouds[0], clouds[1])
    policy = services.items.policies.create(
        vault.id, f"{mark} policy", ReplicationPolicy(copy_frequency_seconds=60), by=mark
    )
    refs = [GatewayRef(gateway, end) for gateway, end in zip(gateways, ends, strict=True)]
    machine = Catalogue.id_of(machines[0])
    new = NewItem(vault.id, machine, machines[0], refs[0], refs[1], policy_id=policy.id)
    with database.write() as connection:
        item = services.items.items.enable(connection, new, by="test").id
        set_demanded(connection, vault.id, {"disable": 1})
        given = ChangeApprovals(vault=vault.id, vault_name=f"{mark}", wanted={}, actor=mark)
        job = services.jobs.start(connection, CHANGE_APPROVALS, given, mark)
    assert services.events is not None
    with database.write() as connection:
        services.events.emit(connection, vault.id, Severity.WARNING, "test.mark", mark, gateway=ends[0])
    vault.things = {
        "vault": [vault.id, name],
        "provider": ends,
        "key": [record.id],
        "job": [job],
        "machine": [machine, Catalogue.id_of(machines[1])],
        "container": clouds,
        "mapping": [pair],
        "policy": [policy.id],
        "item": [item],
        "gateway": gateways,
    }
    del key
    return vault


@pytest.fixture
def place(databases: Databases, tmp_path: Path) -> Iterator[Place]:
    with databases.ready("sqlite") as url:
        server = whole_server(url, tmp_path)
        services = server.open()
        identity, topology = services.identity, services.topology
        assert identity is not None
        assert topology is not None
        assert services.inventories is not None
        clock = cast("FakeClock", services.clock)  # only its time of day is asked for
        database, inventories = services.database, services.inventories
        catalogue = Catalogue(database, clock, identity, inventories, topology, "")
        north = _fill(services, catalogue, "North", "ours")
        south = _fill(services, catalogue, "South", MARK)
        _suspend(services)
        token = user_with(services, "nora", Grant(north.id, Role.OWNER))
        with running_api(services) as api:
            yield Place(api, north, south, api.call.as_(token))
        server.stop()


def _suspend(services: Services) -> None:
    """Have the jobs ask for what they ask, and nothing run from then on."""
    assert services.jobs is not None
    worker = Worker(services.database, services.jobs)
    worker.start()
    worker.nudge()
    until(lambda: _waiting(services) == 2, "both jobs ask")
    worker.stop()


def _waiting(services: Services) -> int:
    assert services.approvals is not None
    return len(services.approvals.waiting(vaults=None))


def _paths(route: Route, place: Place) -> Iterator[str]:
    """The route's path with something of the south in at least one place of it, and the north's elsewhere."""
    names = re.findall(r"{(\w+)}", route.path)
    choices = []
    for name in names:
        ours = place.north.things.get(name, [_unknown(name)])[:1]
        theirs = place.south.things.get(name, [])
        choices.append([(text, False) for text in ours] + [(text, True) for text in theirs])
    for chosen in itertools.product(*choices):
        if any(foreign for _, foreign in chosen):
            path = route.path
            for name, (text, _) in zip(names, chosen, strict=True):
                path = path.replace(f"{{{name}}}", quote(text, safe=""))
            yield path


def _unknown(name: str) -> str:
    return {"user": "nora", "role": "reader", "number": "0", "login": "0" * 32}.get(name, "0" * 16)


def _bodies(place: Place, schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The body filled with the north's, and each text of it once with each thing of the south."""
    plain = _sample(schema, schemas, place.north)
    yield plain
    for path in _texts(plain):
        if path[-1] in FREE_TEXTS:
            continue
        for theirs in place.south.one_of_each():
            yield _with(plain, path, theirs)


# What people write there means nothing to the server.
FREE_TEXTS = frozenset({"friendlyName", "description", "why", "comment", "name"})
# Parameters of every listing.
PAGES = frozenset({"limit", "after"})
# What a field of a body means, where its name does not say it by itself.
MEANS = {
    "primary": "container",
    "target": "container",
    "targetProvider": "provider",
    "forProvider": "provider",
    "fabric": "site",
}


def _sample(schema: dict[str, Any], schemas: dict[str, Any], vault: Vault, name: str = "") -> Any:
    if "$ref" in schema:
        return _sample(schemas[schema["$ref"].rpartition("/")[2]], schemas, vault, name)
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], schemas, vault, name)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        return {
            key: _sample(part, schemas, vault, key)
            for key, part in schema.get("properties", {}).items()
            if key not in ("settings", "revision")
        }
    if kind == "array":
        return [_sample(schema.get("items", {}), schemas, vault, name)]
    if kind == "boolean":
        return False
    if kind in ("integer", "number"):
        return max(schema.get("minimum", 1), 1)
    known = vault.things.get(MEANS.get(name, name))
    return known[0] if known else "x"


def _texts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _texts(part, (*path, number))
    elif isinstance(value, str):
        yield path


def _with(value: Any, path: tuple[Any, ...], text: str) -> Any:
    if not path:
        return text
    if isinstance(value, dict):
        return {**value, path[0]: _with(value[path[0]], path[1:], text)}
    return [_with(part, path[1:], text) if number == path[0] else part for number, part in enumerate(value)]


def _guarded(place: Place) -> list[Route]:
    routes = routes_of(build_app(place.services))
    return [route for route in routes if not route.marks & {PUBLIC, CERTIFICATE}]


def _schema(app: Any, route: Route) -> dict[str, Any] | None:
    described = app.openapi()["paths"][route.path][route.method.lower()]
    found: dict[str, Any] | None = (
        described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    )
    return found


# Ends the token this test comes with.
LEFT_OUT = {("DELETE", "/api/v1/sessions/current"), ("DELETE", "/api/v1/me/tokens/{token}")}


def test_nothing_of_another_vault_is_seen_or_changed(place: Place) -> None:
    app = build_app(place.services)
    schemas = app.openapi()["components"]["schemas"]
    before = place.rows_of_the_south()
    assert all(before[table] for table in ("vaults", "gateways", "registration_keys", "jobs", "approvals"))
    assert all(before[table] for table in ("policies", "protected_items", "events"))
    tried = listed = 0
    for route in _guarded(place):
        if (route.method, route.path) in LEFT_OUT:
            continue
        schema = _schema(app, route)
        for path in _paths(route, place):
            body = None if schema is None else _sample(schema, schemas, place.north)
            tried += 1
            answer = place.call(route.method, path, body)
            assert answer.status in (400, 401, 403, 404, 405, 409, 503), (
                f"{route.method} {path}: {answer.data!r}"
            )
            assert MARK.encode() not in answer.data, f"{route.method} {path}"
        if "{" not in route.path and route.method == "GET":
            answer = place.call("GET", route.path)
            listed += answer.status == 200
            assert MARK.encode() not in answer.data, route.path
    assert tried > 150
    assert listed >= LISTINGS_SEEN_MIN
    assert place.rows_of_the_south() == before


def test_a_body_that_names_another_vaults_things_changes_and_shows_nothing(place: Place) -> None:
    app = build_app(place.services)
    schemas = app.openapi()["components"]["schemas"]
    before = place.rows_of_the_south()
    tried = 0
    for route in _guarded(place):
        schema = _schema(app, route)
        if schema is None or "{vault}" not in route.path:
            continue
        path = route.path
        for name in re.findall(r"{(\w+)}", path):
            path = path.replace(
                f"{{{name}}}", quote(place.north.things.get(name, [_unknown(name)])[0], safe="")
            )
        for body in _bodies(place, schema, schemas):
            tried += 1
            answer = place.call(route.method, path, body)
            assert answer.status < 500 or answer.status == 503, f"{route.method} {path}: {answer.data!r}"
            assert MARK.encode() not in answer.data, f"{route.method} {path} {body}"
    assert tried > 200
    after = place.rows_of_the_south()
    for table, rows in before.items():
        # a word of theirs in a text of ours is ours; what was theirs is as it was
        assert set(map(repr, rows)) <= set(map(repr, after[table])), table


def test_filters_that_name_another_vaults_things_show_nothing(place: Place) -> None:
    described = build_app(place.services).openapi()["paths"]
    tried = 0
    for path, methods in described.items():
        for parameter in methods.get("get", {}).get("parameters", ()):
            certified = methods["get"].get("x-operation") in (None, CERTIFICATE)
            if parameter["in"] != "query" or parameter["name"] in PAGES or "{" in path or certified:
                continue
            for theirs in place.south.one_of_each():
                tried += 1
                answer = place.call("GET", f"{path}?{parameter['name']}={quote(theirs)}")
                assert answer.status in (200, 400, 403, 404, 409), (
                    f"{path} {parameter['name']}: {answer.data!r}"
                )
                assert MARK.encode() not in answer.data, f"{path} {parameter['name']}"
    assert tried > 100


def test_the_mark_is_seen_by_who_may(place: Place) -> None:
    """Else the tests above would look for what nobody shows."""
    token = user_with(place.services, "sven", Grant(place.south.id, Role.READER))
    sven = place.api.call.as_(token)
    seen = {
        route.path
        for route in _guarded(place)
        if route.method == "GET" and "{" not in route.path and MARK.encode() in sven("GET", route.path).data
    }
    assert {
        "/api/v1/vaults",
        "/api/v1/recoveryServicesProviders",
        "/api/v1/machines",
        "/api/v1/jobs",
        "/api/v1/approvals",
        "/api/v1/events",
        "/api/v1/replicationPolicies",
        "/api/v1/replicationProtectedItems",
    } <= seen
