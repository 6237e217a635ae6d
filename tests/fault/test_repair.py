"""What a target lost is sent again by its source: two whole gateways, real damage, the real scrub."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import KIB, MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import ProtectionState
from secondsite.gateway.messages.verdicts import VerificationReport, VerificationState, VerifyRequest
from secondsite.gateway.target.views import open_point_view
from secondsite.journal.chain import Journal
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import MachineId
from support.gateway_pair import B, Pair
from support.until import until

pytestmark = pytest.mark.fault

SIZES = {"vda": 8 * MIB, "vdb": 4 * MIB}


class Sites:
    """A protected machine over the memory fabric, a target with bases."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.chance = random.Random(3)
        self.fabric = MemoryFabric()
        self.machine: MachineId = self.fabric.add_machine("shop", SIZES)
        for disk, size in SIZES.items():
            self.fabric.write(self.machine, disk, 0, self.chance.randbytes(size // 2))
        self.a: Gateway = pair.start_a(pair.start_b(), self.fabric)
        pair.protect("shop")
        with pair.client_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")
        self.store = pair.root / B / "store"
        until(lambda: bool(self.journal.state().promoted), "the base")

    @property
    def journal(self) -> Journal:
        return Journal(LocalStore(self.store), self.machine, self.pair.vault)

    def take_point(self) -> int:
        with self.pair.client_a() as client:
            return client.take_point("shop").number

    def write(self, disk: str, offset: int, length: int) -> int:
        """Change the disk; the point that holds it."""
        self.fabric.write(self.machine, disk, offset, self.chance.randbytes(length))
        return self.take_point()

    def verify(self) -> VerificationReport:
        with self.pair.client_b() as client:
            status = client.verify("shop", VerifyRequest(requested_by="the test"))
            while status.state is VerificationState.RUNNING:
                status = client.verification("shop")
        assert status.state is VerificationState.COMPLETED, status
        assert status.report is not None
        return status.report

    def events(self, site: str) -> list[str]:
        with self.pair.client_a() if site == "a" else self.pair.client_b() as client:
            return [entry.event.code for entry in client.events()]

    def flip_segment(self, number: int, position: int) -> None:
        ref = self.journal.point(number).segments[0]
        flip(self.store / self.journal.segment_name(ref), position)

    def remove_segment(self, number: int) -> None:
        (self.store / self.journal.segment_name(self.journal.point(number).segments[0])).unlink()

    def flip_base(self, disk: str, position: int) -> None:
        [base] = [base for base in self.journal.state().bases if base.disk == disk]
        flip(Path(base.locator), position)

    def reads_right(self, number: int) -> bool:
        with open_point_view(self.journal, number, self.pair.vault) as view:
            found = {disk: shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()}
        return found == {disk: self.fabric.content(self.machine, disk) for disk in SIZES}


def flip(path: Path, position: int) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x20]))
    path.chmod(mode)


@pytest.fixture
def sites() -> Iterator[Sites]:
    with tempfile.TemporaryDirectory(prefix="rp") as name:  # short: sockets lie below it
        pair = Pair(Path(name), bases=True)
        made = Sites(pair)
        try:
            yield made
        finally:
            made.a.stop()
            pair.stop_b()


def test_a_damaged_segment_and_a_damaged_base_are_sent_again(sites: Sites) -> None:
    hurt = sites.write("vda", 128 * KIB, 256 * KIB)
    after = sites.write("vdb", 64 * KIB, 4 * KIB)
    before = [point.number for point in sites.journal.points() if point.number < hurt]
    sites.flip_segment(hurt, 5000)
    sites.flip_base("vdb", 1 * MIB + 77)
    report = sites.verify()
    kinds = {damaged.kind: damaged for damaged in report.damaged}
    assert set(kinds) == {"segment", "base"}
    assert min(kinds["segment"].points) == hurt
    assert after in kinds["segment"].points
    # the base is beneath them all
    assert set(kinds["base"].points) >= {*before, hurt, after}
    assert {found.disk for found in report.missing} == {"vda", "vdb"}
    assert "repair.asked" in sites.events("b")
    until(lambda: "repair.done" in sites.events("b"), "the repair")
    assert "repair.sent" in sites.events("a")
    newest = sites.take_point()
    assert sites.reads_right(newest)
    again = sites.verify()
    assert newest in again.proved
    assert not again.missing
    assert set(again.lost) >= {*before, hurt, after}
    # what is lost stays lost, and nothing that came after the repair is
    assert max(again.lost) < min(again.proved)


def test_a_segment_that_is_gone_costs_its_points_until_everything_it_may_have_held_came_again(
    sites: Sites,
) -> None:
    hurt = sites.write("vda", 512 * KIB, 64 * KIB)
    sites.remove_segment(hurt)
    report = sites.verify()
    assert hurt in report.lost
    until(lambda: "repair.done" in sites.events("b"), "the repair")
    newest = sites.take_point()
    assert sites.reads_right(newest)
    again = sites.verify()
    assert newest in again.proved
    assert hurt in again.lost


def test_what_is_missing_is_asked_for_again_after_the_target_was_restarted(sites: Sites) -> None:
    hurt = sites.write("vda", 512 * KIB, 64 * KIB)
    sites.a.stop()
    sites.flip_segment(hurt, 2000)
    report = sites.verify()
    assert report.missing
    sites.pair.stop_b()
    address = sites.pair.start_b()
    sites.a = sites.pair.start_a(address, sites.fabric)
    until(lambda: "repair.done" in sites.events("b"), "the repair")
    newest = sites.take_point()
    assert sites.reads_right(newest)
    assert newest in sites.verify().proved
