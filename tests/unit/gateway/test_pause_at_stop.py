"""A pause beside other things that change what runs: no point is captured or left to come after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest

from secondsite.gateway.messages.failover import PlannedStop
from secondsite.gateway.source.plannedstop import PlannedStops
from secondsite.gateway.source.replicate import Replication
from secondsite.gateway.source.runtime import Protections
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.transfer.errors import LinkDown
from secondsite.transfer.protocols import CommittedPoint, TargetHead
from support.gateway_pair import A
from support.two_sites import Two, two_sites
from support.until import until

STOP = PlannedStop(operation="5" * 32, prove=False)


@pytest.fixture
def two() -> Iterator[Two]:
    with two_sites() as made:
        yield made


def protections(two: Two) -> Protections:
    assert two.a is not None
    assert two.a.protections is not None
    return two.a.protections


def replication(two: Two) -> Replication:
    return protections(two).handles.running[two.machine]


@contextlib.contextmanager
def held_up(two: Two) -> Iterator[list[str]]:
    """One more instant is captured as a stop sees its last point; its commit waits until that is cleared."""
    commit, look = GatewayReceiver.commit, PlannedStops._require_ours
    why: list[str] = []
    done: list[bool] = []

    def commits(receiver: GatewayReceiver, peer: Any, proposal: Any) -> CommittedPoint:
        if why:
            raise LinkDown(peer=A, why=why[0])
        return commit(receiver, peer, proposal)

    def looks(stops: PlannedStops, machine: Any, name: str) -> TargetHead:
        head = look(stops, machine, name)
        seen = head.point
        status = stops._read(machine)
        steps = status.steps if status is not None else ()
        if seen is not None and not done and steps and seen.asked_at >= steps[-1].started_at:
            done.append(True)
            why.append("held up")
            running = replication(two)
            running.hurry()
            until(lambda: bool(running._line.pending), "another instant")
        return head

    with (
        mock.patch.object(GatewayReceiver, "commit", commits),
        mock.patch.object(PlannedStops, "_require_ours", looks),
        two.at_a() as client,
    ):
        client.stop_in_order("shop", STOP)
        until(lambda: "captured after" in client.planned_stop("shop").note, "the stop waits for it")
        yield why


def test_a_stop_leaves_no_instant_that_becomes_a_point_of_a_paused_machine(two: Two) -> None:
    with held_up(two) as why, two.at_a() as client:
        why.clear()
        until(lambda: client.planned_stop("shop").state == "Completed", "stopped")
        stopped = client.planned_stop("shop")
        assert stopped.point == two.journal.head().number, "that instant, too, is a point now"
        client.pause("shop", by="ann")
        client.cancel_stop("shop")
        running = protections(two).handles.running
        until(lambda: two.machine in running and replication(two)._planned, "its loop, at rest")
    assert not replication(two)._line.pending, "nothing is on its way"
    assert two.journal.head().number == stopped.point


def test_a_failover_that_does_not_wait_for_that_instant_ends_the_stop(two: Two) -> None:
    with held_up(two), two.at_a() as client:
        two.start()
        until(lambda: client.planned_stop("shop").state == "Failed", "the stop's end")
        error = client.planned_stop("shop").error or {}
        assert error["code"] == "failover.taken-over"


def test_a_stop_says_that_it_waits_for_a_replication_that_was_paused_meanwhile(two: Two) -> None:
    with two.at_a() as client:
        with mock.patch.object(GatewayReceiver, "commit", side_effect=LinkDown(peer=A, why="held up")):
            client.stop_in_order("shop", STOP)
            client.pause("shop", by="ann")
            until(lambda: "paused by ann" in client.planned_stop("shop").note, "it says so")
        client.resume("shop", by="ann")
        until(lambda: client.planned_stop("shop").state == "Completed", "stopped")
        assert not client.planned_stop("shop").note


def test_a_pause_outlives_an_older_word_of_the_server(two: Two) -> None:
    """It was taken before the pause, and whoever took it has its loop follow it after that."""
    kept = protections(two)._desired
    before = kept.get(two.machine)
    assert before is not None
    taken = msgspec.structs.replace(before, policy_name="another")
    with two.at_a() as client:
        client.pause("shop", by="ann")
    kept.turn(two.machine, lambda _: msgspec.structs.replace(taken, paused_by="ann"))
    protections(two).follow(before, taken)
    assert replication(two)._orders.paused_by == "ann"
    assert kept.get(two.machine) == msgspec.structs.replace(taken, paused_by="ann")
