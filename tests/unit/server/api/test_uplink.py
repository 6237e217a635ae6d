"""A server asks a gateway over TLS that the gateway opened: inventories come, changes are fenced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.server.items.generations import raise_generations
from secondsite.server.people.roles import Grant, Role
from secondsite.transfer.calls import ANSWER_BODY_BYTES_MAX, PATH_ANSWERS, PATH_ASK, Answer, Ask, Call, Calls
from support.enrolled import CLOCK, Place, enrolled_place
from support.server import owner, user_with
from support.until import until


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    with enrolled_place(database_url, tmp_path) as made:
        yield made


def test_a_site_is_read_and_listed_for_those_who_may(place: Place) -> None:
    call = place.call(owner(place.services))
    identity = place.fabric.add_machine("Web-Ü", {"vda": 1 << 20})
    site = "/api/v1/vaults/North/recoveryServicesProviders/gateway-a/inventory"
    assert call("GET", site).json()["readAt"] is None
    with place.uplink():
        assert call("POST", site).json()["appeared"] >= 2  # the machine, and the host
        [machine] = call("GET", "/api/v1/machines").json()["value"]
        assert (machine["id"], machine["name"], machine["provider"]) == (identity, "Web-Ü", "gateway-a")
        assert machine["properties"]["disks"][0]["sizeBytes"] == 1 << 20
        assert call("GET", "/api/v1/machines?name=web").json()["value"] == [machine]
        assert call("GET", "/api/v1/machines?name=mail").json()["value"] == []
        assert call("GET", "/api/v1/machines?provider=another").json()["value"] == []
        assert [one["name"] for one in call("GET", "/api/v1/networks").json()["value"]] == ["default"]
        assert call("POST", site).json() == {"appeared": 0, "changed": 0, "gone": 0}
    vault = place.identity.vaults.create("South")
    stranger = place.call(user_with(place.services, "vera", Grant(vault.id, Role.OWNER)))
    assert stranger("GET", "/api/v1/machines").json()["value"] == []
    assert stranger("POST", site).status == 403


def test_listings_go_on_where_the_page_ended(place: Place) -> None:
    call = place.call(owner(place.services))
    for number in range(7):
        place.fabric.add_machine(f"m{number}", {"vda": 1 << 20})
    with place.uplink():
        call("POST", "/api/v1/vaults/North/recoveryServicesProviders/gateway-a/inventory")
    names, link = [], "/api/v1/machines?limit=3"
    while link:
        page = call("GET", link).json()
        names += [one["name"] for one in page["value"]]
        link = page["nextLink"]
    assert names == [f"m{number}" for number in range(7)]
    assert call("GET", "/api/v1/machines?after=WzFd").code == "request.invalid"


def test_a_silent_gateway_is_told_with_what_was_known(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondsite.server.inventory.reader.ANSWER_SECONDS_MAX", 0.3)
    call = place.call(owner(place.services))
    site = "/api/v1/vaults/North/recoveryServicesProviders/gateway-a/inventory"
    answer = call("POST", site)
    assert (answer.status, answer.code) == (503, "calls.gateway-silent")
    shown = call("GET", site).json()
    assert shown["problem"]["code"] == "calls.gateway-silent"
    assert shown["triedAt"] is not None


def test_a_change_of_an_older_epoch_is_refused_by_the_gateway(place: Place) -> None:
    def result(identity: str) -> Answer:
        until(lambda: place.calls.result(identity) is not None, f"an answer to {identity}")
        found = place.calls.result(identity)
        assert found is not None
        return found

    point = {"method": "POST", "path": "/v1/protections/x/point", "body": "{}", "job": "j"}
    with place.uplink():
        place.calls.put(place.gateway, Call.model_validate({**point, "id": "1", "epoch": 2}), seconds_max=60)
        assert "There is no protected machine" in result("1").body  # carried out
        place.calls.put(place.gateway, Call.model_validate({**point, "id": "2", "epoch": 1}), seconds_max=60)
        assert '"calls.step-outdated"' in result("2").body


def test_calls_made_while_the_gateway_was_away_are_done_when_it_is_back(place: Place) -> None:
    place.calls.put(place.gateway, Call(id="1", method="GET", path="/v1/status"), seconds_max=60)
    with place.uplink():
        until(lambda: place.calls.result("1") is not None, "an answer")
    answer = place.calls.result("1")
    assert answer is not None
    assert '"gateway-a"' in answer.body


def test_work_that_comes_up_wakes_a_gateway_that_waits(place: Place) -> None:
    clients = EnrolledClients(place.files)
    source = ServerCalls(clients.open, clients.serial)
    found: list[Call] = []

    def wait() -> None:
        found.extend(source.ask(Ask(room=1, wait_seconds=25)).calls)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: place.gateway in place.calls.bells._loops, "the gateway waits")
    begun = CLOCK.monotonic()
    place.calls.put(place.gateway, Call(id="1", method="GET", path="/v1/status"), seconds_max=60)
    thread.join()
    assert CLOCK.monotonic() - begun < 20  # not at the end of its time
    assert [call.id for call in found] == ["1"]
    source.close()


def test_a_gateway_that_waits_is_told_that_something_is_wanted(place: Place) -> None:
    """Not with its next heartbeat: what a person changes is taken up within a second."""
    items, database = place.services.items, place.services.database
    assert items is not None
    clients = EnrolledClients(place.files)
    source = ServerCalls(clients.open, clients.serial)
    vault = place.identity.gateways.get("gateway-a").vault_id
    known = items.wanted.generation(place.gateway, vault)
    told: list[Calls] = []
    thread = threading.Thread(
        target=lambda: told.append(source.ask(Ask(room=1, wait_seconds=25, generation=known)))
    )
    thread.start()
    until(lambda: place.gateway in place.calls.bells._loops, "the gateway waits")
    begun = CLOCK.monotonic()
    database.run(lambda connection: raise_generations(connection, [place.gateway]))
    place.calls.bells.ring(place.gateway)
    thread.join()
    assert CLOCK.monotonic() - begun < 20  # not at the end of its time
    assert told == [Calls(generation=known + 1)]
    assert source.ask(Ask(room=1, wait_seconds=0)) == Calls()  # who follows nothing is not told
    source.close()


def test_an_uplink_that_waits_is_closed_at_once(place: Place) -> None:
    with place.uplink():
        until(lambda: place.gateway in place.calls.bells._loops, "the gateway waits")
        begun = CLOCK.monotonic()
    assert CLOCK.monotonic() - begun < 20  # it would have waited for 25 s


def test_a_server_that_stops_does_not_wait_for_gateways_that_wait(place: Place) -> None:
    with place.uplink():
        until(lambda: place.gateway in place.calls.bells._loops, "the gateway waits")
        begun = CLOCK.monotonic()
        place.server.stop()
        assert CLOCK.monotonic() - begun < 10  # it gives requests under way 15 s


def test_answers_may_be_large_but_only_a_gateways(place: Place) -> None:
    clients = EnrolledClients(place.files)
    source = ServerCalls(clients.open, clients.serial)
    place.calls.put(place.gateway, Call(id="1", method="GET", path="/v1/status"), seconds_max=60)
    body = '"' + "x\\n" * 1_000_000 + '"'
    source.answer(Answer(id="1", status=200, body=body))
    answer = place.calls.result("1")
    assert answer is not None
    assert answer.body == body
    source.close()
    nobody = place.call("")
    assert nobody("POST", PATH_ANSWERS, b" " * 70_000).status == 413
    assert nobody("POST", PATH_ANSWERS, {"id": "1", "status": 200}).status == 401
    assert nobody("POST", PATH_ASK, {"room": 1}).status == 401
    assert len(body) < ANSWER_BODY_BYTES_MAX


def test_a_gateway_that_was_let_go_gets_no_work(place: Place) -> None:
    place.identity.gateways.revoke("gateway-a", why="stolen")
    clients = EnrolledClients(place.files)
    source = ServerCalls(clients.open, clients.serial)
    with pytest.raises(Exception, match="revoked"):
        source.ask(Ask(room=1, wait_seconds=0))
    source.close()
