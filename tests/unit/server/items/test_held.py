"""Machines held at their sources, as gateways tell of them, and what people decide through the server."""

from __future__ import annotations

import pytest

from secondsite.model import confirmations
from secondsite.model.items import allowed_operations
from secondsite.server.items.failovers import held_at, held_machines
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.held import DISCARD, RELEASE, Decide
from support.item_holds import FakeHolds
from support.items import ItemPlace, a_machine, output

SHOP = a_machine()


@pytest.fixture
def holds(place: ItemPlace) -> FakeHolds:
    return held(place)


def held(place: ItemPlace) -> FakeHolds:
    """Of the source of a machine that is protected, and was taken over elsewhere."""
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    found = place.gateways["gateway-a"].holds
    found.hold(SHOP.id)
    place.round()
    place.round()
    return found


def decide(place: ItemPlace, kind: str, confirm: str, remove: str = "nothing") -> str:
    item = place.item(SHOP.id)
    given = Decide(
        vault=item.vault_id,
        item=item.id,
        machine=SHOP.id,
        name="shop",
        epoch=item.held.epoch if item.held is not None else 0,
        confirm=confirm,
        remove=remove,
        by="ann",
    )
    return place.worker.start(kind, given)


def possible(place: ItemPlace) -> set[str]:
    item = place.item(SHOP.id)
    return {one.value for one in allowed_operations(item.state, item.facts)}


def listed(place: ItemPlace, *, everything: bool) -> list[tuple[str, str, str]]:
    with place.database.read() as connection:
        found = held_machines(connection, place.vault, everything=everything)
    return [(name, told.name, told.state) for name, told in found]


def test_it_is_shown_and_let_run_again(each_place: ItemPlace) -> None:
    """On each database: what is told is kept by SQL of its own."""
    place, holds = each_place, held(each_place)
    item = place.item(SHOP.id)
    assert item.held is not None
    assert (item.held.state, item.held.claimant, item.held.last_point) == ("Held", "gateway-b", 7)
    assert {"heldRelease", "heldDiscard"} <= possible(place)
    assert listed(place, everything=False) == [("gateway-a", "shop", "Held")]
    refused = place.run(decide(place, RELEASE, "yes"))
    assert refused.state is JobState.FAILED
    assert holds.asked == []
    done = place.run(decide(place, RELEASE, confirmations.released("shop", "gateway-b")))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert output(done) == {"machine": SHOP.id, "state": "Released", "claimant": "gateway-b"}
    assert holds.asked == [{"epoch": 2, "confirm": "shop may run at gateway-b as well", "by": "ann"}]
    assert listed(place, everything=False) == []
    assert listed(place, everything=True) == [("gateway-a", "shop", "Released")]
    assert "heldRelease" not in possible(place)


def test_discarded_with_what_is_to_be_removed_once_although_the_answer_is_lost(
    place: ItemPlace, holds: FakeHolds
) -> None:
    said = confirmations.discarded("shop", "machine-and-disks")
    job = decide(place, DISCARD, said, "machine-and-disks")
    place.run(job, until=lambda _job: bool(holds.asked))
    place.gateways["gateway-a"].kept.clear()
    place.clock.advance(6.0)
    assert place.worker.claims.take(1, place.worker.stop)
    place.worker.succeeded_by_a_peer()
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert [one["remove"] for one in holds.asked] == ["machine-and-disks"]
    assert not {"heldRelease", "heldDiscard"} & possible(place)


def test_a_job_decides_of_the_claim_that_was_seen_and_of_no_later_one(
    place: ItemPlace, holds: FakeHolds
) -> None:
    job = decide(place, RELEASE, confirmations.released("shop", "gateway-b"))
    holds.hold(SHOP.id, epoch=4)  # it went back, and was taken over anew, before the job was done
    failed = place.run(job)
    assert (failed.state, failed.error and failed.error.code) == (JobState.FAILED, "held.another-claim")
    assert holds.known[SHOP.id]["state"] == "Held"


def test_a_copy_that_another_site_holds_is_discarded_there(place: ItemPlace, holds: FakeHolds) -> None:
    """The machine went on from it: it is neither end of the item any more."""
    key, _ = place.identity.keys.create("North", url="https://server.example", by="maria")
    place.enrol("gateway-c", key)
    third = place.gateways["gateway-c"]
    third.holds.hold(SHOP.id, claimant="gateway-a", epoch=6)
    place.round()
    place.round()
    assert listed(place, everything=False) == [("gateway-a", "shop", "Held"), ("gateway-c", "shop", "Held")]
    with place.database.read() as connection:
        told = held_at(connection, place.vault, "gateway-c", SHOP.id)
        assert held_at(connection, "another vault", "gateway-c", SHOP.id) is None
        assert held_at(connection, place.vault, "gateway-b", SHOP.id) is None
    assert told is not None
    item = place.item(SHOP.id)
    given = Decide(
        vault=item.vault_id,
        item=item.id,
        machine=SHOP.id,
        name="shop",
        epoch=told.epoch,
        confirm=confirmations.discarded("shop", "machine"),
        remove="machine",
        gateway="gateway-c",
    )
    done = place.run(place.worker.start(DISCARD, given))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert done.title == "Discard what shop wrote last at gateway-c"
    assert output(done) == {"machine": SHOP.id, "state": "Discarded", "claimant": "gateway-a"}
    assert ([one["epoch"] for one in third.holds.asked], holds.asked) == ([6], [])
    assert listed(place, everything=False) == [("gateway-a", "shop", "Held")], "that of the source stays"


def test_what_its_gateway_tells_of_no_more_is_not_shown(place: ItemPlace, holds: FakeHolds) -> None:
    holds.known.clear()
    place.round()
    assert place.item(SHOP.id).held is None
    assert listed(place, everything=True) == []
