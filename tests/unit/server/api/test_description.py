"""Requests made up from our own OpenAPI (schemathesis): no 5xx, nothing unvalidated, answers as described.

They go through the whole application, but in process: thousands of handshakes would test OpenSSL. Bodies and
parameters are both such as described, which must not fail, and such as are not, which must be refused.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, CheckFunction, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from secondsite.server.api.app import build_app
from support.databases import Databases
from support.server import owner, user_with, whole_server

EXAMPLES = {GenerationMode.POSITIVE: 2, GenerationMode.NEGATIVE: 4}
Operation = APIOperation[Any, Any, Any, Any]
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
# ends the token this test comes with; streams what it has, whatever is asked
# and has every request after it refused
LEFT_OUT = {"DELETE /api/v1/sessions/current", "POST /api/v1/server/hand-over"}


@dataclass(frozen=True)
class Described:
    """An application, and a token of an owner of everything."""

    app: FastAPI
    token: str


# PostgreSQL refuses more of what is made up (no NUL in a text): in every run it is that; both: ./run upgrades
BOTH = ("sqlite", "postgresql") if os.environ.get("SECONDSITE_MATRIX") == "full" else ("postgresql",)


@pytest.fixture(params=BOTH)
def described(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Iterator[Described]:
    with databases.ready(request.param) as database_url:
        server = whole_server(database_url, tmp_path)
        services = server.open()
        token = owner(services)
        user_with(services, "maria")
        yield Described(build_app(services), token)
        server.stop()


def test_no_request_is_answered_otherwise_than_described(described: Described) -> None:
    description = copy.deepcopy(described.app.openapi())
    for path in description["paths"].values():
        for operation in path.values():
            operation.pop("security", None)  # the token is sent with all; without it is test_roles' matter
    schema = schemathesis.openapi.from_dict(description)
    schema.app = described.app
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]  # an invalid description raises here
        if operation.label not in LEFT_OUT:
            tried += 1
            for mode, examples in EXAMPLES.items():
                if mode is GenerationMode.POSITIVE or _takes_anything(operation):
                    _try(operation, mode, examples, described.token)
    assert tried > 25


def _takes_anything(operation: Operation) -> bool:
    return bool(list(operation.iter_parameters()) or list(operation.body))


def _try(operation: Operation, mode: GenerationMode, examples: int, token: str) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Case[Any]) -> None:
        answer = case.call(headers={"authorization": f"Bearer {token}"})
        case.validate_response(answer, checks=CHECKS)

    one()
