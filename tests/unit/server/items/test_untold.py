"""A gateway that lost machines while it was away is not let go before it knows."""

from __future__ import annotations

import pytest

from secondsite.model import confirmations
from secondsite.model.items import ProtectedState
from secondsite.server.identity.errors import GatewayNotTold
from secondsite.server.items.records import job_input
from secondsite.server.items.untold import untold
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import COMMIT, ROLL_BACK, Commit, RollBack
from support.items import ItemPlace, a_machine

SHOP = a_machine()


def _lost(place: ItemPlace) -> None:
    """Taken over while its source is away."""
    place.run(place.protect(SHOP.id))
    there = place.gateways["gateway-b"].failovers
    there.writer = "gateway-a"
    place.gateways["gateway-a"].here = False
    said = confirmations.taken_over("shop", "gateway-a")
    given = Failover(**job_input(place.item(SHOP.id)), confirm=said)
    assert place.run(place.worker.start(FAILOVER, given)).state is JobState.SUCCEEDED
    place.round()


def _untold(place: ItemPlace, name: str) -> str:
    with place.database.read() as connection:
        return untold(connection, name)


def test_it_stays_registered_until_it_holds_them(each_place: ItemPlace) -> None:
    place = each_place
    assert _untold(place, "gateway-a") == ""
    _lost(place)
    kept = Commit(**job_input(place.item(SHOP.id)), confirm=confirmations.kept("shop"))
    assert place.run(place.worker.start(COMMIT, kept)).state is JobState.SUCCEEDED
    given = Disable(**job_input(place.item(SHOP.id)), with_replica=False, force=True)
    assert place.run(place.worker.start(DISABLE, given)).state is JobState.SUCCEEDED
    assert place.item(SHOP.id).state is ProtectedState.UNPROTECTED, "no item needs it any more"
    with pytest.raises(GatewayNotTold, match=r"gateway-a has not learnt that other sites took over shop\."):
        place.identity.gateways.unregister("gateway-a", why="its host is given up")
    epoch = place.gateways["gateway-b"].failovers.epoch
    back = place.gateways["gateway-a"]
    back.here = True
    for learnt, left in ((epoch - 1, "shop"), (epoch, "")):  # an older claim is another story
        back.holds.hold(SHOP.id, epoch=learnt)
        back.report()
        assert _untold(place, "gateway-a") == left
    assert _untold(place, "gateway-b") == ""
    place.identity.gateways.unregister("gateway-a", why="its host is given up")


def test_it_may_be_let_go_all_the_same(place: ItemPlace) -> None:
    _lost(place)
    assert _untold(place, "gateway-a") == "shop"
    place.identity.gateways.unregister("gateway-a", why="it burnt", in_use=True)


def test_what_was_rolled_back_is_its_own_again(place: ItemPlace) -> None:
    _lost(place)
    given = RollBack(**job_input(place.item(SHOP.id)), confirm=confirmations.lost("shop"))
    assert place.run(place.worker.start(ROLL_BACK, given)).state is JobState.SUCCEEDED
    assert _untold(place, "gateway-a") == ""
