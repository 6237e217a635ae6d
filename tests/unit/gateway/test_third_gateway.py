"""Back to new hardware through a real server: a third gateway takes the machine, and the lost one comes back.

A is gone with its gateway, B took the machine over; it is protected to C, moved there, and protected from
there onto the disks it left at B. Whenever A returns meanwhile, as it was when it was lost, it is held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.files import replace_file
from secondsite.base.units import MIB
from secondsite.gateway.control.failoverclient import FailoverClient
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.model import confirmations, reversals
from secondsite.model.failover import FAILOVER, REVERSE, HeldState
from secondsite.model.ids import MachineId
from secondsite.model.points import Claim
from support.databases import Databases
from support.joined import ITEMS, A, B, free_port
from support.joined_circle import JoinedCircle, running
from support.until import until

C = "gateway-c"
KEPT, REVERSED = confirmations.kept("shop"), reversals.reversed_onto("shop")


class ThreePlaces(JoinedCircle):
    """Each of three gateways is a source and a target."""

    def enrol(self) -> None:
        super().enrol()
        assert self.server is not None
        assert self.server.services is not None
        assert self.server.services.identity is not None
        home = self.root / C
        home.mkdir()
        self.vault.save(home / "vault.key")
        key, _ = self.server.services.identity.keys.create("North", url=self.url, by="maria")
        enrol(key, NewMember(C, C, "site c"), home / "tls", way=Way(self.url), clock=SystemClock())
        replace_file(home / "gateway.toml", self._config(C, free_port()).encode())

    def _config(self, name: str, port: int) -> str:
        if name != C:
            return super()._config(name, port)
        return super()._config(A, port).replace(A, C).replace('"site a"', '"site c"')

    def claim(self, name: str, machine: MachineId) -> Claim | None:
        """In force in a gateway's store."""
        return Journal(LocalStore(self.root / name / "store"), machine, self.vault).head().claim

    def lose(self, name: str) -> None:
        """With its gateway; what it had on its disks then is kept to return with."""
        self.stop(name)
        shutil.copytree(self.root / name, self.root / f"{name}-as-it-was")

    def returns_and_is_held(self, name: str, machine: MachineId) -> None:
        """As it was when it was lost, running, for a while; then it is away again."""
        for part in ("state", "cache"):
            shutil.rmtree(self.root / name / part)
            shutil.copytree(self.root / f"{name}-as-it-was" / part, self.root / name / part)
        fabric = self.circles(name)
        fabric.lift_isolation(machine, run=True)
        assert fabric.runs(machine)
        epochs = {place: self._epoch(place, machine) for place in (B, C)}
        self.start(name)
        with FailoverClient(self.root / name / "c.sock") as client:

            def isolated() -> bool:
                found = [one for one in client.held() if one.machine == machine]
                return [(one.state, one.isolated_at is not None) for one in found] == [(HeldState.HELD, True)]

            until(isolated, f"{name} holds its machine")
        assert not fabric.runs(machine)
        assert {place: self._epoch(place, machine) for place in (B, C)} == epochs
        self.stop(name)

    def _epoch(self, name: str, machine: MachineId) -> tuple[int, str]:
        found = self.claim(name, machine)
        return (found.epoch, found.claimant) if found is not None else (0, "")


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreePlaces]:
    with running(ThreePlaces, (B, C, A), databases, monkeypatch) as made:
        yield made


def succeeded(job: dict[str, Any]) -> dict[str, Any]:
    assert job["state"] == "Succeeded", job["error"]
    return dict(job["output"] or {})


def shows(place: ThreePlaces, machine: MachineId, state: str) -> dict[str, Any]:
    until(lambda: place.item(machine)["state"] == state, f"the item as {state}")
    return place.item(machine)


def taken_over_at_b(place: ThreePlaces) -> MachineId:
    """A is lost while the machine is protected to B, which takes it over and commits."""
    machine = place.circles(A).add_machine("shop", {"vda": 2 * MIB, "vdb": MIB})
    place.circles(A).write(machine, "vda", 65536, b"from the beginning" * 4000)
    place.read_site(A)
    for name in (A, B, C):
        place.prove(name)
    succeeded(place.job("POST", ITEMS, {"machine": machine, "provider": A, "targetProvider": B}))
    shows(place, machine, "Protected")
    place.lose(A)
    where = f"{ITEMS}/{machine}"
    said = {"confirm": confirmations.taken_over("shop", A)}
    succeeded(place.job("POST", f"{where}/unplannedFailover", said))
    succeeded(place.job("POST", f"{where}/failoverCommit", {"confirm": KEPT}))
    shows(place, machine, "CommitFailoverCompleted")
    place.circles(B).write(machine, "vda", 0, b"written at b")
    return machine


