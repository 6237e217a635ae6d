"""Ending a protection: at both gateways, whoever is away, whoever dies in the middle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from secondsite.model import confirmations
from secondsite.model.items import ProtectedState, allowed_operations
from secondsite.server.items.errors import StillEnding
from secondsite.server.items.records import Item, job_input
from secondsite.server.items.service import GatewayRef, NewItem
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.changing import PAUSE
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import COMMIT, Commit
from support.items import ItemPlace, a_machine, change, end, output

SHOP = a_machine()


@pytest.fixture
def shop(place: ItemPlace) -> Item:
    place.run(place.protect(SHOP.id))
    place.round()
    return place.item(SHOP.id)


@pytest.mark.parametrize("with_replica", [False, True])
def test_it_goes_everywhere_and_the_replica_as_asked(
    place: ItemPlace, shop: Item, *, with_replica: bool
) -> None:
    done = end(place, shop, with_replica=with_replica)
    assert (done.state, output(done)["left_behind"]) == (JobState.SUCCEEDED, "")
    assert place.item(SHOP.id).state is ProtectedState.UNPROTECTED
    assert not place.gateways["gateway-a"].protections
    assert bool(place.gateways["gateway-b"].replicas) is not with_replica
    for gateway in place.gateways.values():
        found = place.parts.wanted.of(gateway.who.id, place.vault, after=-1)
        assert found is not None
        assert not found.protections
        assert not found.replicas
    assert "item.unprotected" in place.codes()


@pytest.mark.parametrize("away", ["gateway-a", "gateway-b"])
def test_one_that_is_away_is_asked_about_and_told_when_it_is_back(
    place: ItemPlace, shop: Item, away: str
) -> None:
    place.gateways[away].here = False
    asked = end(place, shop, with_replica=True)
    assert asked.state is JobState.SUSPENDED
    assert asked.question is not None
    assert (away in asked.question.question, asked.question.choices) == (True, ("wait", "leave"))
    with place.database.write() as connection:
        place.worker.jobs.resume(connection, asked.id, "leave", "ann")
    done = place.run(asked.id)
    assert done.state is JobState.SUCCEEDED
    assert away in output(done)["left_behind"]
    item = place.item(SHOP.id)
    assert (item.state, item.left_behind) == (ProtectedState.UNPROTECTED, output(done)["left_behind"])
    place.gateways[away].here = True
    for _ in range(5):
        place.round()
    assert not place.gateways["gateway-a"].protections
    assert not place.gateways["gateway-b"].replicas
    assert place.item(SHOP.id).source_done
    assert place.item(SHOP.id).target_done


def test_a_replica_that_somebody_needs_is_told_and_asked_about(place: ItemPlace, shop: Item) -> None:
    """It waited a quarter of an hour without a word of who holds it, and what lets it go."""
    there = place.gateways["gateway-b"]
    why = "point 3 is held; at this gateway: `secondsite points dismiss shop --note WHY`"
    there.in_use[SHOP.id] = why
    given = Disable(vault=place.vault, item=shop.id, machine=SHOP.id, name="shop", with_replica=True)
    job = place.worker.start(DISABLE, given)
    waits = place.run(job, until=lambda found: why in (found.note or ""))
    assert (waits.state, "gateway-b" in (waits.note or "")) == (JobState.IN_PROGRESS, True)
    began = place.clock.utc()
    asked = place.run(job)
    assert asked.state is JobState.SUSPENDED
    assert (place.clock.utc() - began).total_seconds() < 100
    assert asked.question is not None
    assert why in asked.question.question
    with place.database.write() as connection:
        place.worker.jobs.resume(connection, job, "wait", "ann")
    for _ in range(5):
        place.round()
    assert why in (place.worker.get(job).note or "")
    del there.in_use[SHOP.id]
    done = place.run(job)
    assert (done.state, output(done)["left_behind"]) == (JobState.SUCCEEDED, "")
    assert not there.replicas


def test_what_a_source_could_not_remove_is_told_with_the_end(each_place: ItemPlace) -> None:
    """Its machine is gone from the hypervisor: the protection ends, and says what is left."""
    place = each_place
    place.run(place.protect(SHOP.id))
    place.round()
    shop = place.item(SHOP.id)
    told = "shop is not at its hypervisor any more"
    place.gateways["gateway-a"].left_behind[shop.id] = told
    place.gateways["gateway-b"].here = False
    asked = end(place, shop)
    assert asked.state is JobState.SUSPENDED
    assert place.item(SHOP.id).left_behind == told
    with place.database.write() as connection:
        place.worker.jobs.resume(connection, asked.id, "leave", "ann")
    done = place.run(asked.id)
    assert done.state is JobState.SUCCEEDED
    left = output(done)["left_behind"]
    assert left.startswith(told)
    assert "gateway-b" in left
    assert place.item(SHOP.id).left_behind == left
    place.round()
    assert place.item(SHOP.id).left_behind == left, "said once, however often it is reported"


def test_force_asks_nobody_and_another_source_waits_for_the_first(place: ItemPlace, shop: Item) -> None:
    place.gateways["gateway-a"].here = False
    place.clock.advance(120)
    assert end(place, shop, force=True).state is JobState.SUCCEEDED
    b = place.gateways["gateway-b"].who
    new = NewItem(place.vault, SHOP.id, "shop", GatewayRef(b.id, b.name), GatewayRef("x", "gateway-x"))
    with pytest.raises(StillEnding), place.database.write() as connection:
        place.parts.items.enable(connection, new, by="")


def test_taken_back_it_goes_on_also_when_it_was_paused(place: ItemPlace, shop: Item) -> None:
    change(place, PAUSE, shop)
    place.gateways["gateway-b"].here = False
    given = Disable(vault=place.vault, item=shop.id, machine=SHOP.id, name="shop", with_replica=True)
    job = place.worker.start(DISABLE, given)
    for _ in range(3):
        place.round()
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")
    assert place.run(job).state is JobState.CANCELLED
    place.gateways["gateway-b"].here = True
    for _ in range(10):
        place.round()
    item = place.item(SHOP.id)
    assert (item.state, item.enabled) == (ProtectedState.PROTECTED, True)
    assert item.id == shop.id


class Gone(BaseException):
    """The worker is gone, by kill -9 so to speak: nothing catches this, nothing is noted."""


@pytest.mark.parametrize("every", [4, 7])
def test_workers_die_all_along_and_their_peers_go_on(
    place: ItemPlace, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Each worker is gone right after its `every`-th write was kept, in protecting and in ending."""
    kept, died = itertools.count(1), []
    write = Hold.write

    def write_and_go(self: Hold, work: Any) -> Any:
        value = write(self, work)
        if next(kept) % every == 0:
            died.append(self.job)
            raise Gone
        return value

    monkeypatch.setattr(Hold, "write", write_and_go)
    job = place.protect(SHOP.id)
    _run_with_deaths(place, job)
    item = place.item(SHOP.id)
    assert (item.state, item.live_job, item.revision) == (ProtectedState.PROTECTED, "", 1)
    given = Disable(vault=place.vault, item=item.id, machine=SHOP.id, name="shop", with_replica=True)
    ending = place.worker.start(DISABLE, given)
    _run_with_deaths(place, ending)
    assert not place.gateways["gateway-a"].protections
    assert not place.gateways["gateway-b"].replicas
    assert place.item(SHOP.id).revision == 2
    assert place.codes().count("item.unprotected") == 1
    assert {job, ending} == set(died)


