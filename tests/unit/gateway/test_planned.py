"""Moving a machine in order between two whole gateways: stopped, nothing lost, proved; or cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest import mock

import pytest

from secondsite.base.crash import MARKS
from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.failover.claim import AFTER_CLAIM, BEFORE_CLAIM
from secondsite.gateway.messages.failover import (
    ChangePoint,
    FailoverStatus,
    PlannedStop,
    PlannedStopStatus,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.source import plannedstop
from secondsite.gateway.source.plannedstop import VOIDED
from secondsite.gateway.target.receive import GatewayReceiver
from secondsite.model.failover import FailoverKind, FailoverState, HeldState
from secondsite.model.ids import DiskId
from secondsite.model.machines import PowerState
from secondsite.transfer.errors import LinkDown
from secondsite.transfer.protocols import StopNote
from support.gateway_pair import A
from support.two_sites import LOST, OPERATION, Two, two_sites
from support.until import until

STOP = "5" * 32
STOPPED = f"shop was stopped at {A}"


@pytest.fixture
def two() -> Iterator[Two]:
    with two_sites() as made:
        yield made


def stop(two: Two, **how: object) -> PlannedStopStatus:
    with two.at_a() as client:
        client.stop_in_order("shop", PlannedStop(operation=STOP, **how))  # type: ignore[arg-type]
        passing = ("ShuttingDown", "LastChanges", "Proving")
        until(lambda: client.planned_stop("shop").state not in passing, "an end of the stop")
        return client.planned_stop("shop")


def power(two: Two) -> PowerState:
    return two.a_fabric.machines()[0].power


def test_a_machine_is_moved_with_nothing_lost_and_moved_back(two: Two) -> None:
    two.take_point(b"one" * 1000)
    two.a_fabric.write(two.machine, "vdb", 4096, b"written while it shuts down" * 100)
    stopped = stop(two)
    assert (stopped.state, stopped.shut_down_by, stopped.proved) == ("Completed", "agent", True)
    assert stopped.point == two.journal.points()[-1].number
    assert power(two) is PowerState.OFF
    assert two.a_fabric.isolated(two.machine) is not None
    with two.at_a() as client:
        again = client.stop_in_order("shop", PlannedStop(operation=STOP))
        assert again == stopped, "asked again it is the same stop"
    with two.at_b() as client:
        request = StartFailover(
            operation=OPERATION, point="latest", kind=FailoverKind.PLANNED, confirm="shop may still run"
        )
        with pytest.raises(RemoteError, match="was not confirmed"):
            client.start_failover("shop", request)
        old = StartFailover(
            operation="6" * 32, point=str(stopped.point - 1), kind=FailoverKind.PLANNED, confirm=STOPPED
        ) if stopped.point is not None else request  # fmt: skip
        client.start_failover("shop", old)
        until(lambda: client.failover("6" * 32).state is FailoverState.FAILED, "a refusal")
        assert (client.failover("6" * 32).error or {})["code"] == "failover.point-not-last"
        client.start_failover(
            "shop",
            StartFailover(operation=OPERATION, point="latest", kind=FailoverKind.PLANNED, confirm=STOPPED),
        )
        moved = two.ended(FailoverState.COMPLETED)
        assert (moved.point, moved.loss_seconds, moved.stop) == (stopped.point, 0.0, STOP)
    for disk in ("vda", "vdb"):
        content = two.a_fabric.content(two.machine, disk)
        assert two.read(disk, 0, len(content)) == content
    with two.at_b() as client:  # turned to another point and back nothing is lost, as before
        for point, lost in ((moved.point - 1, True), (moved.point, False)):
            client.change_point(OPERATION, ChangePoint(point=str(point), confirm=LOST))
            until(lambda point=point: client.failover(OPERATION).point == point, "another point")  # type: ignore[misc]
            assert bool(two.ended(FailoverState.COMPLETED).loss_seconds) is lost
    two.wait_held()
    with two.at_a() as client, pytest.raises(RemoteError, match="was taken over by"):
        client.cancel_stop("shop")
    with two.at_b() as client:
        client.roll_back(OPERATION, RollBackFailover(confirm=LOST))
        two.ended(FailoverState.ROLLED_BACK)
    two.wait_held(HeldState.RETURNED)
    until(lambda: power(two) is PowerState.RUNNING, "the source started")
    until(lambda: two.journal.points()[-1].epoch == 3, "a point of the new epoch")


def move(two: Two, operation: str = OPERATION, point: str = "latest") -> None:
    with two.at_b() as client:
        request = StartFailover(operation=operation, point=point, kind=FailoverKind.PLANNED, confirm=STOPPED)
        client.start_failover("shop", request)


def refused(two: Two, operation: str) -> str:
    with two.at_b() as client:
        until(lambda: client.failover(operation).state is FailoverState.FAILED, "a refusal")
        return (client.failover(operation).error or {})["code"]


def test_nothing_is_moved_in_order_whose_stop_is_not_in_force(two: Two) -> None:
    move(two, "1" * 32)
    assert refused(two, "1" * 32) == "failover.not-stopped", "it runs, and nobody stopped it"
    stopped = stop(two)
    held_up = LinkDown(peer=A, why="held up")
    with two.at_a() as client, mock.patch.object(GatewayReceiver, "commit", side_effect=held_up):
        client.cancel_stop("shop")  # it runs again, and no point says so
        assert two.journal.points()[-1].number == stopped.point
        move(two, "2" * 32)
        assert refused(two, "2" * 32) == "failover.not-stopped"
        link = two.a.protections.handles.ways()[0][2] if two.a and two.a.protections else None
        assert link is not None
        note = StopNote(machine=two.machine, operation=STOP, point=stopped.point or 0)
        with pytest.raises(RemoteError, match="was cancelled"):
            link.note_stop(note)  # sent before the cancel, and on its way since
        move(two, "3" * 32)
        assert refused(two, "3" * 32) == "failover.not-stopped"
    assert two.a_fabric.runs(two.machine)
    assert two.journal.head().epoch == 1


@pytest.mark.parametrize("who", ["cancel", "claim", "both"])
def test_of_a_cancel_and_a_claim_in_the_same_moment_no_zero_loss_is_noted_where_it_ran(
    two: Two, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Who is quick: the cancel comes just before the claim, the claim asks just after it, or each waits."""
    stop(two)
    answers: list[str] = []
    at = {name: threading.Event() for name in (BEFORE_CLAIM, AFTER_CLAIM, VOIDED)}

    def cancel() -> None:
        with two.at_a() as client:
            try:
                answers.append(client.cancel_stop("shop").state)
            except RemoteError as error:
                answers.append(str(error.body["code"]))

    def claimed() -> FailoverStatus:
        move(two)
        with two.at_b() as client:
            until(lambda: client.failover(OPERATION).state is not FailoverState.INITIATED, "the claim")
            return client.failover(OPERATION)

    cancelling = threading.Thread(target=cancel)

    def crash_point(name: str) -> None:
        if name not in at or at[name].is_set():
            return
        at[name].set()
        if name == BEFORE_CLAIM and who != "claim":
            cancelling.start()
            cancelling.join(20) if who == "cancel" else at[VOIDED].wait(20)
        elif name == VOIDED and who == "claim":
            assert refused(two, claimed().id) == "failover.not-stopped"
        elif name == VOIDED and who == "both":
            at[AFTER_CLAIM].wait(20)

    monkeypatch.setattr(plannedstop, "crash_point", crash_point)
    monkeypatch.setattr(failoverclaim, "crash_point", crash_point)
    if who == "claim":
        cancel()
        assert answers == ["Cancelled"]
        assert two.a_fabric.runs(two.machine)
        return
    moved = claimed()
    cancelling.join(20)
    assert answers == ["Cancelled" if who == "cancel" else "failover.taken-over"]
    assert (moved.stop, bool(moved.loss_seconds)) == (None, True), "nobody can say that it wrote nothing"
    two.wait_held()
    assert not two.a_fabric.runs(two.machine)


