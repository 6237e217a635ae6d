"""Reports: only what changed is written; what a gateway knows better is taken over; nothing unknown hurts."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from secondsite.model.items import ItemOperation, ProtectedEvent, ProtectedState, allowed_operations
from secondsite.server.database.tables_items import GENERATIONS, ITEMS
from secondsite.server.identity.errors import GatewayInUse, VaultInUse
from secondsite.server.identity.heartbeats import Contact
from secondsite.server.items.health import problems_of
from secondsite.server.items.news import compare, write_batch
from secondsite.server.items.reports import Heard, Reports
from secondsite.server.items.search import Search
from secondsite.transfer.desired import WantedProtection
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.reports import ReplicaReport, Report
from support.items import ItemPlace, Working, a_machine, end

SHOP = a_machine()


def by_hand(place: ItemPlace, machine: str = SHOP.id, name: str = "büro 東京") -> Working:
    """Protected at gateway a itself, as `secondsite protect` does it."""
    wanted = WantedProtection(item=machine, revision=0, machine=machine, name=name, peer="gateway-b")
    made = Working(wanted, "", copied=99)
    place.gateways["gateway-a"].protections[machine] = made
    return made


def test_what_was_said_before_is_not_written_again(place: ItemPlace) -> None:
    place.run(place.protect(SHOP.id))
    gateway = place.gateways["gateway-a"]
    place.round()
    gateway.here = False
    before = gateway.writes
    for _ in range(3):  # what it said last, once more: its newest point grows older by the server's clock
        place.clock.advance(30)
        reported = place.item(SHOP.id).rpo_seconds(place.clock.utc())
        assert reported is not None
    gateway.report()
    assert gateway.writes - before <= 1
    again = gateway.writes
    gateway.report()
    assert gateway.writes == again


def test_a_source_that_just_started_counts_no_points_and_its_machine_has_one(place: ItemPlace) -> None:
    """The target tells of its replica within half a minute; a failover was refused until then."""
    place.run(place.protect(SHOP.id))
    place.gateways["gateway-b"].replicas.clear()
    source = place.gateways["gateway-a"]
    [said] = source.said().protections
    started = said.model_copy(update={"points": 0, "last_point": 4})
    for told, allowed in ((started, True), (started.model_copy(update={"last_point": None}), False)):
        report = source.said().model_copy(update={"protections": (told,)})
        place.parts.reports.heard(source.who, report)
        place.gateways["gateway-b"].report()
        item = place.item(SHOP.id)
        assert item.replica is None
        operations = allowed_operations(item.state, item.facts)
        assert (ItemOperation.PLANNED_FAILOVER in operations) is allowed


def test_a_machine_protected_by_hand_is_an_item_too(each_place: ItemPlace) -> None:
    place = each_place
    working = by_hand(place)
    place.round()
    first = place.item(SHOP.id)
    assert (first.managed, first.name) == (False, "büro 東京")
    found = place.parts.wanted.of(place.gateways["gateway-a"].who.id, place.vault, after=-1)
    assert found is not None
    assert not found.protections, "what it works towards is not known yet: nothing is wanted of it"
    place.round()
    place.round()
    item = place.item(SHOP.id)
    assert (item.managed, item.state) == (True, ProtectedState.PROTECTED)
    assert (working.item, working.wanted.revision) == (item.id, item.revision)
    assert item.first_protected_at is not None
    assert [one.name for one in place.parts.items.page(Search(name_contains="BÜ"), after=None, limit=9)] == [
        "büro 東京"
    ]
    assert place.codes().count("item.adopted") == 2  # seen, and then known


def test_a_server_restored_from_a_backup_takes_over_what_is_newer(each_place: ItemPlace) -> None:
    place = each_place
    place.run(place.protect(SHOP.id))
    place.round()
    gateway = place.gateways["gateway-a"]
    newer = gateway.protections[SHOP.id]
    newer.wanted = newer.wanted.model_copy(update={"revision": 40, "left_out": ("vdb",)})
    with place.database.write() as connection:
        connection.execute(sa.update(GENERATIONS).values(generation=1))
    place.round()
    place.round()
    item = place.item(SHOP.id)
    assert (item.revision, item.left_out) == (40, ("vdb",))
    assert newer.wanted.left_out == ("vdb",)
    with place.database.read() as connection:
        now = connection.execute(
            sa.select(GENERATIONS.c.generation).where(GENERATIONS.c.gateway == gateway.who.id)
        ).scalar_one()
    assert now >= gateway.generation >= 2


def test_reports_of_what_nobody_knows(each_place: ItemPlace) -> None:
    place = each_place
    ghost = "00000000-0000-4000-8000-00000000dead"
    report = Report(
        sent_at=time_text(place.clock.utc()),
        generation=7,
        refused={"no such item": "no"},
        replicas=(ReplicaReport(machine=ghost, name="gone", points=3),),
    )
    place.parts.reports.heard(place.gateways["gateway-b"].who, report)
    assert place.parts.reports.flush() == 1
    with place.database.read() as connection:
        assert place.parts.items.has_replica(connection, place.gateways["gateway-b"].who.id, ghost)
        assert connection.execute(sa.select(ITEMS)).first() is None


def test_two_sources_of_one_machine_are_told_once_and_the_first_stays(place: ItemPlace) -> None:
    place.run(place.protect(SHOP.id))
    b = place.gateways["gateway-b"]
    b.protections[SHOP.id] = Working(
        WantedProtection(item=SHOP.id, revision=0, machine=SHOP.id, name="shop", peer="gateway-a"), "", 99
    )
    for _ in range(3):
        place.round()
    assert place.item(SHOP.id).source_name == "gateway-a"
    assert place.codes().count("item.two-sources") == 1


def test_bitmap_mode_is_announced_and_a_silent_gateway_shows(place: ItemPlace) -> None:
    place.run(place.protect(SHOP.id))
    item = place.item(SHOP.id)
    gateway = place.gateways["gateway-a"]
    report = gateway.said()
    waiting = report.protections[0].model_copy(update={"bitmap_mode": True, "health": "Warning"})
    place.clock.advance(1)
    changed = report.model_copy(update={"protections": (waiting,), "sent_at": time_text(place.clock.utc())})
    place.parts.reports.heard(gateway.who, changed)
    place.parts.reports.flush()
    after = place.item(SHOP.id)
    assert (after.health, after.health_code) == ("Warning", "item.bitmap-mode")
    assert "item.bitmap-mode" in place.codes()
    found = problems_of(after, source_here=False, target_here=True)
    assert [one.code for one in found] == ["gateway.silent", "item.bitmap-mode"]
    assert item.health == "Normal"
    assert all(one.recommended_action and one.who_can_fix for one in found)


def test_a_peer_that_listens_elsewhere_is_told_of(each_place: ItemPlace) -> None:
    place = each_place
    a, b = place.gateways["gateway-a"].who, place.gateways["gateway-b"].who
    wanted = place.parts.wanted
    before = wanted.generation(a.id, place.vault)
    assert wanted.of(a.id, place.vault, after=before) is None
    for url in ("https://b.example:9443", "https://c.example:9443"):
        contact = Contact(place.clock.utc(), "192.0.2.2", "1", 0.0, 0, 0, 0, "Normal", url=url)
        place.identity.heartbeats.heard(b.id, contact)
        place.identity.heartbeats.flush()
        place.clock.advance(1)
        after = wanted.generation(a.id, place.vault)
        assert after > before
        found = wanted.of(a.id, place.vault, after=before)
        assert found is not None
        assert [(peer.name, peer.url) for peer in found.peers] == [("gateway-b", url)]
        assert (found.generation, wanted.generation(a.id, place.vault)) == (after, after)
        before = after


def test_who_is_needed_may_not_leave(place: ItemPlace) -> None:
    place.run(place.protect(SHOP.id))
    for name, words in (("gateway-a", "protects 1 machine"), ("gateway-b", "keeps replicas of 1 machine")):
        with pytest.raises(GatewayInUse, match=words):
            place.identity.gateways.unregister(name, why="")
    with pytest.raises(VaultInUse, match="1 protected item"):
        place.identity.vaults.delete("North")
    place.identity.gateways.unregister("gateway-b", why="", in_use=True)
    end(place, place.item(SHOP.id), force=True)
    place.identity.gateways.unregister("gateway-a", why="")  # it is not in the way any more


def test_items_of_a_silent_gateway_are_found_by_their_health(each_place: ItemPlace) -> None:
    place = each_place
    place.run(place.protect(SHOP.id))
    place.round()
    reports, critical = place.parts.reports, Search(health=["Critical"])
    assert reports.sweep() == 0
    place.gateways["gateway-a"].here = False
    place.clock.advance(60)
    assert (reports.sweep(), reports.sweep()) == (1, 0)
    [found] = place.parts.items.page(critical, after=None, limit=9)
    assert (found.name, found.health_code) == ("shop", "gateway.silent")
    assert [one.code for one in problems_of(found, source_here=False, target_here=True)] == ["gateway.silent"]
    assert place.parts.items.counts([place.vault]).by_health == {"Critical": 1}
    place.gateways["gateway-a"].here = True
    place.round()
    assert place.item(SHOP.id).health == "Normal"
    assert not place.parts.items.page(critical, after=None, limit=9)


def test_what_a_job_changed_meanwhile_is_not_written_over(each_place: ItemPlace) -> None:
    place = each_place
    place.run(place.protect(SHOP.id))
    place.round()
    gateway, before = place.gateways["gateway-a"], place.item(SHOP.id)
    said = gateway.said()
    comparing = said.protections[0].model_copy(update={"state": "Resynchronizing", "health": "Warning"})
    report = said.model_copy(update={"protections": (comparing,)})
    with place.database.read() as connection:
        news = compare(connection, gateway.who, report, place.parts.items.now(), [before])
    assert news.items[0]["state"] == "Resynchronizing"
    with place.database.write() as connection:
        place.parts.items.change(connection, before.id, ProtectedEvent.PAUSED, {"paused": 1})
    with place.database.write() as connection:
        write_batch(connection, news)
    after = place.item(SHOP.id)
    assert (after.state, after.revision, after.health) == (
        ProtectedState.PAUSED,
        before.revision + 1,
        "Normal",
    )


def test_what_another_server_wrote_of_an_item_is_noticed(each_place: ItemPlace) -> None:
    place = each_place
    place.run(place.protect(SHOP.id))
    for _ in range(4):  # only its newest point moves: from now on only its measurements are looked at
        place.round()
    gateway, item = place.gateways["gateway-a"], place.item(SHOP.id)
    said = gateway.said()
    other = Reports(place.parts.items, place.clock)
    lagging = said.protections[0].model_copy(update={"spool_bytes": 5, "bitmap_mode": True})
    place.clock.advance(1)
    now = {"sent_at": time_text(place.clock.utc())}
    other.heard(gateway.who, said.model_copy(update={"protections": (lagging,), **now}))
    other.flush()
    reported = place.item(SHOP.id).reported
    assert reported is not None
    assert (reported.spool_bytes, reported.bitmap_mode, place.item(SHOP.id).health_code) == (
        5,
        True,
        "item.bitmap-mode",
    )
    place.clock.advance(1)
    now = {"sent_at": time_text(place.clock.utc())}
    place.parts.reports.heard(gateway.who, said.model_copy(update=now))  # word for word what it heard last
    place.parts.reports.flush()
    after = place.item(SHOP.id)
    assert after.reported is not None
    assert (after.reported.spool_bytes, after.reported.bitmap_mode) == (0, False)
    assert (after.health_code, after.revision) == (item.health_code, item.revision)


def test_measurements_that_were_not_written_are_written_with_the_next_report(place: ItemPlace) -> None:
    place.run(place.protect(SHOP.id))
    for _ in range(4):
        place.round()
    gateway, reports = place.gateways["gateway-a"], place.parts.reports
    gateway.work()
    said = Report.model_validate_json(gateway.said().model_dump_json(by_alias=True))
    reports.heard(gateway.who, said)
    whole, reports.looked = reports.looked, _fails
    with pytest.raises(ZeroDivisionError):
        reports.flush()
    reports.looked = whole
    reports.flush()
    reported = place.item(SHOP.id).reported
    assert reported is not None
    assert reported.points == said.protections[0].points


def _fails(_heard: Heard, _items: object) -> None:
    raise ZeroDivisionError
