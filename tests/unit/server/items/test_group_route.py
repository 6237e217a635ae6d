"""Groups of operations over a real server: who may, what is refused as a whole, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.client.login import Login, save_login
from secondsite.model import confirmations, reversals
from secondsite.server.people.roles import Grant, Role
from support.databases import Databases
from support.items import ServedItems, a_machine, served_items, told_of
from support.server import Caller, owner, tls_caller, trusting, user_with
from support.until import until

ITEMS = "/api/v1/vaults/North/replicationProtectedItems"
GROUP = f"{ITEMS}/operations"
SHOP_RUNS, BUERO_RUNS = (confirmations.taken_over(name, "gateway-a") for name in ("shop", "büro"))
SHOP_GOES, BUERO_GOES = "the recovery points of shop are deleted", "the recovery points of büro are deleted"


@pytest.fixture
def place(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedItems]:
    with databases.ready("sqlite") as url, served_items(tmp_path / "server", url) as made:
        authority = (tmp_path / "server" / "authority.crt").read_text()
        login = Login(server=made.served.url, token=owner(made.services), authority=authority)
        save_login(login, tmp_path / "client.json")
        monkeypatch.setenv("SECONDSITE_CLIENT", str(tmp_path / "client.json"))
        monkeypatch.setattr("secondsite.cli.server.jobs.FOLLOW_SECONDS", 0.05)
        yield made


def caller(place: ServedItems, tmp_path: Path, token: str) -> Caller:
    address = place.served.server.address
    assert address is not None
    return tls_caller("127.0.0.1", address[1], trusting(tmp_path / "server" / "authority.crt"), token)


def protect(call: Caller, *machines: str) -> None:
    with_ends = {"provider": "gateway-a", "targetProvider": "gateway-b"}
    begun = [call("POST", ITEMS, {"machine": machine, **with_ends}) for machine in machines]
    for one in begun:
        assert one.status == 202, one.data
        ended(call, one.headers["location"])


def ended(call: Caller, location: str) -> Any:
    until(lambda: call("GET", location).json()["endedAt"] is not None, "the end of the job")
    return call("GET", location).json()


def test_what_is_asked_is_looked_at_as_a_whole_before_anything_begins(
    place: ServedItems, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = caller(place, tmp_path, owner(place.services, "maria"))
    protect(call, a_machine(1).id, a_machine(2).id)
    both = {"items": ["shop", "büro"]}
    operator = call.as_(user_with(place.services, "oskar", Grant(place.vault, Role.OPERATOR)))

    refused = operator("POST", GROUP, {"operation": "disable", **both})
    assert (refused.status, refused.code) == (403, "access.forbidden")
    for body, code in (
        ({"operation": "pause"}, "request.invalid"),
        ({"operation": "pause", "filter": {}, **both}, "request.invalid"),
        ({"operation": "pause", "items": ["nobody"]}, "item.unknown"),
        ({"operation": "pause", **both, "perItem": {"nobody": {}}}, "item.unknown"),
        ({"operation": "pause", **both, "parameters": {"force": True}}, "request.invalid"),
        (
            {"operation": "testFailoverCleanup", "filter": {}, "parameters": {"notes": "x"}},
            "item.group-empty",
        ),
    ):
        assert call("POST", GROUP, body).code == code, body
    asked = {"operation": "disable", **both, "parameters": {"withReplica": True}, "confirm": [SHOP_GOES]}
    unsaid = call("POST", GROUP, asked)
    assert (unsaid.status, unsaid.code) == (409, "item.group-unconfirmed")
    assert BUERO_GOES in unsaid.json()["happened"]
    assert SHOP_GOES not in unsaid.json()["happened"]

    # one alone, then all: the other one is left out of what is searched for, and in the way of what is named
    begun = operator("POST", GROUP, {"operation": "pause", "items": ["shop"]})
    assert (begun.status, begun.json()["kind"]) == (202, "item.group")
    assert ended(call, begun.headers["location"])["state"] == "Succeeded"
    named = operator("POST", GROUP, {"operation": "pause", **both})
    assert (named.status, named.code) == (409, "item.group-impossible")
    assert "shop: it is Paused" in named.json()["happened"]
    assert main(["item", "run", "pause", "North", "--all"]) == Outcome.OK
    shown = capsys.readouterr()
    assert "  Pause the replication of büro: 100% Completed" in shown.err.splitlines()
    assert "Pause: 1 machines: Succeeded, 100%" in shown.out
    jobs = call("GET", "/api/v1/jobs?kind=item.group").json()["value"]
    log = call("GET", f"/api/v1/jobs/{jobs[0]['id']}/log").json()["value"]
    assert "left out: shop: it is Paused" in [line["text"] for line in log]

    assert main(["item", "run", "resume", "North", "shop", "büro", "--json"]) == Outcome.OK
    tested = [
        ("run", "test-failover", "North", "shop", "büro", "--set", "network=none"),
        (
            "run",
            "clean-up",
            "North",
            "--of",
            "gateway-b",
            "--set",
            "notes=seen",
            "--set-for",
            "shop:notes=good",
        ),
    ]
    for words in tested:
        assert main(["item", *words]) == Outcome.OK, capsys.readouterr()
    learnt = place.gateways["gateway-b"].tests.known.values()
    assert {(one["network"], one["notes"]) for one in learnt} == {("none", "seen"), ("none", "good")}
    audited = call("GET", "/api/v1/audit").json()["value"]
    names = {entry["target"] for entry in audited if entry["detail"].get("kind") == "item.test-failover"}
    assert names == {"shop", "büro"}
    gone = call("POST", GROUP, {**asked, "confirm": [SHOP_GOES, BUERO_GOES]})
    assert ended(call, gone.headers["location"])["state"] == "Succeeded"
    assert not place.gateways["gateway-b"].replicas


def test_machines_are_failed_over_and_kept_together(
    place: ServedItems, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = caller(place, tmp_path, owner(place.services, "maria"))
    protect(call, a_machine(1).id, a_machine(2).id)
    both = ("North", "shop", "büro")
    there = place.gateways["gateway-b"].failovers
    there.names[a_machine(2).id] = "büro"
    reader = call.as_(user_with(place.services, "rita", Grant(place.vault, Role.READER)))
    asked = {"operation": "unplannedFailover", "items": ["shop", "büro"]}
    assert reader("POST", GROUP, asked).code == "access.forbidden"
    assert main(["item", "run", "failover", *both, "--confirm", SHOP_RUNS]) == Outcome.REFUSED
    assert BUERO_RUNS in capsys.readouterr().err
    assert not there.begun
    said = ("--confirm", SHOP_RUNS, "--confirm", BUERO_RUNS)
    begun = main(["item", "run", "failover", *both, *said, "--set-for", "shop:network=none"])
    assert begun == Outcome.OK, capsys.readouterr()
    assert {one["network"] for one in there.known.values()} == {"none", "mapped"}
    listed = call("GET", ITEMS).json()["value"]
    assert {one["state"] for one in listed} == {"UnplannedFailoverCompleted"}

    # what was said to one is not said to all, whatever the parameters hold
    sneaked = {"operation": "failoverCancel", "filter": {}, "parameters": {"confirm": "anything"}}
    assert call("POST", GROUP, sneaked).code == "item.group-unconfirmed"
    words = [word for name in ("shop", "büro") for word in ("--confirm", confirmations.kept(name))]
    assert main(["item", "run", "commit", *both, *words]) == Outcome.OK, capsys.readouterr()
    listed = call("GET", ITEMS).json()["value"]
    assert {one["state"] for one in listed} == {"CommitFailoverCompleted"}

    _go_home(place, call, capsys)


def _go_home(place: ServedItems, call: Caller, capsys: pytest.CaptureFixture[str]) -> None:
    """Protected back onto the old disks, then home: what fencing and fabric do is done by hand."""
    both = ("North", "shop", "büro")
    there = place.gateways["gateway-b"].failovers
    words = [word for name in ("shop", "büro") for word in ("--confirm", confirmations.kept(name))]
    home, machines = place.gateways["gateway-a"], (a_machine(1), a_machine(2, "büro"))
    names = home.failovers.names = home.returns.names = there.names
    assert names
    for machine in machines:
        home.returns.held[machine.id] = "Held"
        place.gateways["gateway-b"].replicas.pop(machine.id, None)  # its points go with a commit
    home.failovers.writer, home.failovers.epoch = "gateway-b", there.epoch + 2
    told_of(place, "gateway-b", *machines)
    onto = [word for name in ("shop", "büro") for word in ("--confirm", reversals.reversed_onto(name))]
    assert main(["item", "run", "reprotect", *both, *onto]) == Outcome.OK, capsys.readouterr()
    for machine in machines:  # as a site that is reversed onto does: told of later, it would turn items round
        home.protections.pop(machine.id, None)
    go_home = ("item", "run", "failback", *both, "--set", "oldMachine=remove", "--set", "commit=true")
    moves = [confirmations.moved(name, "gateway-b", "gateway-a") for name in ("shop", "büro")]
    said = [word for sentence in moves for word in ("--confirm", sentence)]
    assert main([*go_home, *said]) == Outcome.REFUSED
    refused = capsys.readouterr().err
    for name in ("shop", "büro"):
        assert confirmations.kept(name) in refused
    assert not set(moves) & set(refused.split('"'))
    home.failovers.commits_badly = 1
    code = main([*go_home, *said, *words])
    told = capsys.readouterr()
    assert code == Outcome.FAILED, told
    assert "1 of 2 could not be done" in told.out
    [job] = [one for one in call("GET", "/api/v1/jobs?kind=item.group").json()["value"] if one["error"]]
    assert main(["job", "retry", job["id"]]) == Outcome.OK
    assert ended(call, f"/api/v1/jobs/{job['id']}")["state"] == "Succeeded"
    listed = call("GET", ITEMS).json()["value"]
    assert {(one["provider"], one["state"]) for one in listed} == {("gateway-b", "CommitFailoverCompleted")}
    kinds = [one["kind"] for one in call("GET", f"/api/v1/jobs?parent={job['id']}").json()["value"]]
    assert kinds == ["item.failback"] * 2
    assert [one["oldMachine"] for one in asked_of(place, "gateway-a")] == ["remove"] * 2


def asked_of(place: ServedItems, gateway: str) -> list[dict[str, Any]]:
    """The bodies of failovers that a gateway was asked for, once each."""
    begun = [
        c for c in place.gateways[gateway].answered if c.method == "POST" and c.path.endswith("/failover")
    ]
    bodies = [json.loads(call.body) for call in begun]
    return list({one["operation"]: one for one in bodies}.values())
