"""A server's policy at whole gateways over TLS: it waits, limits, keeps what it says, changes as they run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.units import MIB
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.until import until

POLICIES = "/api/v1/vaults/North/replicationPolicies"


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    with (
        tempfile.TemporaryDirectory(prefix="gj") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


def test_a_policy_from_the_server_to_both_gateways(place: Joined) -> None:
    machine = place.fabrics[A].add_machine("shop", {"vda": MIB})
    place.read_site(A)
    place.prove_through_server()
    hour = (SystemClock().utc().astimezone().hour + 12) % 24
    settings = {"firstCopy": {"mode": "scheduled", "at": f"{hour:02}:00"}, "retention": "latest+4"}
    gold = place.call(
        "POST", POLICIES, {"friendlyName": "Gold", "preset": "30s", "settings": settings}
    ).json()
    new = {"machine": machine, "provider": A, "targetProvider": B, "policy": "gold"}
    begun = place.call("POST", ITEMS, new)
    assert begun.status == 202, begun.data
    with place.client(A) as client:
        until(lambda: any("waits until" in one.note for one in client.status().protections), "it waits")
        client.resume("shop", by="maria")
        until(lambda: client.protection("shop").state.value == "Protected", "Protected")
        assert client.protection("shop").copy_frequency_seconds == 30
    job = begun.headers["location"]
    until(lambda: place.call("GET", job).json()["state"] == "Succeeded", "the end of the job")
    with place.client(B) as client:
        assert client.retention(machine).source == "the server's policy Gold"
        assert client.retention(machine).policy == "one every 1 h for 4 h"

    a = place.gateways[A]
    assert a.protections is not None
    assert a.parts is not None
    limits = a.parts.limits
    running = a.protections.handles.running[machine]
    window = {"from": "00:00", "until": "00:00", "bytesPerSecond": 1_000_000}
    change = {"settings": {"bandwidth": [window], "retention": "latest+9", "copyFrequencySeconds": 60}}
    changed = place.call("PATCH", f"{POLICIES}/Gold", change).json()
    assert (changed["revision"], changed["protectedItems"]) == (2, 1)
    until(lambda: limits.rate(machine) == 1e6, "the limit")
    with place.client(A) as client:
        assert client.protection("shop").copy_frequency_seconds == 60
        assert client.protection("shop").epoch == 1
    with place.client(B) as client:
        until(lambda: client.retention(machine).policy == "one every 1 h for 9 h", "the retention")
    assert a.protections.handles.running[machine] is running, "nothing was begun anew"
    refused = place.call("DELETE", f"{POLICIES}/{gold['id']}")
    assert refused.code == "policy.in-use"
    assert "1 item uses it" in refused.json()["happened"]
