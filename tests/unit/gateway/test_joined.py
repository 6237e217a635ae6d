"""A server's protected items at whole gateways over TLS: protected, reported, paused, alone, ended."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.until import until


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    with (
        tempfile.TemporaryDirectory(prefix="gj") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


def test_an_item_lives_from_the_server_over_both_gateways(place: Joined) -> None:
    fabric = place.fabrics[A]
    machine = fabric.add_machine("shop", {"vda": 2 * MIB, "vdb": MIB})
    fabric.write(machine, "vda", 65536, b"hello" * 4000)
    place.read_site(A)
    new = {"machine": machine, "provider": A, "targetProvider": B}
    unproved = place.job("POST", ITEMS, new)
    assert (unproved["state"], unproved["error"]["code"]) == ("Failed", "item.recovery-key-unproved")
    assert place.prove_through_server()["state"] == "Succeeded"
    with place.client(A) as client:
        assert client.recovery_key().proved_by == "somebody through the server"
    done = place.job("POST", ITEMS, new)
    assert done["state"] == "Succeeded", done["error"]
    assert place.item(machine)["state"] == "Protected"
    with place.client(A) as client:
        shown = client.protection("shop")
        assert shown.item == place.item(machine)["id"]
        assert client.take_point("shop").number > 0
    with place.client(B) as client:
        assert client.points("shop")[-1].disks == ("vda", "vdb")

    assert place.job("POST", f"{ITEMS}/{machine}/pause")["state"] == "Succeeded"
    with place.client(A) as client:
        assert client.protection("shop").state.value == "Paused"
    assert place.job("POST", f"{ITEMS}/{machine}/resume")["state"] == "Succeeded"
    assert place.job("PATCH", f"{ITEMS}/{machine}", {"leftOut": ["vdb"]})["state"] == "Succeeded"
    assert place.job("POST", f"{ITEMS}/{machine}/resync")["state"] == "Succeeded"

    # alone: also started anew, it works towards what it took, over the way the server told it of
    place.stop_server()
    place.stop(A)
    place.start(A)
    fabric.write(machine, "vda", 0, b"while the server is away")
    with place.client(A) as client:
        until(lambda: client.protection("shop").state.value == "Protected", "Protected")
        number = client.take_point("shop").number
        assert client.protection("shop").left_out == ("vdb",)
    with place.client(B) as client:
        assert client.points("shop")[-1].number >= number
        assert client.points("shop")[-1].disks == ("vda",)
    place.start_server()
    until(lambda: place.item(machine)["lastPoint"] >= number, "a report of what was done alone")

    ended = place.job("DELETE", f"{ITEMS}/{machine}?withReplica=true")
    assert ended["state"] == "Succeeded", ended["error"]
    assert fabric.open_source(machine).checkpoints() == []
    kept = [path for path in (place.root / B / "store" / "machines").rglob("*") if path.is_file()]
    # a claim by nobody: late writes of before are refused by it, whoever protects the machine next
    assert [path.parent.name for path in kept] == ["log"]
    with place.client(B) as client:
        assert (client.status().replicas, client.deletions()) == ((), [])