def protected_to_c(place: ThreePlaces, machine: MachineId) -> None:
    place.read_site(C)
    where = f"{ITEMS}/{machine}"
    succeeded(place.job("POST", f"{where}/reprotect", {"targetProvider": C}))
    shows(place, machine, "Protected")


def test_what_it_left_is_removed_and_it_is_protected_there_from_anew(place: ThreePlaces) -> None:
    machine = taken_over_at_b(place)
    protected_to_c(place, machine)
    where, b, c = f"{ITEMS}/{machine}", place.circles(B), place.circles(C)
    said = [confirmations.moved("shop", B, C), KEPT, confirmations.discarded("shop", "machine-and-disks")]
    asked: dict[str, object] = {"oldMachine": None, "seconds": 60, "commit": True, "confirm": said}
    asked |= {"recoveryMachine": "machine-and-disks", "reprotect": True}
    succeeded(place.job("POST", f"{where}/failback", asked))
    item = shows(place, machine, "Protected")
    assert (item["provider"], item["targetProvider"]) == (C, B)
    assert machine not in {one.id for one in b.machines()}
    assert c.runs(machine)
    place.returns_and_is_held(A, machine)


def test_failed_back_to_a_third_gateway_and_the_lost_one_is_held_whenever_it_returns(
    place: ThreePlaces,
) -> None:
    machine = taken_over_at_b(place)
    where, b, c = f"{ITEMS}/{machine}", place.circles(B), place.circles(C)
    place.returns_and_is_held(A, machine)

    place.read_site(C)
    seen = place.call("GET", f"{where}/reprotect?targetProvider={C}").json()
    assert (seen["direction"], seen["provider"], seen["targetProvider"]) == ("RecoveryToPrimary", B, C)
    assert (seen["oldDisksBytes"], seen["confirm"], seen["checks"]) == (None, "", []), "nothing to overwrite"
    done = succeeded(place.job("POST", f"{where}/reprotect", {"targetProvider": C}))
    assert done["reversed_onto"] is False
    item = shows(place, machine, "Protected")
    assert (item["provider"], item["targetProvider"]) == (B, C)
    at_b, at_c = place.claim(B, machine), place.claim(C, machine)
    assert at_b is not None
    assert at_c is not None
    assert (at_b.reason, at_b.claimant) == (FAILOVER, B), "the claim that holds A stays"
    assert at_c.epoch > at_b.epoch
    with FailoverClient(place.root / B / "c.sock") as client:
        assert [str(one.kept and one.kept.value) for one in client.failovers()] == ["Retired"]
    place.returns_and_is_held(A, machine)

    b.write(machine, "vdb", 0, b"written before it moved on")
    moved = [confirmations.moved("shop", B, C), KEPT]
    asked = {"oldMachine": None, "seconds": 60, "commit": True, "confirm": moved}
    succeeded(place.job("POST", f"{where}/failback", asked))
    shows(place, machine, "CommitFailoverCompleted")
    assert c.runs(machine)
    assert not b.runs(machine)
    assert c.content(machine, "vda")[:12] == b"written at b"
    assert c.content(machine, "vdb").startswith(b"written before it moved on")
    place.returns_and_is_held(A, machine)

    c.write(machine, "vda", 4096, b"at its new home")
    seen = place.call("GET", f"{where}/reprotect").json()
    assert (seen["direction"], seen["provider"], seen["targetProvider"]) == ("PrimaryToRecovery", C, B)
    done = succeeded(place.job("POST", f"{where}/reprotect", {"confirm": REVERSED}))
    assert (done["reversed_onto"], done["sent_bytes"] < MIB) == (True, True), "only what differs travels"
    item = shows(place, machine, "Protected")
    assert (item["provider"], item["targetProvider"]) == (C, B)
    assert "failback" not in item["allowedOperations"], "this is its home now"
    last = place.claim(B, machine)
    assert last is not None
    assert (last.reason, last.claimant) == (REVERSE, C)
    assert last.epoch > at_c.epoch
    place.returns_and_is_held(A, machine)
    c.write(machine, "vda", 8192, b"and written on")
    points = place.item(machine)["recoveryPoints"]
    succeeded(place.job("POST", f"{where}/recoveryPoints"))
    until(lambda: place.item(machine)["recoveryPoints"] > points, "a point at B")
    assert c.runs(machine)
