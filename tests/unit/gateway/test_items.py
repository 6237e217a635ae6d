"""Standing protections through the control API of a whole gateway: pause, resume, resync, other disks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import Health, ProtectionState, ProtectionStatus
from secondsite.gateway.messages.items import ResyncRequest
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.failover import REVERSE
from secondsite.model.ids import DiskId, MachineId
from support.control import run_command
from support.gateway_pair import A, B, Pair
from support.until import until

VDB = DiskId("vdb")


@dataclass
class Site:
    """A protected machine with two disks, and both gateways."""

    pair: Pair
    fabric: MemoryFabric
    machine: MachineId
    address: tuple[str, int]
    a: Gateway

    def restart(self) -> None:
        self.a.stop()
        self.a = self.pair.start_a(self.address, self.fabric)

    def status(self) -> ProtectionStatus:
        with self.pair.client_a() as client:
            return client.protection("shop")

    def until(self, condition: Callable[[ProtectionStatus], bool], what: str) -> None:
        until(lambda: condition(self.status()), what)

    def point(self) -> int:
        with self.pair.client_a() as client:
            return client.take_point("shop").number

    def events(self) -> list[str]:
        with self.pair.client_a() as client:
            return [entry.event.code for entry in client.events()]

    def view(self, number: int) -> dict[str, bytes]:
        store = LocalStore(self.pair.root / B / "store")
        journal, keys = Journal(store, self.machine, None), KeyRing(store, self.machine, self.pair.vault)
        view = open_view(journal, number, keys, bases=lambda _: None)
        return {disk: shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()}

    def content(self) -> dict[str, bytes]:
        return {disk: self.fabric.content(self.machine, disk) for disk in ("vda", "vdb")}


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="gi") as name:  # short: sockets lie below it
        pair, fabric = Pair(Path(name)), MemoryFabric()
        machine = fabric.add_machine("shop", {"vda": 4 * MIB, "vdb": 2 * MIB})
        fabric.write(machine, "vda", 65536, b"hello" * 4000)
        address = pair.start_b()
        made = Site(pair, fabric, machine, address, pair.start_a(address, fabric))
        try:
            pair.protect("shop")
            made.until(lambda now: now.state is ProtectionState.PROTECTED, "Protected")
            yield made
        finally:
            made.a.stop()
            pair.stop_b()


def test_a_pause_is_kept_told_and_ended(site: Site) -> None:
    gateway = site.pair.root / A / "c.sock"
    said = run_command("pause", "shop", gateway=gateway)
    assert (said.code, "shop is paused by" in said.out) == (0, True), said.err
    site.until(lambda now: now.state is ProtectionState.PAUSED, "Paused")
    first = site.status()
    assert first.health is Health.WARNING
    assert first.note == f"paused by {first.paused_by}"
    with site.pair.client_a() as client:
        assert client.pause("shop", by="somebody else").paused_by == first.paused_by
    site.fabric.write(site.machine, "vdb", 4096, b"while paused" * 100)
    site.restart()
    site.until(lambda now: now.state is ProtectionState.PAUSED and now.last_point is not None, "Paused again")
    assert site.status().paused_by == first.paused_by
    known = site.status().last_point
    site.pair.protect("shop", frequency_seconds=2)  # another policy does not end it
    assert site.status().paused_by == first.paused_by
    with pytest.raises(RemoteError, match="paused by"):
        site.point()
    assert site.status().last_point == known
    assert run_command("resume", "shop", gateway=gateway).code == 0
    site.until(lambda now: now.state is ProtectionState.PROTECTED, "Protected")
    assert site.view(site.point()) == site.content()
    codes = site.events()
    assert (codes.count("item.resumed"), codes.count("item.policy-changed")) == (1, 1)
    assert "replicate.resync" not in codes


def test_everything_is_compared_once_for_a_number(site: Site) -> None:
    first = site.point()
    before = site.view(first)
    # something no tracking saw: the disk's content differs from what the target holds
    disk = site.fabric._find(site.machine).disks[DiskId("vda")]
    disk.write(MIB, b"behind everyone's back", tracked=False)
    gateway = site.pair.root / A / "c.sock"
    done = run_command("resync", "shop", "--json", gateway=gateway)
    assert (done.code, done.json["resynced"]) == (0, 1), done.err
    assert site.view(site.point()) == site.content()
    assert site.view(first) == before
    site.restart()
    with site.pair.client_a() as client:
        again = client.resync("shop", ResyncRequest(by="maria", number=1))
    assert (again.resync, again.resynced) == (1, 1)
    site.point()
    assert "replicate.resync" not in site.events()


def test_disks_are_left_out_and_taken_back_without_a_new_copy(site: Site) -> None:
    first = site.point()
    older = site.view(first)
    assert site.pair.protect("shop", left_out=(VDB,)).left_out == (VDB,)
    site.fabric.write(site.machine, "vda", 0, b"changed")
    fewer = site.point()
    assert site.view(fewer) == {"vda": site.fabric.content(site.machine, "vda")}
    site.restart()
    assert list(site.view(site.point())) == ["vda"]
    site.pair.protect("shop")
    site.fabric.write(site.machine, "vdb", 0, b"changed")
    assert site.view(site.point()) == site.content()
    assert site.view(first) == older
    assert "replicate.resync" not in site.events()
    assert "item.disks-changed" in site.events()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peer": "gateway-c"}, "There is no peer"),
        ({"left_out": (DiskId("vda"), VDB)}, "none is left"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(site: Site, change: dict[str, str], why: str) -> None:
    before = site.status()
    with pytest.raises(RemoteError, match=why):
        site.pair.protect("shop", **change)  # type: ignore[arg-type]
    assert site.status().left_out == before.left_out
    site.point()


def test_a_deletion_says_who_has_the_machine_by_the_claim_that_goes_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.pair.client_a() as client:
        client.unprotect("shop")
    journal = Journal(LocalStore(site.pair.root / B / "store"), site.machine, site.pair.vault)
    journal.claim(
        name="shop", claimant="gateway-c", reason=REVERSE, clock=SystemClock(), expected=journal.head()
    )
    monkeypatch.setattr("secondsite.gateway.recovery.deletion.QUIET_SECONDS", 0.0)
    gateway = site.pair.root / B / "c.sock"
    done = run_command("replica", "delete", "shop", "--confirm", "shop", gateway=gateway)
    assert done.code == 0, done.err
    with site.pair.client_b() as client:
        told = {entry.event.code: entry.event.text for entry in client.events()}
    for code in ("replica.deleting", "replica.deleted"):
        assert "gateway-c has shop by the claim of epoch 2" in told[code]


def test_a_replica_is_deleted_once_nobody_writes_it_and_its_name_is_spelled_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = site.pair.root / B / "c.sock"
    refused = run_command("replica", "delete", "shop", "--confirm", "shop", gateway=gateway)
    assert refused.code != 0
    assert "its source writes still" in refused.err
    with site.pair.client_a() as client:
        client.unprotect("shop")
    monkeypatch.setattr("secondsite.gateway.recovery.deletion.QUIET_SECONDS", 0.0)
    wrong = run_command("replica", "delete", "shop", "--confirm", "web", gateway=gateway)
    assert "--confirm" in wrong.err
    done = run_command("replica", "delete", "shop", "--confirm", "shop", gateway=gateway)
    assert (done.code, done.out) == (0, "the replica of shop is deleted\n"), done.err
    assert run_command("replica", "deletions", gateway=gateway).out == "No replica is being deleted.\n"
    with site.pair.client_b() as client:
        assert client.status().replicas == ()
        assert "replica.deleted" in [entry.event.code for entry in client.events()]
    site.pair.protect("shop")  # from the start, with a new first copy
    site.until(lambda now: now.state is ProtectionState.PROTECTED, "Protected")
    assert site.status().epoch == 3, "above the epoch of what was deleted, and of its deletion"
    assert site.view(site.point()) == site.content()
