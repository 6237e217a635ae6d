"""The circle through a real server, at two whole gateways over TLS: there and back, protected as at first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from secondsite.base.units import MIB
from secondsite.model import confirmations, reversals
from secondsite.model.ids import MachineId
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined
from support.joined_circle import JoinedCircle, running
from support.until import until

KEPT, REVERSED = confirmations.kept("shop"), reversals.reversed_onto("shop")


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[JoinedCircle]:
    with running(JoinedCircle, (B, A), databases, monkeypatch) as made:
        yield made


def succeeded(job: dict[str, Any]) -> dict[str, Any]:
    assert job["state"] == "Succeeded", job["error"]
    return dict(job["output"] or {})


def shows(place: Joined, machine: MachineId, state: str) -> dict[str, Any]:
    until(lambda: place.item(machine)["state"] == state, f"the item as {state}")
    return place.item(machine)


def test_there_and_back(place: JoinedCircle) -> None:
    a, b = place.circles(A), place.circles(B)
    machine = a.add_machine("shop", {"vda": 2 * MIB, "vdb": MIB})
    where = f"{ITEMS}/{machine}"
    a.write(machine, "vda", 65536, b"from the beginning" * 4000)
    place.read_site(A)
    place.prove(A)
    place.prove(B)
    succeeded(place.job("POST", ITEMS, {"machine": machine, "provider": A, "targetProvider": B}))

    moved = {"confirm": confirmations.moved("shop", A, B), "seconds": 60}
    succeeded(place.job("POST", f"{where}/plannedFailover", moved))
    succeeded(place.job("POST", f"{where}/failoverCommit", {"confirm": KEPT}))
    shows(place, machine, "CommitFailoverCompleted")
    b.write(machine, "vda", 0, b"written at b")

    seen = place.call("GET", f"{where}/reprotect").json()
    assert (seen["direction"], seen["provider"], seen["targetProvider"]) == ("RecoveryToPrimary", B, A)
    assert (seen["confirm"], seen["oldDisksBytes"]) == (REVERSED, 3 * MIB)
    unsaid = place.call("POST", f"{where}/reprotect", {})
    assert (unsaid.status, unsaid.code) == (409, "failover.confirmation-missing")
    done = succeeded(place.job("POST", f"{where}/reprotect", {"confirm": REVERSED}))
    assert done["reversed_onto"] is True
    assert done["sent_bytes"] < MIB, "only what differs travels"
    item = shows(place, machine, "Protected")
    assert (item["provider"], item["targetProvider"]) == (B, A)
    assert "failback" in item["allowedOperations"]
    assert not a.runs(machine), "off and guarded so"

    b.write(machine, "vdb", 0, b"written before it came back")
    asked = {"oldMachine": "remove-with-disks", "seconds": 60, "commit": True, "reprotect": True}
    refused = place.call("POST", f"{where}/failback", asked)
    assert (refused.status, refused.code) == (409, "item.failback-unconfirmed")
    said = [confirmations.moved("shop", B, A), KEPT, REVERSED]
    for sentence in said:
        assert sentence in refused.json()["cause"]
    succeeded(place.job("POST", f"{where}/failback", {**asked, "confirm": said}))
    item = shows(place, machine, "Protected")
    assert (item["provider"], item["targetProvider"]) == (A, B)
    assert a.runs(machine)
    assert not b.runs(machine)
    assert a.content(machine, "vda")[:12] == b"written at b"
    assert a.content(machine, "vdb").startswith(b"written before it came back")
    # and it is protected as at first: what it writes now comes to B
    points = place.item(machine)["recoveryPoints"]
    a.write(machine, "vda", 4096, b"at home again")
    succeeded(place.job("POST", f"{where}/recoveryPoints"))
    until(lambda: place.item(machine)["recoveryPoints"] > points, "a point at B")
