"""Protecting a machine, as a job with two gateways that work by themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from secondsite.model.items import ProtectedState
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.protect import Image
from support.items import ItemPlace, a_machine, output

SHOP = a_machine()


def test_a_machine_is_looked_at_copied_and_finalised(each_place: ItemPlace) -> None:
    place = each_place
    job = place.protect(SHOP.id)
    copying = place.run(job, until=lambda found: "first copy" in found.progress_text)
    assert copying.progress_text == "first copy: 1.0 GiB of 3.0 GiB, 0:01:15 left"
    assert place.item(SHOP.id).state is ProtectedState.COPYING
    done = place.run(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    item = place.item(SHOP.id)
    assert (item.state, item.health, item.live_job) == (ProtectedState.PROTECTED, "Normal", "")
    assert item.first_protected_at is not None
    assert item.points > 0
    assert item.source_revision == item.revision == 1
    assert place.worker.steps(job)[0].name == "gateways-connected"


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (lambda p: setattr(p.gateways["gateway-b"], "store", False), "gateway.role-missing"),
        (lambda p: setattr(p.gateways["gateway-a"], "proved", False), "item.recovery-key-unproved"),
        (lambda p: p.site("gateway-a", a_machine(disks=("sda",))), "item.disk-unknown"),
        (lambda p: p.site("gateway-a"), "inventory.unknown"),
        (lambda p: p.site("gateway-b", pools=("slow",)), "item.mapping-incomplete"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_is_left(
    place: ItemPlace, trouble: Callable[[ItemPlace], None], code: str
) -> None:
    trouble(place)
    mapping = '{"defaultPool": "default"}'
    job = place.run(place.protect(SHOP.id, disks=("vda",), mapping=mapping))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == code
    assert all((job.error.happened, job.error.cause, job.error.action))
    if code == "item.mapping-incomplete":  # the copy of hours stays, and says what it lacks
        item = place.item(SHOP.id)
        assert (item.state, item.health_code) == (ProtectedState.FINALIZE_FAILED, code)
        assert place.gateways["gateway-b"].replicas
        place.site("gateway-b")
        with place.database.write() as connection:
            place.worker.jobs.retry(connection, job.id, "ann")
        assert place.run(job.id).state is JobState.SUCCEEDED
        assert place.item(SHOP.id).state is ProtectedState.PROTECTED
    else:
        assert not place.gateways["gateway-a"].protections
        assert not place.gateways["gateway-b"].replicas


def test_tried_again_it_adopts_again_what_was_given_up(place: ItemPlace) -> None:
    """A gateway keeps what it answered: the same call would be told that it is done, and nothing would be."""
    place.gateways["gateway-a"].refuse = lambda _wanted: "its disks are shared"
    target = place.gateways["gateway-b"]
    image = Image(path="/pool/shop.qcow2", format="qcow2")
    job = place.run(place.protect(SHOP.id, images={"vda": image}))
    assert (job.state, target.adopting) == (JobState.FAILED, set())
    place.gateways["gateway-a"].refuse = lambda _wanted: ""
    with place.database.write() as connection:
        place.worker.jobs.retry(connection, job.id, "ann")
    assert place.run(job.id).state is JobState.SUCCEEDED
    assert target.adopting == {SHOP.id}


def test_a_cancelled_protection_leaves_nothing(place: ItemPlace) -> None:
    job = place.protect(SHOP.id)
    place.run(job, until=lambda found: "first copy" in found.progress_text)
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")
    assert place.run(job).state is JobState.CANCELLED
    assert not place.gateways["gateway-a"].protections
    assert not place.gateways["gateway-b"].replicas
    item = place.item(SHOP.id)
    assert (item.state, item.left_behind) == (ProtectedState.UNPROTECTED, "")


def test_what_a_gateway_refuses_is_taken_back_with_its_reason(place: ItemPlace) -> None:
    place.gateways["gateway-a"].refuse = lambda wanted: "It has no room." if wanted.enabled else ""
    job = place.run(place.protect(SHOP.id))
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "item.gateway-refused"
    assert "It has no room." in job.error.happened
    assert place.item(SHOP.id).state is ProtectedState.UNPROTECTED


def test_protected_again_it_is_the_same_item_with_its_old_day(place: ItemPlace) -> None:
    place.run(place.protect(SHOP.id))
    before = place.item(SHOP.id)
    second = place.run(place.protect(SHOP.id))
    assert second.error is not None
    assert second.error.code == "item.exists"
    from support.items import end

    end(place, before)
    place.clock.advance(40 * 86400)
    done = place.run(place.protect(SHOP.id))
    assert done.state is JobState.SUCCEEDED
    after = place.item(SHOP.id)
    assert (after.id, after.first_protected_at) == (before.id, before.first_protected_at)
    assert after.revision > before.revision
    assert output(done)["item"] == before.id