def test_a_guest_that_does_not_shut_down_is_asked_about_and_a_stop_can_be_cancelled(two: Two) -> None:
    two.a_fabric.deaf.add(two.machine)
    waits = stop(two, seconds_max=1)
    assert waits.state == "Waiting"
    assert "have it switched off" in waits.note
    assert two.a_fabric.runs(two.machine), "nobody switched it off unasked"
    newest = two.journal.points()[-1].number
    until(lambda: two.journal.points()[-1].number > newest, "replication going on")
    done = stop(two, seconds_max=1, power_off=True)
    assert (done.state, done.shut_down_by, done.proved) == ("Completed", "power off", True)
    two.stop_a()
    two.start_a()  # a restart changes nothing about it
    newest = two.journal.head().number
    with two.at_a() as client:
        assert client.cancel_stop("shop").state == "Cancelled"
        assert client.cancel_stop("shop").state == "Cancelled"
    assert two.a_fabric.runs(two.machine)
    assert two.a_fabric.isolated(two.machine) is None
    until(lambda: two.journal.head().number > newest, "replication going on")
    assert two.journal.head().epoch == 1


def test_a_proof_that_fails_is_told_and_the_machine_is_not_called_moved(two: Two) -> None:
    disk = two.a_fabric._find(two.machine).disks[DiskId("vda")]
    disk.write(0, b"past the hypervisor", tracked=False)
    failed = stop(two)
    assert (failed.state, failed.proved) == ("Failed", False)
    assert (failed.error or {})["code"] == "planned.differs"
    assert "vda differ" in (failed.error or {})["happened"]
    with two.at_a() as client:
        assert client.cancel_stop("shop").state == "Cancelled"
    assert two.a_fabric.runs(two.machine)


