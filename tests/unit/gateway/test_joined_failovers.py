"""Failovers through a real server, at whole gateways over TLS: a lost site, its return, a move in order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.errors import Outcome
from secondsite.base.units import MIB
from secondsite.cli.main import main
from secondsite.client.login import Login, save_login
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.messages.failover import RollBackFailover, StartFailover
from secondsite.model import confirmations
from secondsite.model.ids import MachineId
from secondsite.model.machines import PowerState
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.until import until

LOST, KEPT = confirmations.lost("shop"), confirmations.kept("shop")
COMMITTED = "CommitFailoverCompleted"


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    with (
        tempfile.TemporaryDirectory(prefix="gf") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


@pytest.fixture
def machine(place: Joined) -> MachineId:
    """Of A, its replica at B."""
    fabric = place.fabrics[A]
    made = fabric.add_machine("shop", {"vda": 2 * MIB})
    fabric.write(made, "vda", 65536, b"hello" * 4000)
    place.read_site(A)
    assert place.prove_through_server()["state"] == "Succeeded"
    done = place.job("POST", ITEMS, {"machine": made, "provider": A, "targetProvider": B})
    assert done["state"] == "Succeeded", done["error"]
    return made


def succeeded(job: dict[str, Any]) -> dict[str, Any]:
    assert job["state"] == "Succeeded", job["error"]
    return dict(job["output"] or {})


def shows(place: Joined, machine: MachineId, state: str) -> None:
    until(lambda: place.item(machine)["state"] == state, f"the item as {state}")


def runs_at_a(place: Joined, machine: MachineId) -> bool:
    fabric = place.fabrics[A]
    return fabric.open_source(machine).power() is PowerState.RUNNING and fabric.isolated(machine) is None


def looked_at(place: Joined, where: str) -> Any:
    """What is said before a failover of a machine whose site is gone, and what it must say."""
    seen = place.call("GET", f"{where}/unplannedFailover").json()
    assert seen["confirm"] == "shop may still run at gateway-a"
    assert seen["expectedLossSeconds"] >= 0
    assert "nobody can know" in seen["cannotBeExcluded"]
    known = {check["name"]: check for check in seen["checks"]}
    assert {"store", "point", "authority", "source", "versions"} <= set(known)
    assert known["source"]["required"] is False, "a lost site keeps no failover from beginning"
    for_a_move = place.call("GET", f"{where}/plannedFailover").json()["checks"]
    assert for_a_move[0]["name"] == "source"
    assert for_a_move[0]["required"]
    return seen


@pytest.fixture
def command(
    place: Joined, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`secondsite item` with these words, as its server's owner."""

    def run(*words: str) -> str:
        authority = (place.root / "server" / "authority.crt").read_text()
        save_login(Login(server=place.url, token=place.token, authority=authority), place.root / "client")
        monkeypatch.setenv("SECONDSITE_CLIENT", str(place.root / "client"))
        assert main(["item", *words]) == Outcome.OK, capsys.readouterr()
        return capsys.readouterr().out

    return run


