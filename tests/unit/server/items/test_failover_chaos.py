"""Failovers while everything around them fails: workers die, answers are lost, gateways restart and are away.

Whatever happens, each job comes to its end, a machine is claimed once for each failover asked for, and the
item says what its gateway says. `SECONDSITE_MATRIX=full` tries more.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, FailoverState
from secondsite.model.itemfailovers import BACK, state_of
from secondsite.server.calls.service import Calls
from secondsite.server.jobs.states import ENDED, JobState
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import COMMIT, ROLL_BACK, Commit, RollBack
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER, PlannedFailover
from secondsite.transfer.calls import Answer
from support.items import ItemPlace, a_machine

SHOP = a_machine()
FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
SEEDS = range(200) if FULL else range(4)
ROUNDS_MAX = 600


class Storm:
    """One machine, and trouble as the seed says."""

    def __init__(self, place: ItemPlace, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.chance = place, random.Random(seed)
        self.there = place.gateways["gateway-b"].failovers
        self.stops = place.gateways["gateway-a"].stops
        self.stops.last_point = lambda: self.there.last
        self.stops.taken = lambda machine: any(
            one["machine"] == machine and one.get("epoch") and one["state"] != "CancelFailoverCompleted"
            for one in self.there.known.values()
        )
        self.calm = False
        taken = Calls.answer

        def sometimes(calls: Calls, gateway: str, answer: Answer) -> None:
            if self.calm or self.chance.random() > 0.25:
                taken(calls, gateway, answer)

        monkeypatch.setattr(Calls, "answer", sometimes)

    def given(self) -> dict[str, Any]:
        item = self.place.item(SHOP.id)
        return {"vault": item.vault_id, "item": item.id, "machine": SHOP.id, "name": "shop", "by": "ann"}

    def begin(self) -> str:
        self.there.claims_badly = self.chance.choice([0, 0, 0, 1])
        self.there.boots_badly = self.chance.choice([0, 0, 1])
        if self.chance.random() < 0.5:
            self.stops.stubborn = self.chance.choice([0, 1])
            said = confirmations.moved("shop", "gateway-a", "gateway-b")
            return self.place.worker.start(PLANNED_FAILOVER, PlannedFailover(**self.given(), confirm=said))
        said = confirmations.taken_over("shop", "gateway-a")
        tried = self.chance.random() < 0.5
        wanted = Failover(**self.given(), confirm=said, shut_down=tried, shut_down_seconds=20.0)
        return self.place.worker.start(FAILOVER, wanted)

    def end(self) -> str:
        if self.chance.random() < 0.3:
            self.there.commits_badly = self.chance.choice([0, 1])
            return self.place.worker.start(COMMIT, Commit(**self.given(), confirm=confirmations.kept("shop")))
        self.there.rolls_back_badly = self.chance.choice([0, 1])
        return self.place.worker.start(
            ROLL_BACK, RollBack(**self.given(), confirm=confirmations.lost("shop"))
        )

    def run(self, job: str) -> JobState:
        """To its end; what asks is answered, what failed is sometimes tried again, sometimes cancelled."""
        place = self.place
        for turn in range(ROUNDS_MAX):
            self.calm = turn > 150
            found = place.worker.get(job)
            if found.state in ENDED:
                if found.state is JobState.FAILED and "retry" in found.allowed and self.chance.random() < 0.7:
                    with place.database.write() as connection:
                        place.worker.jobs.retry(connection, job, "ann")
                    continue
                return found.state
            if found.state is JobState.SUSPENDED:
                with place.database.write() as connection:
                    said = self.chance.choice(["wait", "power-off"])
                    place.worker.jobs.resume(connection, job, said, "ann")
            elif not self.calm:
                self._trouble(job)
            place.round()
        raise AssertionError("\n".join(place.worker.log(job)))

    def _trouble(self, job: str) -> None:
        place, luck = self.place, self.chance.random()
        if luck < 0.05:
            place.gateways[self.chance.choice(["gateway-a", "gateway-b"])].kept.clear()
        elif luck < 0.10:
            place.gateways["gateway-a"].here = not place.gateways["gateway-a"].here
        elif luck < 0.13:
            with place.database.write() as connection:
                found = place.worker.get(job)
                if "cancel" in found.allowed:
                    place.worker.jobs.cancel(connection, job, "ann")
        elif luck < 0.22:
            place.clock.advance(6.0)
            if place.worker.claims.take(1, place.worker.stop):  # it dies without a word
                place.worker.succeeded_by_a_peer()

    def settle(self) -> None:
        """Nothing is asked any more; the gateways do what they have begun and report."""
        self.calm = True
        for gateway in self.place.gateways.values():
            gateway.here = True
        for _ in range(12):
            for one in self.there.known.values():
                self.there.work(one)
            self.place.round()

    def check(self) -> None:
        """The item says what the gateway says, and nothing runs twice."""
        item = self.place.item(SHOP.id)
        assert not item.live_job
        assert len(self.there.begun) == len(set(self.there.begun)), "one operation was begun twice"
        standing = [one for one in self.there.known.values() if FailoverState(one["state"]) not in BACK]
        assert len(standing) <= 1
        if not standing:
            assert item.state.value == "Protected", item.state
            stop = self.stops.known.get(SHOP.id)
            claimed = any(one.get("epoch") for one in self.there.known.values())  # given back by its gateway
            left = "item.left-stopped" in self.place.codes()
            assert stop is None or stop["state"] in ("Cancelled", "Waiting", "Failed") or claimed or left
            return
        one = standing[0]
        to = state_of(FailoverKind(one["kind"]), FailoverState(one["state"]), failed=one["error"] is not None)
        assert item.state is to
        assert item.failover_id == one["id"]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_fails_one_claim_and_one_story(
    place: ItemPlace, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert place.run(place.protect(SHOP.id)).state is JobState.SUCCEEDED
    storm = Storm(place, seed, monkeypatch)
    for _ in range(3):
        storm.run(storm.begin())
        storm.settle()
        storm.check()
        if place.item(SHOP.id).state.value.endswith(("FailoverCompleted", "FailoverCompletionFailed")):
            storm.run(storm.end())
            storm.settle()
            storm.check()
        if place.item(SHOP.id).state.value != "Protected":
            return
