"""The client's types of clouds, pairs and mappings against the API's own description."""

from __future__ import annotations

import inspect
import re
from typing import Any, cast

import jsonschema_rs
import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.client import messages, topology
from secondsite.client.client import ServerClient
from secondsite.client.connection import Connection
from secondsite.server.api.app import build_app
from secondsite.server.database.engine import open_database
from support.server import make_services

SCHEMA_OF = {
    "Fabric": "FabricView",
    "CloudHost": "HostView",
    "Cloud": "ContainerView",
    "Protectable": "ProtectableView",
    "PairProblem": "PairProblem",
    "Way": "WayView",
    "PairHost": "PairHostView",
    "Pair": "PairView",
    "NetworkSource": "NetworkSourceView",
    "NetworkTarget": "NetworkTargetView",
    "NetworkMapping": "NetworkMappingView",
    "StorageSource": "StorageSourceView",
    "StorageTarget": "StorageTargetView",
    "StorageMapping": "StorageMappingView",
    "MappingChange": "ChangeView",
    "Preview": "PreviewView",
    "GatewayCheck": "CheckView",
    "GatewayReadiness": "ReadinessView",
}
GIVEN: dict[str, object] = {
    "hosts": ["h1"],
    "published": True,
    "networks": {"lan": "lan", "dmz": None},
    "pools": {"images": None},
    "clear_default": True,
}


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("description")
    # described, never asked: no table is needed
    database = open_database(f"sqlite:///{directory / 'x.db'}", SystemClock())
    return build_app(make_services(database, directory)).openapi()


def test_every_type_has_the_described_fields(description: dict[str, Any]) -> None:
    kinds = {
        name: kind
        for name, kind in inspect.getmembers(topology, inspect.isclass)
        if issubclass(kind, messages.Answer) and kind.__module__ == topology.__name__
    }
    assert set(kinds) == set(SCHEMA_OF)
    for name, kind in kinds.items():
        schema = description["components"]["schemas"][SCHEMA_OF[name]]
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(schema["properties"]), (
            name
        )


class _Recorder:
    """In place of a connection: notes what is asked, answers with nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, object]] = []

    def call(self, method: str, path: str, kind: object, body: object = None) -> object:
        self.asked.append((method, path, body))
        return messages.Page(value=[]) if "Page" in str(kind) else None


FUNCTIONS = [
    name
    for name, function in inspect.getmembers(topology, inspect.isfunction)
    if function.__module__ == topology.__name__
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_asks_for_what_is_described(name: str, description: dict[str, Any]) -> None:
    recorder = _Recorder()
    server = ServerClient(cast("Connection", recorder))
    function = getattr(topology, name)
    parameters = [one for one in inspect.signature(function).parameters if one != "server"]
    result = function(server, **{one: GIVEN.get(one, "sample") for one in parameters})
    if inspect.isgenerator(result):
        assert list(result) == []
    [(method, path, body)] = recorder.asked
    path, _, query = path.partition("?")
    templates = [
        template
        for template in description["paths"]
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path)
        and method.lower() in description["paths"][template]
    ]
    assert templates, f"{method} {path} is not described"
    operation = description["paths"][min(templates, key=lambda one: one.count("{"))][method.lower()]
    known = {one["name"] for one in operation.get("parameters", []) if one["in"] == "query"}
    assert {pair.partition("=")[0] for pair in query.split("&") if pair} <= known
    described = operation.get("requestBody")
    assert (body is None) is (described is None)
    if described is not None:
        schema = dict(described["content"]["application/json"]["schema"])
        schema["components"] = description["components"]
        jsonschema_rs.validator_for(schema).validate(msgspec.to_builtins(body))