def test_site_a_is_lost_b_takes_over_and_a_returns_held(
    place: Joined, machine: MachineId, command: Callable[..., str]
) -> None:
    where = f"{ITEMS}/{machine}"
    with place.client(A) as client:
        first = client.take_point("shop").number
        place.fabrics[A].write(machine, "vda", 0, b"later")
        second = client.take_point("shop").number
    place.stop(A)

    seen = looked_at(place, where)
    assert seen["recoveryPoint"] >= second
    unsaid = place.job("POST", f"{where}/unplannedFailover", {})
    assert (unsaid["state"], unsaid["error"]["code"]) == ("Failed", "failover.confirmation-missing")
    assert place.fabrics[B].recovered() == []

    said = {"confirm": seen["confirm"], "shutDown": True, "shutDownSeconds": 1}
    done = succeeded(place.job("POST", f"{where}/unplannedFailover", said))
    assert (done["kind"], done["name"], done["epoch"]) == ("Unplanned", "shop", 2)
    assert len(place.fabrics[B].recovered()) == 1
    shows(place, machine, "UnplannedFailoverCompleted")
    item = place.item(machine)
    assert item["failover"]["lossSeconds"] > 0
    assert sorted(item["allowedOperations"]) == ["cancelFailover", "changePoint", "commit"]

    unsaid_change = place.call("POST", f"{where}/applyRecoveryPoint", {"recoveryPoint": str(first)})
    assert (unsaid_change.status, unsaid_change.json()["code"]) == (409, "failover.confirmation-missing")
    turned = {"recoveryPoint": str(first), "confirm": LOST}
    assert succeeded(place.job("POST", f"{where}/applyRecoveryPoint", turned))["point"] == first
    # the server ends in the middle of it all and is started anew
    place.stop_server()
    place.start_server()
    until(lambda: place.call("GET", "/api/v1/health").status == 200, "the server")
    assert succeeded(place.job("POST", f"{where}/failoverCommit", {"confirm": KEPT}))["state"] == COMMITTED
    shows(place, machine, COMMITTED)

    place.start(A)
    held_at = "/api/v1/vaults/North/heldMachines"

    def held() -> list[Any]:
        found = place.call("GET", held_at).json()["value"]
        return [(one["provider"], one["name"], one["claimant"]) for one in found if one["isolatedAt"]]

    until(lambda: held() == [(A, "shop", B)], "the returned machine as held")
    assert not runs_at_a(place, machine)
    shows(place, machine, "CommitFailoverCompleted")
    wrong = place.call("POST", f"{where}/heldDiscard", {"confirm": "yes"})
    assert wrong.json()["action"].endswith('--confirm "what shop wrote here last is given up".')
    wrong_there = place.call("POST", f"{where}/heldDiscard", {"confirm": "yes", "provider": A}).json()
    assert wrong_there["action"] == wrong.json()["action"]
    said = {"confirm": confirmations.discarded("shop")}
    for other in (B, "gateway-of-another-vault"):
        nowhere = place.call("POST", f"{where}/heldDiscard", {**said, "provider": other})
        assert (nowhere.status, nowhere.json()["code"]) == (409, "item.not-held")
    listed = command("held", "North").splitlines()[-1].split()
    assert listed[:4] == ["shop", A, "Held", B]
    command("held-discard", "North", "shop", "--of", A, "--confirm", said["confirm"])
    assert place.call("GET", held_at).json()["value"] == []
    again = place.call("POST", f"{where}/heldDiscard", {**said, "provider": A})
    assert (again.status, again.json()["code"]) == (409, "item.not-held"), "it was decided there"
    audit = place.call("GET", "/api/v1/audit?limit=1000").json()["value"]
    assert [entry["operation"] for entry in audit].count("item.failover") == 5


def test_moved_in_order_nothing_is_lost_and_rolled_back_it_runs_where_it_was(
    place: Joined, machine: MachineId
) -> None:
    where = f"{ITEMS}/{machine}"
    place.fabrics[A].write(machine, "vda", 0, b"written last")
    seen = place.call("GET", f"{where}/plannedFailover").json()
    assert seen["confirm"] == "shop is shut down at gateway-a and moves to gateway-b"
    assert all(check["passed"] or not check["required"] for check in seen["checks"])
    done = succeeded(
        place.job("POST", f"{where}/plannedFailover", {"confirm": seen["confirm"], "seconds": 60})
    )
    assert (done["kind"], done["loss_seconds"]) == ("Planned", 0.0)
    [recovered] = place.fabrics[B].recovered()
    assert recovered.name == "shop"
    assert not runs_at_a(place, machine)
    shows(place, machine, "PlannedFailoverCompleted")
    back = succeeded(place.job("POST", f"{where}/failoverCancel", {"confirm": LOST}))
    assert back["state"] == "CancelFailoverCompleted"
    shows(place, machine, "Protected")
    until(lambda: runs_at_a(place, machine), "the source that was given back")
    assert place.fabrics[B].recovered() == []

    # made at the gateway itself while the server is away: it shows, and can be gone on with from either side
    place.stop_server()
    with FailoverClient(place.root / B / "c.sock") as client:
        asked = StartFailover(
            operation="ab" * 16, point="latest", confirm="shop may still run at gateway-a", requested_by="bob"
        )
        client.start_failover("shop", asked)
        until(lambda: client.failover("ab" * 16).state.value == "Completed", "the machine at B")
        place.start_server()
        shows(place, machine, "UnplannedFailoverCompleted")
        assert place.item(machine)["failover"]["requestedBy"] == "bob"
        client.roll_back("ab" * 16, RollBackFailover(confirm=LOST))
        shows(place, machine, "Protected")
    codes = {one["code"] for one in place.call("GET", "/api/v1/events?limit=1000").json()["value"]}
    assert {"item.failover-found", "failover.claimed", "planned.stopped"} <= codes
