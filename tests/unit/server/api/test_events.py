"""Events over the API and the command: who sees which, filters, pages, following."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from secondsite.base.clock import SystemClock
from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.events.service import NewEvent
from secondsite.server.people.roles import Grant, Role
from support.server import RunningApi, make_services, owner, running_api, user_with

INFO, WARNING, CRITICAL = Severity


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[RunningApi]:
    services = make_services(database, tmp_path)
    rows = [
        NewEvent("north", INFO, "ship.link-back", "back", gateway="gateway-a"),
        NewEvent("south", CRITICAL, "store.unfit", "full", gateway="gateway-b"),
        NewEvent("north", WARNING, "replicate.rpo-missed", "late", machine="m1"),
        NewEvent("", WARNING, "server.was-down", "down"),
    ]
    database.run(lambda connection: services.events.write(connection, rows))
    with running_api(services) as running:
        yield running


def _numbers(api: RunningApi, token: str, query: str = "") -> list[int]:
    answer = api.call.as_(token)("GET", f"/api/v1/events?{query}")
    assert answer.status == 200, answer.data
    return [event["number"] for event in answer.json()["value"]]


def test_everybody_sees_the_events_of_their_vaults(api: RunningApi) -> None:
    everything = owner(api.services)
    north = user_with(api.services, "nora", Grant("north", Role.READER))
    assert _numbers(api, everything) == [4, 3, 2, 1]
    assert _numbers(api, north) == [3, 1]
    assert _numbers(api, north, "vault=south") == []
    assert _numbers(api, everything, "vault=south") == [2]


def test_filters_and_pages(api: RunningApi) -> None:
    token = owner(api.services)
    assert _numbers(api, token, "severity=Warning") == [4, 3, 2]
    assert _numbers(api, token, "code=ship.*&code=store.unfit&order=oldest") == [1, 2]
    assert _numbers(api, token, "gateway=gateway-a") == [1]
    assert _numbers(api, token, "machine=m1") == [3]
    assert _numbers(api, token, "order=oldest&above=2") == [3, 4]
    later = quote((SystemClock().utc() + timedelta(hours=1)).isoformat())
    assert _numbers(api, token, f"since={later}") == []
    seen, link = [], "/api/v1/events?limit=3&severity=Information"
    while link:
        page = api.call.as_(token)("GET", link).json()
        seen += [event["number"] for event in page["value"]]
        link = page["nextLink"]
    assert seen == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "query",
    ["severity=Bad", "code=%20", "since=2026-01-01T00:00:00", "since=x", "above=-1", "order=x", "of=1"],
)
def test_what_does_not_fit_is_refused(api: RunningApi, query: str) -> None:
    assert api.call.as_(owner(api.services))("GET", f"/api/v1/events?{query}").code == "request.invalid"
