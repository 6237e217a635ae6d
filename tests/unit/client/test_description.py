"""The typed client against the API's own description: every field, every path, every body."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import jsonschema_rs
import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.client import messages
from secondsite.client.client import ServerClient
from secondsite.client.connection import Connection
from secondsite.server.api.app import build_app
from secondsite.server.database.engine import open_database
from support.server import make_services

T = TypeVar("T")
# The client's words for what the description calls otherwise.
SCHEMA_OF = {
    "Health": "Health",
    "RoleHeld": "RoleView",
    "User": "UserView",
    "Token": "TokenView",
    "NewToken": "NewTokenView",
    "Me": "MeView",
    "AuditEntry": "AuditView",
    "AuditVerified": "AuditVerified",
    "JobProblem": "JobProblem",
    "JobQuestion": "JobQuestion",
    "Job": "JobView",
    "JobStep": "StepView",
    "JobDetail": "JobDetail",
    "JobLogLine": "JobLogLine",
    "Thing": "ThingView",
    "SiteRead": "ReadView",
    "SiteStatus": "SiteView",
}
SAMPLES = {"days": 3, "disabled": True, "kind": "machines", "gone": True}


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("description")
    # described, never asked: no table is needed
    database = open_database(f"sqlite:///{directory / 'x.db'}", SystemClock())
    return build_app(make_services(database, directory)).openapi()


def _structs() -> list[type[msgspec.Struct]]:
    found = [kind for _, kind in inspect.getmembers(messages, inspect.isclass)]
    return [
        kind
        for kind in found
        if issubclass(kind, messages.Answer) and kind not in (messages.Answer, messages.Page)
    ]


JSON_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number"}


def _json_type(kind: Any) -> set[str]:
    """The JSON types a field of ours takes."""
    if kind is type(None):
        return {"null"}
    if kind in JSON_TYPES:
        return {JSON_TYPES[kind]}
    origin = typing.get_origin(kind)
    if origin is list:
        return {"array"}
    if origin is dict or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {"object"}
    return set().union(*(_json_type(part) for part in typing.get_args(kind)))


def _described(schema: dict[str, Any]) -> set[str]:
    if "anyOf" in schema:
        return set().union(*(_described(part) for part in schema["anyOf"]))
    if "$ref" in schema:
        return {"object"}
    return {schema["type"]}


@pytest.mark.parametrize("kind", _structs(), ids=lambda kind: kind.__name__)
def test_every_type_has_the_described_fields(kind: type[msgspec.Struct], description: dict[str, Any]) -> None:
    schema = description["components"]["schemas"][SCHEMA_OF[kind.__name__]]
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    assert set(fields) == set(schema["properties"])
    for name, field in fields.items():
        assert _json_type(field.type) == _described(schema["properties"][name]), name


class _Recorder:
    """In place of a connection: notes what is asked, answers with nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, object]] = []

    def call(self, method: str, path: str, kind: type[T], body: object = None) -> T:
        self.asked.append((method, path, body))
        if typing.get_origin(kind) is messages.Page:
            return messages.Page(value=[])  # type: ignore[return-value]
        return None  # type: ignore[return-value]

    def lines(self, path: str) -> list[bytes]:
        self.asked.append(("GET", path, None))
        return []


def _methods() -> list[str]:
    plumbing = {"of", "logged_in", "close", "call", "pages"}
    return [
        name
        for name, _ in inspect.getmembers(ServerClient, inspect.isfunction)
        if not name.startswith("_") and name not in plumbing
    ]


def _ask(name: str, *, everything: bool) -> tuple[str, str, object]:
    recorder = _Recorder()
    client = ServerClient(typing.cast("Connection", recorder))
    method = getattr(client, name)
    given = {
        parameter.name: SAMPLES.get(parameter.name, _sample(parameter.name))
        for parameter in inspect.signature(method).parameters.values()
        if everything or parameter.default is inspect.Parameter.empty
    }
    result = method(**given)
    if inspect.isgenerator(result):
        assert list(result) == []
    assert len(recorder.asked) == 1
    return recorder.asked[0]


def _sample(name: str) -> str:
    return {
        "role": "reader",
        "password": "correct horse battery",
        "token": "0" * 16,
        "anchor": f"1:{'0' * 64}",
        "name": "maria",
        "job": "0" * 8 + "-0000-0000-0000-" + "0" * 12,
    }.get(name, "sample")


@pytest.mark.parametrize("everything", [False, True], ids=["least", "most"])
@pytest.mark.parametrize("name", _methods())
def test_every_method_asks_for_what_is_described(
    name: str, everything: bool, description: dict[str, Any]
) -> None:
    method, path, body = _ask(name, everything=everything)
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


def test_a_login_is_not_shown(tmp_path: Path) -> None:
    made = messages.NewToken(id="1", name="x", created_at="", expires_at="", text="ssa_secret")
    assert "secret" not in repr(made)