def test_a_machine_whose_changes_cannot_travel_is_not_asked_to_shut_down(two: Two) -> None:
    with two.at_a() as client:
        client.pause("shop", by="ann")
        with pytest.raises(RemoteError, match="paused by ann"):
            client.stop_in_order("shop", PlannedStop(operation=STOP))
        client.resume("shop", by="ann")
        two.pair.stop_b()
        with pytest.raises(RemoteError):
            client.stop_in_order("shop", PlannedStop(operation=STOP))
    assert two.a_fabric.runs(two.machine)


class Killed(BaseException):
    """The gateway ended here."""


def test_killed_at_every_mark_of_a_stop_the_next_gateway_goes_on(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = sorted(mark for mark in MARKS if mark.startswith("planned."))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    for number, mark in enumerate(marks):
        died = threading.Event()

        def crash_point(name: str, mark: str = mark, died: threading.Event = died) -> None:
            if name == mark and not died.is_set():
                died.set()
                raise Killed

        monkeypatch.setattr(plannedstop, "crash_point", crash_point)
        with two.at_a() as client:
            client.stop_in_order("shop", PlannedStop(operation=f"{number:032x}"))
            until(died.is_set, f"the gateway's death at {mark}")
        two.stop_a()
        assert not two.a_fabric.runs(two.machine), "whatever the mark, nothing runs unnoticed"
        two.start_a()
        with two.at_a() as client:
            until(lambda: client.planned_stop("shop").state == "Completed", f"an end after {mark}")
            done = client.planned_stop("shop")
            assert (done.operation, done.proved) == (f"{number:032x}", True)
            assert power(two) is PowerState.OFF
            client.cancel_stop("shop")
        assert two.a_fabric.runs(two.machine)


def test_killed_in_the_middle_of_a_cancel_the_next_gateway_lets_it_run(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(two)
    died = threading.Event()

    def crash_point(name: str) -> None:
        if name == VOIDED and not died.is_set():
            died.set()
            raise SecondsiteError  # what a caller sees of it; nothing more is done

    monkeypatch.setattr(plannedstop, "crash_point", crash_point)
    with two.at_a() as client, pytest.raises(RemoteError):
        client.cancel_stop("shop")
    assert died.is_set()
    two.stop_a()
    assert not two.a_fabric.runs(two.machine)
    two.start_a()
    until(lambda: two.a_fabric.runs(two.machine), "the cancel going on")
    move(two)
    assert refused(two, OPERATION) in {"failover.not-stopped", "failover.point-not-last"}
