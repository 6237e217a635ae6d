"""A server asks a gateway over TLS that the gateway opened: inventories come, changes are fenced."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.calls import Uplink, over_socket
from secondsite.gateway.control import ControlServices
from secondsite.gateway.controlserver import serve_control
from secondsite.gateway.enrol import NewMember, enrol
from secondsite.gateway.enrolclient import Way
from secondsite.gateway.fences import Fences
from secondsite.gateway.uplink import EnrolledClients, ServerCalls
from secondsite.server.api.services import Services
from secondsite.server.calls.service import Calls
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.identity.service import Identity
from secondsite.server.main import Server
from secondsite.server.people.roles import Grant, Role
from secondsite.transfer.calls import ANSWER_BODY_BYTES_MAX, PATH_ANSWERS, PATH_ASK, Answer, Ask, Call
from support.control import Events
from support.server import Caller, cheap_passwords, owner, tls_caller, trusting, user_with

SECONDS_MAX = 60.0
CLOCK = SystemClock()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline, never = CLOCK.monotonic() + SECONDS_MAX, threading.Event()
    while not condition():
        assert CLOCK.monotonic() < deadline, what
        CLOCK.wait(never, 0.02)


@dataclass
class Place:
    """A server, and a gateway of an imaginary site enrolled with it."""

    server: Server
    root: Path
    fabric: MemoryFabric = field(default_factory=MemoryFabric)
    gateway: str = ""  # its id

    @property
    def services(self) -> Services:
        assert self.server.services is not None
        return self.server.services

    @property
    def identity(self) -> Identity:
        assert self.services.identity is not None
        return self.services.identity

    @property
    def calls(self) -> Calls:
        assert self.services.calls is not None
        return self.services.calls

    @property
    def files(self) -> Path:
        return self.root / "gateway"

    def call(self, token: str) -> Caller:
        assert self.server.address is not None
        authority = trusting(self.root / "server" / "authority.crt")
        return tls_caller("127.0.0.1", self.server.address[1], authority, token)

    def enrol(self, vault: str = "North") -> None:
        assert self.server.address is not None
        url = f"https://127.0.0.1:{self.server.address[1]}"
        self.identity.vaults.create(vault)
        key, _ = self.identity.keys.create(vault, url=url, by="maria")
        member = NewMember("gateway-a", "Gateway A", "site a")
        self.gateway = enrol(key, member, self.files, way=Way(url), clock=CLOCK).gateway_id

    @contextlib.contextmanager
    def uplink(self) -> Iterator[Uplink]:
        clients = EnrolledClients(self.files)
        source = ServerCalls(clients.open, clients.serial)
        fences = Fences(self.root / "fences.json")
        uplink = Uplink(source, over_socket(self.root / "control.sock"), fences, CLOCK)
        uplink.start()
        try:
            yield uplink
        finally:
            uplink.close()


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    listen = Listen(host="127.0.0.1", port=0)
    config = ServerConfig(state_dir=tmp_path / "server", database=database_url, listen=listen)
    server = Server(config, passwords=cheap_passwords())
    server.start()
    made = Place(server, tmp_path)
    services = ControlServices(name="gateway-a", site="a", clock=CLOCK, events=Events(), fabric=made.fabric)
    control = serve_control(services, tmp_path / "control.sock")
    try:
        made.enrol()
        yield made
    finally:
        control.stop()
        server.stop()


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
        assert '"gateway.role-missing"' in result("1").body  # carried out: this gateway protects nothing
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
        found.extend(source.ask(Ask(room=1, wait_seconds=25)))

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: place.gateway in place.calls.bells._loops, "the gateway waits")
    begun = CLOCK.monotonic()
    place.calls.put(place.gateway, Call(id="1", method="GET", path="/v1/status"), seconds_max=60)
    thread.join()
    assert CLOCK.monotonic() - begun < 20  # not at the end of its time
    assert [call.id for call in found] == ["1"]
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
