"""A recovery point as a job: asked of the gateway by a step that no thread waits in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.gateway.messages.gateway import ProtectRequest
from secondsite.model.ids import MachineId
from secondsite.server.jobs.worker import Worker, WorkerSettings
from secondsite.server.operations import asking
from support.control import Protections
from support.enrolled import CLOCK, Place, enrolled_place
from support.server import Caller, owner
from support.until import until

SITE = "/api/v1/vaults/North/recoveryServicesProviders/gateway-a"


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    with enrolled_place(database_url, tmp_path) as made:
        yield made


def known_machine(place: Place, call: Caller, *, protected: bool = True) -> MachineId:
    """A machine the server has read of, under protection at its gateway."""
    machine = place.fabric.add_machine("shop", {"vda": 1 << 20})
    place.protections.names[machine] = "shop"
    if protected:
        request: dict[str, Any] = {"peer": "b", "nonce": "aa", "proof": "bb", "key_file": None}
        place.protections.protect(machine, ProtectRequest(**request))
    with place.uplink():
        assert call("POST", f"{SITE}/inventory").status == 200
    return machine


def ended(call: Caller, location: str) -> Any:
    until(lambda: call("GET", location).json()["endedAt"] is not None, "the job's end")
    return call("GET", location).json()


def test_a_point_is_taken_by_a_job(place: Place) -> None:
    call = place.call(owner(place.services))
    machine = known_machine(place, call)
    begun = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
    assert (begun.status, begun.json()["title"]) == (202, "Take a recovery point of shop")
    with place.uplink():
        job = ended(call, begun.headers["location"])
    assert (job["state"], job["error"]) == ("Succeeded", None)
    assert (job["output"]["number"], job["output"]["consistency"]) == (3, "ApplicationConsistent")
    log = call("GET", begun.headers["location"] + "/log").json()["value"]
    assert any("point 3 of" in line["text"] for line in log)
    audit = call("GET", "/api/v1/audit?operation=point.take").json()["value"]
    assert [(row["actor"], row["target"]) for row in audit] == [("olga", "gateway-a")]


def test_a_job_waits_for_a_gateway_that_is_away_and_the_machine_is_its_own(place: Place) -> None:
    call = place.call(owner(place.services))
    machine = known_machine(place, call)
    begun = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
    location = begun.headers["location"]
    until(lambda: call("GET", location).json()["note"] == "waits for gateway gateway-a", "the wait")
    second = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
    assert (second.status, second.code) == (409, "job.locked")
    with place.uplink():
        assert ended(call, location)["state"] == "Succeeded"
        third = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
        assert ended(call, third.headers["location"])["state"] == "Succeeded"


def test_what_the_gateway_refuses_is_the_jobs_error(place: Place) -> None:
    call = place.call(owner(place.services))
    machine = known_machine(place, call, protected=False)
    begun = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
    with place.uplink():
        job = ended(call, begun.headers["location"])
    assert job["state"] == "Failed"
    assert "shop" in job["error"]["happened"] or machine in job["error"]["happened"]
    assert job["error"]["action"]


def test_a_gateway_that_fails_for_the_moment_is_asked_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = place.call(owner(place.services))
    machine = known_machine(place, call)
    original, tries = Protections.take_point, []

    def take_point(self: Protections, machine: MachineId, *, seconds_max: float) -> object:
        tries.append(machine)
        if len(tries) < 3:
            from secondsite.gateway.source.wishes import PointNotTaken

            raise PointNotTaken(machine=machine, seconds=1.0, why="it is busy")
        return original(self, machine, seconds_max=seconds_max)

    monkeypatch.setattr(Protections, "take_point", take_point)
    begun = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
    with place.uplink():
        assert ended(call, begun.headers["location"])["state"] == "Succeeded"
    assert len(tries) == 3


def test_an_answer_wakes_its_job(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the job nor the worker that is to carry it on comes by of itself."""
    monkeypatch.setattr(asking, "LOOK_SECONDS", 3600.0)
    call = place.call(owner(place.services))
    machine = known_machine(place, call)
    place.server._worker.stop()
    seldom = WorkerSettings(poll_seconds=3600.0)
    place.server._worker = Worker(place.services.database, place.server._jobs, seldom)
    place.server._worker.start()
    with place.uplink():
        begun = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
        assert ended(call, begun.headers["location"])["state"] == "Succeeded"


def test_a_machine_nobody_told_of_is_unknown(place: Place) -> None:
    call = place.call(owner(place.services))
    unknown = f"{SITE}/machines/00000000-0000-4000-8000-000000000000/recoveryPoints"
    assert call("POST", unknown).code == "inventory.unknown"


def test_the_server_may_stop_while_a_job_waits(place: Place) -> None:
    call = place.call(owner(place.services))
    machine = known_machine(place, call)
    begun = call("POST", f"{SITE}/machines/{machine}/recoveryPoints")
    until(lambda: call("GET", begun.headers["location"]).json()["note"] is not None, "the wait")
    started = CLOCK.monotonic()
    place.server.stop()
    assert CLOCK.monotonic() - started < 15
    assert threading.active_count() < 100
