"""A whole gateway that follows a server's wishes and reports, over a desk in memory and a real target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.enrolerrors import ServerUnreachable
from secondsite.gateway.main import Gateway
from secondsite.gateway.uplink.link import ServerLink
from secondsite.model.ids import MachineId
from secondsite.transfer.desired import WantedProtection
from secondsite.transfer.reports import ProtectionReport
from support.desk import Desk, follow, wanted
from support.gateway_pair import B, Pair
from support.until import until


@dataclass
class Place:
    pair: Pair
    fabric: MemoryFabric
    machine: MachineId
    address: tuple[str, int]
    a: Gateway
    desk: Desk = field(default_factory=Desk)
    link: ServerLink | None = None

    def follow(self, **how: bool) -> ServerLink:
        self.link = follow(self.pair, self.a, self.desk, **how)  # type: ignore[arg-type]
        return self.link

    def want(self, *protections: WantedProtection, generation: int) -> None:
        """The server wants something else, and its answer to a heartbeat says so."""
        self.desk.want(*protections, generation=generation)
        assert self.link is not None
        self.link.heard(generation)

    def restart(self) -> ServerLink:
        self.a.stop()
        self.a = self.pair.start_a(self.address, self.fabric)
        return self.follow()

    def said(self) -> ProtectionReport:
        return self.desk.reports[-1].protections[0]

    def until(self, condition: Callable[[ProtectionReport], bool], what: str) -> None:
        def look() -> bool:
            assert self.link is not None
            self.link.round()
            report = self.desk.reports[-1]
            return bool(report.protections) and condition(report.protections[0])

        until(look, what)


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="gs") as name:  # short: sockets lie below it
        pair, fabric = Pair(Path(name)), MemoryFabric()
        machine = fabric.add_machine("shop", {"vda": 4 * MIB, "vdb": 2 * MIB})
        fabric.write(machine, "vda", 65536, b"hello" * 4000)
        address = pair.start_b()
        made = Place(pair, fabric, machine, address, pair.start_a(address, fabric))
        try:
            yield made
        finally:
            made.a.stop()
            pair.stop_b()


def test_an_item_is_protected_changed_and_ended_as_the_server_wants(place: Place) -> None:
    link, desk = place.follow(), place.desk
    link.round()
    assert (desk.asked, desk.reports[0].protections) == ([-1], ())
    place.want(wanted(place.machine, 1), generation=2)
    place.until(lambda p: p.state == "Protected", "Protected")
    assert desk.reports[-1].generation == 2
    said = place.said()
    assert (said.item, said.revision, said.health, said.peer) == ("item-1", 1, "Normal", B)
    assert said.last_point is not None
    place.want(wanted(place.machine, 2, paused=True), generation=3)
    place.until(lambda p: p.state == "Paused", "Paused")
    assert place.said().note == "paused by the server"
    place.want(wanted(place.machine, 3, leftOut=["vdb"], resync=1), generation=4)
    place.until(lambda p: p.state == "Protected" and p.resynced == 1, "Protected again, and compared")
    with place.pair.client_a() as client:
        number = client.take_point("shop").number
        assert client.protection("shop").left_out == ("vdb",)
    with place.pair.client_b() as client:
        assert next(p for p in client.points("shop") if p.number == number).disks == ("vda",)
    place.want(wanted(place.machine, 4, enabled=False), generation=5)
    until(lambda: not (link.round() and desk.reports[-1].protections), "the end")
    assert place.fabric.open_source(place.machine).checkpoints() == []
    assert (desk.reports[-1].generation, desk.reports[-1].refused) == (5, {})


def test_a_protection_whose_machine_is_gone_ends_and_says_what_was_not_removed(place: Place) -> None:
    """Also where the end was asked for before: the hypervisor says that there is no such machine."""
    link, desk = place.follow(), place.desk
    place.want(wanted(place.machine, 1), generation=2)
    place.until(lambda p: p.state == "Protected", "Protected")
    place.fabric.isolate(place.machine, why="it is to be removed", autostart=False)
    place.fabric.remove_machine(place.machine, disks=True)
    link = place.restart()
    place.want(wanted(place.machine, 2, enabled=False), generation=3)
    until(lambda: not (link.round() and desk.reports[-1].protections), "the end")
    assert list(desk.reports[-1].left_behind) == ["item-1"]
    assert "shop is not at its hypervisor any more" in desk.reports[-1].left_behind["item-1"]
    assert "item.unprotected" in codes(place)


def test_it_works_on_while_the_server_is_away_and_after_a_restart(place: Place) -> None:
    link, desk = place.follow(), place.desk
    place.want(wanted(place.machine, 1), generation=2)
    place.until(lambda p: p.state == "Protected", "Protected")
    desk.away = True
    place.want(wanted(place.machine, 2, paused=True), generation=3)
    link.heard(3)
    with pytest.raises(ServerUnreachable):
        link.round()
    place.want(wanted(place.machine, 1), generation=2)
    place.restart()
    with place.pair.client_a() as client:
        until(lambda: client.protection("shop").state.value == "Protected", "Protected without the server")
        first = client.take_point("shop").number
        assert client.take_point("shop").number > first
    desk.away = False
    place.until(lambda p: p.state == "Protected", "a report")
    assert desk.asked[-1] == 1, "what was taken is looked at again after a start"
    assert (place.said().item, place.said().revision) == ("item-1", 1)


def test_a_server_restored_from_an_old_backup_overwrites_nothing(place: Place) -> None:
    link, desk = place.follow(), place.desk
    place.want(wanted(place.machine, 5, leftOut=["vdb"]), generation=9)
    place.until(lambda p: p.state == "Protected", "Protected")
    place.want(wanted(place.machine, 3), generation=4)  # restored, and before our report
    link.heard(10)
    link.round()
    assert place.a.parts is not None
    assert place.a.parts.desired.everything().generation == 9
    place.want(wanted(place.machine, 3), generation=11)  # it has counted on, as our report made it
    desk.tell = (place.machine,)
    until(lambda: link.round() > 0 and place.said().wanted is not None, "what we work towards")
    told = place.said().wanted
    assert told is not None
    assert (told.revision, told.left_out, place.said().revision) == (5, ("vdb",), 5)
    assert "3 is older than 5" in desk.reports[-1].refused["item-1"]
    assert (desk.reports[-1].generation, "item.refused" in codes(place)) == (11, True)
    count = len(desk.reports)
    link.round()
    link.round()
    assert len(desk.reports) == count, "what was told is not told over and over"


def test_without_a_proof_nothing_is_taken_until_there_is_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.gateway.uplink.link.RETRY_REFUSED_SECONDS", 0.0)
    link, desk = place.follow(proved=False), place.desk
    place.want(wanted(place.machine, 1), generation=2)
    link.round()
    link.round()
    assert "secondsite key prove" in desk.reports[-1].refused["item-1"]
    assert (desk.reports[-1].generation, desk.reports[-1].protections) == (2, ())
    assert codes(place).count("item.refused") == 1
    place.follow(proved=True)
    place.until(lambda p: p.state == "Protected", "Protected once it was proved")
    assert desk.reports[-1].refused == {}


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"peer": "gateway-x"}, "no peer"),
        ({"disks": ["vdz"]}, "vdz"),
        ({"leftOut": ["vda", "vdb"]}, "no disk"),
    ],
)
def test_what_cannot_be_is_refused_by_item_and_the_rest_is_taken(
    place: Place, wish: dict[str, object], why: str
) -> None:
    web = place.fabric.add_machine("web", {"vda": MIB})
    link, desk = place.follow(), place.desk
    fine = wanted(web, 1, item="item-2", name="web")
    place.want(wanted(place.machine, 1, **wish), fine, generation=2)
    desk.refused = {"item-3": "This gateway is older."}
    link.round()
    until(lambda: link.round() > 0 and bool(desk.reports[-1].protections), "the other one")
    report = desk.reports[-1]
    assert [p.name for p in report.protections] == ["web"]
    assert why in report.refused["item-1"]
    assert report.refused["item-3"] == "This gateway is older."


def test_a_local_protection_is_taken_over_and_goes_on(place: Place) -> None:
    place.follow()
    desk = place.desk
    place.pair.protect("shop")
    desk.tell = (place.machine,)
    place.until(lambda p: p.state == "Protected" and p.wanted is not None, "Protected, and told")
    said = place.said()
    assert said.wanted is not None
    assert (said.item, said.wanted.peer, said.wanted.policy.copy_frequency_seconds) == ("", B, 1.0)
    with place.pair.client_a() as client:
        number = client.take_point("shop").number
        place.want(wanted(place.machine, 1, leftOut=["vdb"]), generation=2)
        place.until(lambda p: p.item == "item-1" and p.state == "Protected", "the server's")
        assert client.take_point("shop").number > number
        assert client.pause("shop", by="maria").paused_by == "maria", "people here still can"
    assert "replicate.resync" not in codes(place)


def codes(place: Place) -> list[str]:
    with place.pair.client_a() as client:
        return [entry.event.code for entry in client.events()]


def test_a_report_waits_its_time_unless_somebody_waits_for_it(place: Place) -> None:
    link, desk = place.follow(), place.desk
    link.round()
    said = len(desk.reports)
    link.round()
    assert len(desk.reports) == said
    link.hurry()
    link.round()
    assert len(desk.reports) == said + 1
