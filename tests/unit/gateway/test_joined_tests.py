"""Test failovers through a real server, at whole gateways over TLS: points, a boot, a restart, a clean-up."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.messages.testfailover import CleanUp, StartTestFailover, TestFailoverStatus
from secondsite.gateway.recovery.testrunner import TestRunner
from secondsite.model import recovered
from secondsite.model.ids import MachineId
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.until import until


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    with (
        tempfile.TemporaryDirectory(prefix="gt") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


def protected(place: Joined) -> MachineId:
    """A machine, its replica at B."""
    fabric = place.fabrics[A]
    machine = fabric.add_machine("shop", {"vda": 2 * MIB})
    fabric.write(machine, "vda", 65536, b"hello" * 4000)
    place.read_site(A)
    assert place.prove_through_server()["state"] == "Succeeded"
    done = place.job("POST", ITEMS, {"machine": machine, "provider": A, "targetProvider": B})
    assert done["state"] == "Succeeded", done["error"]
    return machine


def test_a_machine_is_booted_from_a_chosen_point_and_cleaned_up(place: Joined) -> None:
    machine = protected(place)
    fabric, where = place.fabrics[A], f"{ITEMS}/{machine}"
    with place.client(A) as client:
        first = client.take_point("shop").number
        fabric.write(machine, "vda", 0, b"later")
        second = client.take_point("shop").number
    page = place.call("GET", f"{where}/recoveryPoints?limit=1").json()
    assert page["value"][0]["number"] >= second
    numbers = []
    while page["nextLink"]:
        page = place.call("GET", page["nextLink"]).json()
        numbers += [point["number"] for point in page["value"]]
    assert first in numbers
    assert numbers == sorted(numbers, reverse=True)

    for body, code in (
        ({"recoveryPoint": "999999"}, "point.not-found"),
        ({"network": "nowhere"}, "test-failover.prerequisites"),
    ):
        refused = place.job("POST", f"{where}/testFailover", body)
        assert (refused["state"], refused["error"]["code"]) == ("Failed", code)
    assert place.fabrics[B].recovered() == []

    chosen = {"recoveryPoint": str(first), "name": "shop-look"}
    begun = place.job("POST", f"{where}/testFailover", chosen)
    assert begun["state"] == "Succeeded", begun["error"]
    said = begun["output"]
    assert (said["point"], said["name"], said["network"]) == (first, "shop-look", "isolated")
    assert said["booted_seconds"] >= 0
    [recovered] = place.fabrics[B].recovered()
    assert recovered.name == "shop-look"
    standing = {"state": "Completed", "name": "shop-look"}
    # a report that was on its way may say for a moment what was before
    until(lambda: place.item(machine)["testFailover"] == standing, "the item shows its test")
    again = place.call("POST", f"{where}/testFailover", {})
    assert (again.status, again.json()["code"]) == (409, "item.operation-not-allowed")

    # the gateway is started anew while the test stands: it is still known, still shown, and can be removed
    place.stop(B)
    place.start(B)
    unwritten = place.call("POST", f"{where}/testFailoverCleanup", {"notes": ""})
    assert unwritten.status == 400
    cleaned = place.job("POST", f"{where}/testFailoverCleanup", {"notes": "it boots"})
    assert cleaned["state"] == "Succeeded", cleaned["error"]
    assert place.fabrics[B].recovered() == []
    assert place.item(machine)["testFailover"] is None
    with place.client(B) as client:
        [kept] = client.test_failovers()
        assert (kept.notes, kept.state.value, kept.id) == ("it boots", "CleanupCompleted", said["operation"])

        # what people start at the gateway itself is shown too, and can be cleaned up from here
        client.start_test_failover("shop", StartTestFailover(point="latest", network="none"))
        until(lambda: (place.item(machine)["testFailover"] or {}).get("state") == "Completed", "a report")
        by_server = place.job("POST", f"{where}/testFailoverCleanup", {"notes": "by the server"})
        assert by_server["state"] == "Succeeded", by_server["error"]
        client.start_test_failover("shop", StartTestFailover(point="latest", network="none"))
        until(lambda: (place.item(machine)["testFailover"] or {}).get("state") == "Completed", "a report")
        client.clean_up("shop", CleanUp(notes="by hand"))
        until(lambda: place.item(machine)["testFailover"] is None, "a report of its end")

    audit = place.call("GET", "/api/v1/audit?limit=1000").json()
    assert [entry["operation"] for entry in audit["value"]].count("item.test") == 5


class Dying:
    """A function whose thread ends in it, as that of a killed gateway; the first time only."""

    def __init__(self, whole: Callable[..., Any]) -> None:
        self.whole, self.died = whole, False

    def __get__(self, runner: object, _kind: type) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if self.died:
                return self.whole(runner, *given)
            self.died = True
            raise SystemExit

        return call


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is how it ends
def test_a_gateway_that_ends_in_the_middle_leaves_nothing_and_the_job_says_so(
    place: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = protected(place)
    where = f"{ITEMS}/{machine}"
    starting, removing = Dying(MemoryFabric.start_recovered), Dying(TestRunner._remove)

    monkeypatch.setattr(MemoryFabric, "start_recovered", starting)
    begun = place.call("POST", f"{where}/testFailover", {})
    job = begun.headers["location"]
    until(lambda: starting.died, "the boot")
    place.stop(B)
    place.start(B)
    until(lambda: place.call("GET", job).json()["state"] in {"Failed", "Succeeded"}, "an end")
    failed = place.call("GET", job).json()
    assert (failed["state"], failed["error"]["code"]) == ("Failed", "test-failover.interrupted")
    assert [net for net in place.fabrics[B].networks() if net.isolated] == []
    again = place.job("POST", f"{job}/retry")
    assert again["state"] == "Succeeded", again["error"]
    assert len(place.fabrics[B].recovered()) == 1

    monkeypatch.setattr(TestRunner, "_remove", removing)
    begun = place.call("POST", f"{where}/testFailoverCleanup", {"notes": "fine"})
    until(lambda: removing.died, "the removal")
    place.stop(B)
    place.start(B)
    job = begun.headers["location"]
    until(lambda: place.call("GET", job).json()["state"] in {"Failed", "Succeeded"}, "an end")
    assert place.call("GET", job).json()["state"] == "Succeeded"
    assert place.fabrics[B].recovered() == []
    with place.client(B) as client:
        assert client.exports("shop") == []
        states = [one.state.value for one in client.test_failovers()]
    assert states == ["Failed", "CleanupCompleted"]


def test_what_is_set_for_a_machine_and_direction_is_what_the_test_machine_has(place: Joined) -> None:
    machine = protected(place)
    where = f"{ITEMS}/{machine}"
    settings = f"{where}/recoveredMachine"
    assert place.call("GET", settings).json() == {"forward": None, "reverse": None, "leftBehind": ""}
    forward = {
        "name": "shop-b",
        "memoryBytes": 256 * MIB,
        "nics": [{"nic": "1", "addressing": "static", "addresses": ["192.0.2.7/24"], "network": "default"}],
        "injection": "cloud-init",
    }
    bodies: tuple[object, ...] = (
        {"memoryBytes": 1},
        {"nmae": "x"},
        {**forward, "injection": "none"},
        {**forward, "nics": [{"nic": "1", "network": "lan\u0000"}]},
        [],
    )
    for bad in bodies:
        refused = place.call("PUT", f"{settings}/forward", bad)
        assert refused.status == 400, refused.data
    assert place.call("PUT", f"{settings}/sideways", forward).status == 400
    assert place.call("GET", settings).json()["forward"] is None
    kept = place.call("PUT", f"{settings}/forward", forward).json()
    assert kept["forward"]["settings"] == forward
    assert "adapter 1" in kept["leftBehind"]
    back = {"nics": [{"nic": "1", "addressing": "dhcp"}], "injection": "cloud-init"}
    assert place.call("PUT", f"{settings}/reverse", back).json()["leftBehind"] == ""

    begun = place.job("POST", f"{where}/testFailover", {"network": "mapped"})
    assert begun["state"] == "Succeeded", begun["error"]
    fabric = place.fabrics[B]
    [made] = fabric.recovered()
    assert made.name == "shop-b-test"
    assert json.loads(recovered.encode(fabric.recovered_spec(made).settings)) == forward
    with place.client(B) as client:
        until(lambda: _injection(client.test_failovers()[-1]) == "Applied", "the addresses in the guest")
        again_there = client.apply_settings(client.test_failovers()[-1].id)
        assert again_there.state.value == "Waiting"
        until(lambda: _injection(client.test_failovers()[-1]) == "Applied", "the same once more")
    assert place.job("POST", f"{where}/testFailoverCleanup", {"notes": "-"})["state"] == "Succeeded"

    # given with the test, only that counts; what the site lacks is a prerequisite
    other = {"network": "mapped", "settings": {"memoryBytes": 1 << 40}}
    refused_job = place.job("POST", f"{where}/testFailover", other)
    assert refused_job["error"]["code"] == "test-failover.prerequisites"
    assert "this host has 1 GiB" in refused_job["error"]["happened"]
    for _ in range(2):
        cleared = place.call("DELETE", f"{settings}/forward").json()
    assert cleared["forward"] is None
    assert cleared["reverse"]["settings"] == back
    again = place.job("POST", f"{where}/testFailover", {})
    assert again["state"] == "Succeeded", again["error"]
    [made] = fabric.recovered()
    assert made.name == "shop-test"
    noted = [row["detail"] for row in place.call("GET", "/api/v1/audit?limit=100").json()["value"]]
    told = [detail for detail in noted if "settings" in detail]
    assert {"settings": "forward", "set": "injection, memory_bytes, name, nics"} in told
    assert {"settings": "forward", "cleared": True} in told
    assert sum("cleared" in detail for detail in told) == 1


def _injection(status: TestFailoverStatus) -> str:
    return status.injection.state.value if status.injection is not None else ""
