"""Items at the edges: what was done at the gateways alone, what a server forgot, what is gone for good."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.model import confirmations, reversals
from secondsite.model.items import (
    ItemOperation,
    OperationNotAllowed,
    ProtectedState,
    allowed_operations,
    check_operation,
)
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import COMMIT, ROLL_BACK, Commit, RollBack
from secondsite.server.operations.forget import FORGET, Forget
from support.item_asks import accepted, shown
from support.items import ItemPlace, a_machine

SHOP = a_machine()
S = ProtectedState


def given(place: ItemPlace) -> dict[str, Any]:
    item = place.item(SHOP.id)
    return {"vault": item.vault_id, "item": item.id, "machine": SHOP.id, "name": "shop", "by": "ann"}


def ran(place: ItemPlace, kind: str, asked: Any) -> None:
    job = place.run(place.worker.start(kind, asked))
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)


@pytest.fixture
def committed(place: ItemPlace) -> ItemPlace:
    """The shop runs at gateway-b by a committed failover, and is held at gateway-a."""
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    said = confirmations.taken_over("shop", "gateway-a")
    ran(place, FAILOVER, Failover(**given(place), confirm=said))
    ran(place, COMMIT, Commit(**given(place), confirm=confirmations.kept("shop")))
    place.gateways["gateway-a"].holds.hold(SHOP.id)
    place.gateways["gateway-b"].replicas.pop(SHOP.id)  # its points go with a commit
    place.round()
    return place


@pytest.mark.parametrize("told_by", ["gateway-b", "gateway-a"])
def test_a_migration_completed_at_a_gateway_alone_shows_at_the_item(
    committed: ItemPlace, told_by: str
) -> None:
    """The server was away; also where the replica was retired since: only the old site still knows then."""
    place, b = committed, committed.gateways["gateway-b"]
    for gateway in place.gateways.values():
        gateway.here = False
    [over] = b.failovers.known.values()
    b.failovers.ask(over["id"], "complete-migration", {"confirm": reversals.migrated("shop")})
    if told_by == "gateway-a":
        place.gateways["gateway-a"].holds.known[SHOP.id] |= {"final": True, "epoch": over["epoch"] + 1}
        over["kept"] = "Retired"
    for gateway in place.gateways.values():
        gateway.here = True
    for _ in range(3):
        place.round()
    item = place.item(SHOP.id)
    assert (item.state, item.health, item.health_code) == (S.MIGRATED, "Normal", "")
    assert place.codes().count("item.migrated") == 1
    assert ItemOperation.REPROTECT not in allowed_operations(item.state, item.facts)
    for operation in (ItemOperation.REPROTECT, ItemOperation.FAILBACK):
        with pytest.raises(OperationNotAllowed, match="MigrationCompleted"):
            check_operation(item.name, item.state, item.facts, operation)
    # the site it left is not waited for, nor is it missed
    place.gateways["gateway-a"].here = False
    place.parts.reports.connected = lambda: [b.who.id]
    place.parts.reports.sweep()
    assert place.item(SHOP.id).health == "Normal"


def test_a_standing_failover_without_any_gateway_is_given_up_and_comes_back_with_them(
    place: ItemPlace,
) -> None:
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    ran(place, FAILOVER, Failover(**given(place), confirm=confirmations.taken_over("shop", "gateway-a")))
    # one of its gateways can be asked: the API neither shows nor begins it
    assert "forget" not in shown(place, place.item(SHOP.id)) | accepted(place, place.item(SHOP.id))
    there = place.run(place.worker.start(FORGET, Forget(**given(place))))
    assert there.error is not None
    assert there.error.code == "item.gateway-still-there"
    a, b = place.gateways["gateway-a"], place.gateways["gateway-b"]
    a.here = b.here = False
    place.clock.advance(3600)
    assert "forget" in shown(place, place.item(SHOP.id)) & accepted(place, place.item(SHOP.id))
    ran(place, FORGET, Forget(**given(place)))
    item = place.item(SHOP.id)
    assert (item.state, item.enabled) == (S.UNPROTECTED, False)
    assert "gateway-a and gateway-b" in item.left_behind
    assert "item.forgotten" in place.codes()
    # back after all: nothing of it is ended or deleted, and it is an item that can be ended in order
    known = dict(b.failovers.known)
    a.here = b.here = True
    for _ in range(6):
        place.round(20)
    assert SHOP.id in a.protections
    assert b.failovers.known == known
    assert b.replicas[SHOP.id].points
    item = place.item(SHOP.id)
    assert item.state is S.UNPLANNED_COMPLETED
    ran(place, ROLL_BACK, RollBack(**given(place), confirm=confirmations.lost("shop")))
