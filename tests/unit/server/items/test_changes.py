"""What people change of a protected item: wanted, taken by its gateway, taken back where it is refused."""

from __future__ import annotations

import pytest

from secondsite.model.items import ItemOperation, OperationNotAllowed, ProtectedState, check_operation
from secondsite.model.policies import ReplicationPolicy
from secondsite.server.items.records import Item
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.changing import CHANGE, PAUSE, RESUME, RESYNC
from support.items import ItemPlace, a_machine, change, columns

SHOP = a_machine()


@pytest.fixture
def shop(place: ItemPlace) -> Item:
    place.run(place.protect(SHOP.id))
    place.round()
    return place.item(SHOP.id)


def test_pause_and_going_on(place: ItemPlace, shop: Item) -> None:
    assert change(place, PAUSE, shop).state is JobState.SUCCEEDED
    paused = place.item(SHOP.id)
    assert (paused.state, paused.paused) == (ProtectedState.PAUSED, True)
    assert place.gateways["gateway-a"].protections[SHOP.id].wanted.paused
    points = paused.points
    place.round()
    place.round()
    assert (place.item(SHOP.id).points, place.item(SHOP.id).state) == (points, ProtectedState.PAUSED)
    with pytest.raises(OperationNotAllowed) as refused:
        check_operation("shop", paused.state, paused.facts, ItemOperation.RESYNC)
    assert "resume" in refused.value.sentences()[2]
    assert change(place, RESUME, shop).state is JobState.SUCCEEDED
    place.round()
    assert place.item(SHOP.id).state is ProtectedState.PROTECTED
    assert place.item(SHOP.id).points > points


def test_a_comparison_ends_when_the_gateway_says_so(place: ItemPlace, shop: Item) -> None:
    job = change(place, RESYNC, shop)
    assert job.state is JobState.SUCCEEDED
    after = place.item(SHOP.id)
    assert (after.resync, after.state) == (1, ProtectedState.PROTECTED)
    assert after.reported is not None
    assert after.reported.resynced == 1
    assert change(place, RESYNC, after).state is JobState.SUCCEEDED
    assert place.item(SHOP.id).resync == 2


def test_disks_policy_and_mapping(each_place: ItemPlace) -> None:
    place = each_place
    place.run(place.protect(SHOP.id))
    shop = place.item(SHOP.id)
    policy = place.parts.policies.create(
        place.vault, "Gold", ReplicationPolicy(copy_frequency_seconds=30), by="ann"
    )
    mapping = '{"networks": {"lan": "lan"}, "pools": {}, "defaultPool": "default"}'
    more = {"policy": policy.id, "left_out": ("vdb",), "mapping": mapping, "what": "all of it"}
    assert change(place, CHANGE, shop, **more).state is JobState.SUCCEEDED
    wanted = place.gateways["gateway-a"].protections[SHOP.id].wanted
    assert (wanted.policy.copy_frequency_seconds, wanted.left_out) == (30, ("vdb",))
    assert (wanted.mapping.networks, wanted.mapping.default_pool) == ({"lan": "lan"}, "default")
    # the policy says something else: its items, and their gateways, know at once
    place.parts.policies.change(
        place.vault,
        "Gold",
        by="ann",
        settings=lambda old: old.model_copy(update={"copy_frequency_seconds": 60}),
    )
    place.round()
    assert place.gateways["gateway-a"].protections[SHOP.id].wanted.policy.copy_frequency_seconds == 60
    assert place.parts.policies.find(place.vault, "Gold").items == 1
    unknown = change(place, CHANGE, shop, left_out=("sdz",), what="the disks")
    assert unknown.error is not None
    assert unknown.error.code == "item.disk-unknown"
    nothing = change(place, CHANGE, shop, left_out=("vda", "vdb"), what="the disks")
    assert nothing.error is not None
    assert nothing.error.code == "item.no-disk-left"


def test_what_a_gateway_refuses_is_as_it_was(place: ItemPlace, shop: Item) -> None:
    gateway = place.gateways["gateway-a"]
    gateway.refuse = lambda wanted: "Disks cannot be left out here." if wanted.left_out else ""
    job = change(place, CHANGE, shop, left_out=("vdb",), what="the disks")
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "Disks cannot be left out here." in job.error.happened
    place.round()
    after = place.item(SHOP.id)
    before, now = columns(shop), columns(after)
    same = ("disks", "left_out", "policy_text", "mapping_text", "paused", "resync", "state", "health")
    assert {name: before[name] for name in same} == {name: now[name] for name in same}
    assert after.revision == after.source_revision == shop.revision + 2


def test_a_gateway_that_is_away_too_long_leaves_all_as_it_was(place: ItemPlace, shop: Item) -> None:
    place.gateways["gateway-a"].here = False
    job = change(place, PAUSE, shop)
    assert job.error is not None
    assert job.error.code == "item.gateway-takes-long"
    assert not place.item(SHOP.id).paused
    place.gateways["gateway-a"].here = True
    place.round()
    place.round()
    assert place.item(SHOP.id).state is ProtectedState.PROTECTED
    assert not place.gateways["gateway-a"].protections[SHOP.id].wanted.paused
