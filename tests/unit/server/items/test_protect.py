"""Protecting a machine, as a job with two gateways that work by themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from secondsite.model import confirmations
from secondsite.model.items import ProtectedState
from secondsite.server.items.records import job_input
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import COMMIT, Commit
from secondsite.server.operations.protect import Image
from secondsite.transfer.reports import ReplicaReport
from support.items import ItemPlace, a_machine, end, output

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
    end(place, before)
    place.clock.advance(40 * 86400)
    done = place.run(place.protect(SHOP.id))
    assert done.state is JobState.SUCCEEDED
    after = place.item(SHOP.id)
    assert (after.id, after.first_protected_at) == (before.id, before.first_protected_at)
    assert after.revision > before.revision
    assert output(done)["item"] == before.id


@pytest.mark.parametrize("state", ["Held", "Reversed"])
def test_a_copy_that_lost_the_machine_is_not_protected(place: ItemPlace, state: str) -> None:
    """It is isolated at its gateway until a person decides: a first copy of it would never begin."""
    holds = place.gateways["gateway-a"].holds
    holds.hold(SHOP.id)
    holds.known[SHOP.id]["state"] = state
    place.round()
    place.round()
    failed = place.run(place.protect(SHOP.id))
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (JobState.FAILED, "item.machine-held")
    assert f"{state.lower()} there since gateway-b took it over in epoch 2" in failed.error.happened
    assert place.tools.of_machine(place.vault, SHOP.id) is None


def test_a_machine_whose_claim_another_site_has_is_not_waited_for(place: ItemPlace) -> None:
    """Let run again by a person it is not isolated; its gateway copies nothing all the same."""
    a, b = place.gateways["gateway-a"], place.gateways["gateway-b"]
    committed(place)
    end(place, place.item(SHOP.id))
    b.replicas[SHOP.id] = ReplicaReport(machine=SHOP.id, name="shop", revision=2, points=0, epoch=2)
    a.lost = {SHOP.id: "shop is held: gateway-b is its writer since epoch 2; a person decides"}
    failed = place.run(place.protect(SHOP.id))
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (JobState.FAILED, "item.machine-held")
    assert "gateway-b is its writer since epoch 2" in failed.error.happened
    assert place.item(SHOP.id).state is ProtectedState.UNPROTECTED
    assert SHOP.id in b.replicas, "what says whose the machine is was there before: it is not taken back"


def test_a_failover_of_an_earlier_protection_leads_the_next_one_nowhere(place: ItemPlace) -> None:
    committed(place)
    end(place, place.item(SHOP.id))
    done = place.run(place.protect(SHOP.id))
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    for _ in range(5):
        place.round()
    assert place.item(SHOP.id).state is ProtectedState.PROTECTED


def test_a_first_copy_is_not_waited_for_where_somebody_took_the_machine_over(place: ItemPlace) -> None:
    """At the target itself: what was taken over is left as it is."""
    b = place.gateways["gateway-b"]
    job = place.protect(SHOP.id)
    place.run(job, until=lambda found: "first copy" in found.progress_text)
    place.gateways["gateway-a"].lost = {SHOP.id: "-"}  # its copy stops where it is
    asked = {"operation": "0f" * 16, "point": "latest", "network": "mapped", "requestedBy": "olga"}
    said = confirmations.taken_over("shop", "gateway-a")
    assert b.failovers.begin(SHOP.id, {**asked, "confirm": said})[0] == 202
    for _ in range(6):
        b.failovers.work(b.failovers.known["0f" * 16])
    failed = place.run(job)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (JobState.FAILED, "item.taken-over-meanwhile")
    assert place.item(SHOP.id).state is ProtectedState.UNPLANNED_COMPLETED
    assert place.gateways["gateway-a"].protections[SHOP.id].wanted.enabled


def committed(place: ItemPlace) -> None:
    """Protected, taken over by gateway-b, and kept there."""
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    item = place.item(SHOP.id)
    said = confirmations.taken_over("shop", "gateway-a")
    assert place.run(place.worker.start(FAILOVER, Failover(**job_input(item), confirm=said))).error is None
    kept = Commit(**job_input(item), confirm=confirmations.kept("shop"))
    assert place.run(place.worker.start(COMMIT, kept)).error is None
