"""A machine that was taken over, and is protected no more, protected anew: which of its copies may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from secondsite.base.units import MIB
from secondsite.model import confirmations
from secondsite.model.ids import MachineId
from support.databases import Databases
from support.joined import ITEMS, A, B
from support.joined_circle import JoinedCircle, running
from support.until import until

KEPT = confirmations.kept("shop")


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[JoinedCircle]:
    with running(JoinedCircle, (B, A), databases, monkeypatch) as made:
        yield made


@pytest.fixture
def machine(place: JoinedCircle) -> MachineId:
    """It runs at B by a committed failover, is held at A, and protected by nobody any more."""
    made = place.circles(A).add_machine("shop", {"vda": 2 * MIB})
    place.circles(A).write(made, "vda", 65536, b"hello" * 4000)
    place.read_site(A)
    place.prove(A)
    place.prove(B)
    succeeded(protect(place, made, A, B))
    where = f"{ITEMS}/{made}"
    confirm = {"confirm": confirmations.taken_over("shop", A)}
    succeeded(place.job("POST", f"{where}/unplannedFailover", confirm))
    succeeded(place.job("POST", f"{where}/failoverCommit", {"confirm": KEPT}))
    until(lambda: "heldRelease" in place.item(made)["allowedOperations"], "the old copy as held")
    until(lambda: place.item(made)["state"] == "CommitFailoverCompleted", "the commit")
    succeeded(place.job("DELETE", f"{where}?withReplica=false"))
    return made


def protect(place: JoinedCircle, machine: MachineId, source: str, target: str) -> dict[str, Any]:
    return place.job("POST", ITEMS, {"machine": machine, "provider": source, "targetProvider": target})


def succeeded(job: dict[str, Any]) -> None:
    assert job["state"] == "Succeeded", job["error"]


def refused(job: dict[str, Any], said: str) -> None:
    assert (job["state"], job["error"]["code"]) == ("Failed", "item.machine-held"), job
    assert said in job["error"]["happened"]


def test_the_copy_that_lost_it_is_protected_once_it_counts_again(
    place: JoinedCircle, machine: MachineId
) -> None:
    """Its first copy would never begin: a person is told at once, and what to do about it."""
    where = f"{ITEMS}/{machine}"
    refused(protect(place, machine, A, B), "it is held there since gateway-b took it over in epoch 2")
    assert place.item(machine)["state"] == "Unprotected"

    said = {"confirm": confirmations.released("shop", B)}
    succeeded(place.job("POST", f"{where}/heldRelease", said))
    refused(protect(place, machine, A, B), "gateway-b is its writer since epoch 2")
    assert place.item(machine)["state"] == "Unprotected"
    # nothing was taken back that was there before: the claim of who has it still stands
    refused(protect(place, machine, A, B), "gateway-b is its writer since epoch 2")

    place.circles(B).isolate(machine, why="a person removes it", autostart=False)
    place.circles(B).remove_machine(machine, disks=True)
    with place.client(B) as client:
        client.delete_replica(str(machine), confirm="shop", by="ann")
    succeeded(protect(place, machine, A, B))
    points = place.item(machine)["recoveryPoints"]
    until(lambda: place.item(machine)["recoveryPoints"] > points, "another point")
    assert place.item(machine)["state"] == "Protected", "the failover of before leads it nowhere"


def test_the_copy_that_runs_is_protected_like_any_other(place: JoinedCircle, machine: MachineId) -> None:
    place.read_site(B)
    succeeded(protect(place, machine, B, A))
    item = place.item(machine)
    assert (item["provider"], item["targetProvider"], item["state"]) == (B, A, "Protected")
    held = place.call("GET", "/api/v1/vaults/North/heldMachines").json()["value"]
    assert [(one["provider"], one["name"]) for one in held] == [(A, "shop")], "for a person to decide still"
