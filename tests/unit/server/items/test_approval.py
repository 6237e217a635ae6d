"""Ending a protection where the vault demands a second person for it: nothing is touched before."""

from __future__ import annotations

import pytest

from secondsite.model.items import ProtectedState
from secondsite.server.jobs.states import JobState
from secondsite.server.people.approval_errors import FourEyes
from secondsite.server.people.approvals import Approvals
from secondsite.server.people.asking import Verdict, set_demanded
from secondsite.server.people.audit import Audit
from secondsite.server.people.roles import Actor
from support.items import ItemPlace, a_machine, end

SHOP = a_machine()


@pytest.fixture
def approvals(place: ItemPlace) -> Approvals:
    """Deleting a replica is demanded to be approved; ending a protection is not."""
    with place.database.write() as connection:
        set_demanded(connection, place.vault, {"disable-with-replica": 1})
    made = Approvals(place.database, Audit(place.database, bytes(32)), place.worker.jobs)
    place.worker.jobs.on_approval = made.asked
    place.run(place.protect(SHOP.id))
    place.round()
    return made


def test_a_replica_is_deleted_when_another_has_approved(place: ItemPlace, approvals: Approvals) -> None:
    asked = end(place, place.item(SHOP.id), with_replica=True)
    assert asked.state is JobState.SUSPENDED
    assert asked.question is not None
    assert asked.question.approval == "disable-with-replica"
    for _ in range(3):
        place.round()
    assert place.item(SHOP.id).enabled
    assert place.gateways["gateway-a"].protections
    assert place.gateways["gateway-b"].replicas
    with pytest.raises(FourEyes):
        approvals.vote(Actor(asked.actor, "token:1"), asked.id, Verdict.APPROVED, "")
    approvals.vote(Actor("bob", "token:2"), asked.id, Verdict.APPROVED, "")
    assert place.run(asked.id).state is JobState.SUCCEEDED
    assert place.item(SHOP.id).state is ProtectedState.UNPROTECTED
    assert not place.gateways["gateway-b"].replicas


def test_what_is_rejected_goes_on_being_protected(place: ItemPlace, approvals: Approvals) -> None:
    asked = end(place, place.item(SHOP.id), with_replica=True)
    approvals.vote(Actor("bob", "token:2"), asked.id, Verdict.REJECTED, "we still need it")
    assert place.run(asked.id, until=lambda job: job.state is JobState.FAILED).error is not None
    item = place.item(SHOP.id)
    assert item.enabled
    assert item.state is not ProtectedState.DISABLING
    assert place.gateways["gateway-b"].replicas


def test_without_its_replica_it_waits_for_nobody(place: ItemPlace, approvals: Approvals) -> None:
    assert end(place, place.item(SHOP.id), with_replica=False).state is JobState.SUCCEEDED
    assert approvals.waiting(vaults=None) == []
