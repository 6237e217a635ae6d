"""A job that waits for a gateway: it says so, it can be cancelled, and it comes to an end."""

from __future__ import annotations

import pytest

from secondsite.model import confirmations
from secondsite.model.items import ProtectedState
from secondsite.server.identity.heartbeats import SILENT_AFTER
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.failover import FAILOVER, Failover
from support.items import ItemPlace, a_machine

SHOP = a_machine()


def _away(place: ItemPlace, job: str, name: str) -> records.Job:
    """Until the job says that it waits for a gateway that is not there any more."""
    place.gateways[name].here = False
    told = f"waits for gateway {name}, which is not connected"
    return place.run(job, until=lambda found: found.note == told or not found.live, seconds=5.0)


def _silent(job: records.Job, name: str) -> None:
    assert job.error is not None
    assert (job.error.code, name in job.error.happened) == ("calls.gateway-silent", True)


def test_a_gateway_that_never_answers_ends_a_job_that_looks_first(place: ItemPlace) -> None:
    """Three times a minute; it was asked anew for as long as the server lived."""
    job = place.protect(SHOP.id)
    seen = _away(place, job, "gateway-b")
    assert seen.live
    began = place.clock.utc() - SILENT_AFTER
    done = place.run(job, seconds=5.0)
    assert done.state is JobState.FAILED
    _silent(done, "gateway-b")
    assert 150 < (place.clock.utc() - began).total_seconds() < 240
    assert place.tools.of_machine(place.vault, SHOP.id) is None, "nothing was begun"


def test_what_waits_for_a_gateway_can_be_cancelled(place: ItemPlace) -> None:
    job = place.protect(SHOP.id)
    assert _away(place, job, "gateway-b").live
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")
    assert place.run(job).state is JobState.CANCELLED


def test_a_target_lost_after_its_claim_ends_the_job_and_the_retry_finds_the_failover(
    place: ItemPlace,
) -> None:
    place.run(place.protect(SHOP.id))
    item, b = place.item(SHOP.id), place.gateways["gateway-b"]
    said = confirmations.taken_over("shop", "gateway-a")
    given = Failover(vault=item.vault_id, item=item.id, machine=SHOP.id, name="shop", confirm=said)
    job = place.worker.start(FAILOVER, given)
    place.run(job, until=lambda _job: place.item(SHOP.id).state is ProtectedState.UNPLANNED_COMPLETING)
    assert _away(place, job, "gateway-b").live
    done = place.run(job, seconds=5.0)
    assert done.state is JobState.FAILED, "kept for a retry: what was claimed is not taken back"
    _silent(done, "gateway-b")
    assert len(b.failovers.known) == 1
    b.here = True
    with place.database.write() as connection:
        place.worker.jobs.retry(connection, job, "ann")
    assert place.run(job).state is JobState.SUCCEEDED
    assert place.item(SHOP.id).state is ProtectedState.UNPLANNED_COMPLETED


@pytest.mark.parametrize("started", [True, False])
def test_a_server_that_just_started_waits_for_the_next_word_of_a_gateway(
    place: ItemPlace, started: bool
) -> None:
    """It was down for longer than a gateway may be silent: what it knows of each is old."""
    place.round()
    place.clock.advance(SILENT_AFTER.total_seconds() + 5.0)
    if started:
        object.__setattr__(place.tools, "started", place.clock.monotonic())
    job = place.protect(SHOP.id)
    for gateway in place.gateways.values():
        gateway.here = False
    for _ in range(12):
        place.round()
    found = place.worker.get(job)
    if not started:
        assert found.state is JobState.FAILED
        assert found.error is not None
        assert found.error.code == "item.gateway-not-connected"
        return
    assert found.live
    assert "waits for a word of gateway gateway-a: Gateway gateway-a is not connected" in (found.note or "")
    place.gateways["gateway-a"].here = True
    place.gateways["gateway-a"].turn()
    for _ in range(15):  # and no longer
        place.round()
    found = place.worker.get(job)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert "gateway-b" in found.error.happened
