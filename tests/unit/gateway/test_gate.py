"""A gateway that its server let go begins nothing: every route that could is behind the gate."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

from starlette.routing import Route
from starlette.testclient import TestClient

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.enrolerrors import WorkRefused
from secondsite.gateway.common.enrolgate import GATED_METHODS
from secondsite.gateway.control.api import build_app
from secondsite.gateway.control.services import ControlServices
from support.control import Events

# What ends something or goes on with it, looks or proves, and is no DELETE: written down once more by hand.
OPEN = {
    "/v1/machines/{machine}/failover/check",
    "/v1/machines/{machine}/test-failover/check",
    "/v1/operations/{id}/settings",
    "/v1/failovers/{id}/retire",
    "/v1/failovers/{id}/complete-migration",
    "/v1/protections/{machine}/pause",
    "/v1/failovers/{id}/change-point",
    "/v1/failovers/{id}/remove-former",
    "/v1/failovers/{id}/cancel-timer",
    "/v1/failovers/{id}/commit",
    "/v1/failovers/{id}/roll-back",
    "/v1/held/{machine}/release",
    "/v1/held/{machine}/discard",
    "/v1/recovery-key/proof",
}


def _refuse() -> None:
    raise WorkRefused(text="it was unregistered")


def _services(**given: Any) -> ControlServices:
    """Every part there is, none of which may be called."""
    parts = {
        name: mock.MagicMock(name=name)
        for name in ControlServices.__dataclass_fields__
        if name not in ("name", "site", "clock", "events", "gate")
    }
    return ControlServices(
        name="a", site="a", clock=SystemClock(), events=Events(), gate=_refuse, **(parts | given)
    )


def test_every_route_that_begins_something_is_behind_the_gate() -> None:
    app = build_app(_services(), lambda error: None)
    refused, others = set(), set()
    with TestClient(app, raise_server_exceptions=False) as client:
        for route in app.routes:
            assert isinstance(route, Route)
            for method in (route.methods or set()) & GATED_METHODS:
                answer = client.request(method, re.sub(r"{\w+}", "x", route.path), json={})
                known = answer.headers.get("content-type") == "application/json" and answer.json()
                if known and known.get("code") == "gateway.work-refused":
                    assert answer.status_code == 409
                    refused.add(route.path)
                else:
                    others.add(route.path)
    assert others == OPEN
    assert {"/v1/key/rotation", "/v1/protections/{machine}/data-keys", "/v1/protections/{machine}"} <= refused


def test_what_it_has_is_shown_and_ended() -> None:
    services = _services()
    with TestClient(build_app(services, lambda error: None), raise_server_exceptions=False) as client:
        for method, path in (("GET", "/v1/key"), ("DELETE", "/v1/protections/x"), ("GET", "/v1/protections")):
            answer = client.request(method, path)
            assert "gateway.work-refused" not in answer.text, path