def _run_with_deaths(place: ItemPlace, job: str) -> None:
    for _ in range(200):
        for gateway in place.gateways.values():
            gateway.turn()
        try:
            place.worker.idle()
        except Gone:
            place.worker.succeeded_by_a_peer()
        found = place.worker.get(job)
        if not found.live:
            assert found.state is JobState.SUCCEEDED, place.worker.log(job)
            return
        place.clock.advance(1)
    raise AssertionError(place.worker.log(job))


def test_an_end_that_is_called_off_leaves_a_machine_where_it_was_taken_over(place: ItemPlace) -> None:
    """Its source says nothing that would lead it there again: it stayed at the beginning of a protection."""
    a, b = place.gateways["gateway-a"], place.gateways["gateway-b"]
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    before = place.item(SHOP.id)
    said = confirmations.taken_over("shop", "gateway-a")
    assert place.run(place.worker.start(FAILOVER, Failover(**job_input(before), confirm=said))).error is None
    kept = Commit(**job_input(before), confirm=confirmations.kept("shop"))
    assert place.run(place.worker.start(COMMIT, kept)).error is None
    a.lost = {SHOP.id: "shop is held: gateway-b is its writer since epoch 2; a person decides"}
    b.here = False
    job = place.worker.start(DISABLE, Disable(**job_input(before)))
    place.run(job, until=lambda found: "gateway-b" in (found.note or ""))
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")
    assert place.run(job).state is JobState.CANCELLED
    b.here = True
    for _ in range(20):
        place.round(10.0)
    item = place.item(SHOP.id)
    assert (item.state, item.enabled) == (ProtectedState.COMMITTED, True)
    assert "reprotect" in {one.value for one in allowed_operations(item.state, item.facts)}
