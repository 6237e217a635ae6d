"""Inventories in a database: taken whole, listed by page, what is missing marked and later dropped."""

from __future__ import annotations

import uuid

import msgspec
import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Disk, Host, Machine, Network, Pool, PowerState
from secondsite.server.calls.service import GatewaySilent
from secondsite.server.database.engine import Database
from secondsite.server.inventory.service import (
    GONE_KEPT,
    Changes,
    Entry,
    Inventories,
    InventoryRefused,
    Kind,
    ObjectUnknown,
    Search,
    Told,
    parse_told,
    sort_key_of,
)


def machine(name: str, *, cpus: int = 2, identity: str | None = None) -> Machine:
    made = identity or str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    disk = Disk(id=DiskId("vda"), size_bytes=2**30, format="qcow2", location="/pool/a.qcow2")
    return Machine(
        id=MachineId(made), name=name, host="h1", power=PowerState.RUNNING, disks=(disk,), cpus=cpus
    )


def told(*machines: Machine) -> Told:
    return Told(
        hosts=(Host(name="h1", hypervisor="QEMU", memory_bytes=2**34, cpus=8),),
        machines=machines,
        networks=(Network(name="lan", active=True, isolated=False, subnets=("192.0.2.0/24",)),),
        pools=(Pool(name="images", path="/pool", active=True, capacity_bytes=9, free_bytes=4),),
    )


@pytest.fixture
def clock(database: Database) -> FakeClock:
    clock = FakeClock()
    database.clock = clock
    return clock


@pytest.fixture
def inventories(database: Database) -> Inventories:
    return Inventories(database)


def names(inventories: Inventories, text: str = "", *, gone: bool = False, limit: int = 100) -> list[str]:
    search = Search(Kind.MACHINE, ["a", "b"], name_contains=text, with_gone=gone)
    return [entry.name for entry in inventories.list(search, after=None, limit=limit)]


def test_what_is_told_is_listed_and_what_changes_counted(inventories: Inventories) -> None:
    first = told(machine("web"), machine("Datenbank"))
    assert inventories.record("a", first) == Changes(appeared=5)
    assert inventories.record("a", first) == Changes()
    assert inventories.record("b", told(machine("shop"))) == Changes(appeared=4)
    assert names(inventories) == ["Datenbank", "shop", "web"]
    assert inventories.record("a", told(machine("web", cpus=4), machine("Ü-Mail"))) == Changes(1, 1, 1)
    assert names(inventories) == ["shop", "web", "Ü-Mail"]
    found = inventories.find("a", Kind.MACHINE, machine("web").id)
    assert msgspec.json.decode(found.detail, type=Machine) == machine("web", cpus=4)


def test_search_takes_letters_as_they_are(inventories: Inventories) -> None:
    inventories.record(
        "a", told(machine("100%"), machine("100x"), machine("a_b"), machine("aXb"), machine("Ü"))
    )
    assert names(inventories, "100%") == ["100%"]
    assert names(inventories, "a_") == ["a_b"]
    assert names(inventories, "ü") == ["Ü"]
    assert names(inventories, "AXB") == ["aXb"]


def test_what_is_gone_is_marked_comes_back_and_is_dropped_in_the_end(
    inventories: Inventories, clock: FakeClock
) -> None:
    inventories.record("a", told(machine("web"), machine("old")))
    clock.advance(60)
    inventories.record("a", told(machine("web")))
    assert names(inventories) == ["web"]
    assert names(inventories, gone=True) == ["old", "web"]
    with pytest.raises(ObjectUnknown):
        inventories.find("a", Kind.MACHINE, machine("old").id)
    assert inventories.record("a", told(machine("web"), machine("old"))) == Changes(changed=1)
    assert names(inventories) == ["old", "web"]
    inventories.record("a", told(machine("web")))
    assert inventories.tidy() == 0
    clock.advance(GONE_KEPT.total_seconds() + 1)
    assert inventories.tidy() == 1
    assert names(inventories, gone=True) == ["web"]


def test_pages_follow_each_other_while_machines_come_and_go(inventories: Inventories) -> None:
    many = [machine(f"m{number:03}") for number in range(25)]
    inventories.record("a", told(*many))
    inventories.record("b", told(machine("m010", identity=str(uuid.uuid4()))))
    search = Search(Kind.MACHINE, ["a", "b"])
    seen: list[Entry] = []
    while True:
        last = seen[-1] if seen else None
        after = (sort_key_of(last.name), last.gateway, last.id) if last else None
        page = inventories.list(search, after=after, limit=10)
        if not page:
            break
        seen += page
        inventories.record("a", told(*many, machine(f"a{len(seen)}")))  # before the cursor: never shown
    assert [entry.name for entry in seen] == sorted([*(m.name for m in many), "m010"])


def test_sites_are_apart(inventories: Inventories) -> None:
    inventories.record("a", told(machine("web")))
    inventories.record("b", told(machine("web")))
    assert names(inventories) == ["web", "web"]
    inventories.forget("a")
    assert names(inventories) == ["web"]
    assert inventories.last_read("a") is None
    assert inventories.list(Search(Kind.POOL, ["b"]), after=None, limit=5)[0].name == "images"


def test_one_asks_when_it_is_due(inventories: Inventories, clock: FakeClock) -> None:
    assert inventories.due("a", seconds=300)
    assert not inventories.due("a", seconds=300)
    clock.advance(301)
    assert inventories.due("a", seconds=300)
    inventories.record("a", told())
    assert not inventories.due("a", seconds=300)


def test_a_site_that_cannot_be_read_keeps_what_it_told_and_says_why(
    inventories: Inventories, clock: FakeClock
) -> None:
    inventories.record("a", told(machine("web")))
    clock.advance(60)
    error: SecondsiteError = GatewaySilent(gateway="a", seconds=10)
    inventories.failed("a", error)
    last = inventories.last_read("a")
    assert last is not None
    assert last.read_at is not None
    assert (last.begun_at - last.read_at).total_seconds() == 60
    assert last.problem is not None
    assert last.problem["code"] == "calls.gateway-silent"
    assert names(inventories) == ["web"]
    inventories.record("a", told(machine("web")))
    last = inventories.last_read("a")
    assert last is not None
    assert last.problem is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"machines": [{"id": 1}]}',
        msgspec.json.encode(told(machine("x\0y"))).decode(),
        msgspec.json.encode(told(machine(""))).decode(),
        msgspec.json.encode(told(machine("a" * 256))).decode(),
        msgspec.json.encode(told(machine("a"), machine("a"))).decode(),
        "[" * 100_000,
    ],
)
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InventoryRefused):
        parse_told("a", text)


def test_a_machine_without_an_identity_is_refused() -> None:
    with pytest.raises((InventoryRefused, InvalidInput)):
        parse_told("a", msgspec.json.encode(told(machine("a", identity="web"))).decode())


def test_newer_gateways_may_tell_more() -> None:
    text = msgspec.json.encode(told(machine("a"))).decode()
    assert parse_told("a", text[:-1] + ',"clusters":[]}') == told(machine("a"))
