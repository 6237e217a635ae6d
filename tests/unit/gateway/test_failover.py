"""Failing over between two whole gateways in this process: claim, fence, other points, roll-back, commit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import MIB
from secondsite.cli.gateway.status import _protection_row
from secondsite.fabrics.errors import HypervisorUnreachable
from secondsite.gateway.failover import drop as failoverdrop
from secondsite.gateway.messages.failover import (
    ChangePoint,
    CommitFailover,
    Decide,
    RemoveFormer,
    RollBackFailover,
)
from secondsite.gateway.messages.gateway import ExportRequest, Health, HoldRequest, ProtectionState
from secondsite.gateway.messages.testfailover import StartTestFailover
from secondsite.gateway.messages.verdicts import VerifyRequest
from secondsite.journal.chain_errors import HeadMoved
from secondsite.journal.names import segments_prefix
from secondsite.model.failover import FailoverState, HeldState
from secondsite.model.ids import DiskId
from secondsite.model.machines import PowerState
from secondsite.model.points import Point
from support.gateway_pair import A, B
from support.two_sites import KEPT, LOST, OPERATION, SURE, Two, two_sites
from support.until import until

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def two() -> Iterator[Two]:
    with two_sites() as made:
        yield made


def test_a_machine_is_taken_over_and_its_source_held(two: Two) -> None:
    two.take_point(b"one" * 1000)
    newest = two.take_point(b"two" * 1000)
    with two.at_b() as client:
        seen = client.preview_failover("shop")
        assert (seen.point >= newest, seen.writer, seen.confirm) == (True, A, SURE)
        assert 0 <= seen.expected_loss_seconds < 60
        assert all(check.passed or not check.required for check in seen.checks)
    with pytest.raises(RemoteError, match="was not confirmed"):
        two.start(confirm="yes")
    assert two.journal.head().epoch == 1
    assert two.b_fabric.recovered() == []

    two.start()
    two.start()  # an answer that was lost is asked for again
    status = two.ended(FailoverState.COMPLETED)
    claim = two.journal.head().claim
    assert claim is not None
    assert (claim.epoch, claim.claimant, claim.reason, claim.nonce) == (2, B, "failover", OPERATION)
    assert (status.epoch, status.claimed_at) == (2, claim.claimed_at)
    assert status.loss_seconds is not None
    assert [step.name for step in status.steps] == [
        "claimed in the store",
        "point exported",
        "machine started",
    ]
    [recovered] = two.b_fabric.recovered()
    assert recovered.id == two.machine, "it is the machine itself, not a copy of another name"
    assert two.read("vda", 64 * 1024, 6) == b"twotwo"
    with pytest.raises(RemoteError, match="has a failover already"):
        two.start(operation="f" * 32)
    with two.at_b() as client:
        until(lambda: client.failover(OPERATION).userspace_at is not None, "a sign of life")

    two.wait_held()
    assert not two.a_fabric.runs(two.machine)
    _says_that_it_is_held(two)
    [held] = two.at_a().held()
    assert (held.claimant, held.epoch, held.last_point) == (B, 2, status.point)
    assert two.a_fabric.open_source(two.machine).checkpoints() != [], "what tracks its last writes is kept"
    assert two.journal.head().number == claim.number, "nothing was committed after the claim"


def _says_that_it_is_held(two: Two) -> None:
    """And nothing of a point that would be its own; the loop of its cycles need not have looked."""
    with two.at_a() as client:
        [shown] = client.status().protections
        assert (shown.code, shown.health) == ("replicate.held", Health.CRITICAL)
        assert f"held: {B} took it over in epoch 2" in shown.note
        assert (shown.last_point, shown.last_point_at, shown.rpo_seconds) == (None, None, None)
        assert shown.last_consistency is None
        row = "".join(str(part) for part in _protection_row(shown))
        assert "none" not in row, "it has points, of which none is its own now"


def test_a_held_source_stays_held_through_restarts_until_a_person_decides(two: Two) -> None:
    two.start()
    two.ended(FailoverState.COMPLETED)
    two.wait_held()
    two.stop_a()
    two.a_fabric.lift_isolation(two.machine, run=True)  # somebody undoes it by hand at the host
    two.start_a()
    until(lambda: not two.a_fabric.runs(two.machine), "held again")
    with two.at_a() as client:
        with pytest.raises(RemoteError, match="was not confirmed"):
            client.release_held("shop", Decide(epoch=2, confirm="yes"))
        asked = Decide(epoch=2, confirm=f"shop may run at {B} as well", by="ann")
        assert client.release_held("shop", asked).state is HeldState.RELEASED
        assert client.release_held("shop", asked).decided_by == "ann"
    assert two.a_fabric.runs(two.machine)
    two.stop_a()
    two.start_a()  # sees the same claim again, which a person has decided about
    with two.at_a() as client:
        until(lambda: client.status().protections[0].state is ProtectionState.PAUSED, "Paused")
        assert two.a_fabric.runs(two.machine)
        discard = Decide(epoch=2, confirm="what shop wrote here last is given up", by="ann")
        assert client.discard_held("shop", discard).state is HeldState.DISCARDED
    assert two.journal.head().epoch == 2


def test_other_claims_hold_nothing(two: Two) -> None:
    journal = two.journal

    def claimed() -> bool:
        head, clock = journal.head(), FakeClock(NOW)
        try:
            journal.claim(name="shop", claimant="gateway-c", reason="resync", clock=clock, expected=head)
        except HeadMoved:
            return False  # the source committed a point in between
        return True

    until(claimed, "a claim")
    with two.at_a() as client:
        until(lambda: client.status().protections[0].state is ProtectionState.PAUSED, "Paused")
        assert client.held() == []
    assert two.a_fabric.runs(two.machine)


def test_another_point_then_rolled_back_goes_on_without_a_full_copy(two: Two) -> None:
    older = two.take_point(b"one" * 1000)
    newer = two.take_point(b"two" * 1000)
    two.start(point=str(newer))
    two.ended(FailoverState.COMPLETED)
    two.wait_held()
    with two.at_b() as client:
        with pytest.raises(RemoteError, match="was not confirmed"):
            client.change_point(OPERATION, ChangePoint(point=str(older)))
        client.change_point(OPERATION, ChangePoint(point=str(older), confirm=LOST))
        status = two.ended(FailoverState.COMPLETED)
        assert (status.point, status.points_tried) == (older, (newer,))
        assert two.read("vda", 64 * 1024, 6) == b"oneone"
        [former] = status.former_writes
        assert (former.point, former.bytes) == (newer, sum(two.b_fabric.aside.values()))
        assert set(former.files) == set(two.b_fabric.aside)
        with pytest.raises(RemoteError, match="was not confirmed"):
            client.remove_former(OPERATION, RemoveFormer())
        asked = RemoveFormer(confirm="what shop wrote on former points is lost", point=newer)
        assert client.remove_former(OPERATION, asked).former_writes == ()
        assert client.remove_former(OPERATION, asked).former_writes == ()
        assert two.b_fabric.aside == {}
        assert two.journal.head().epoch == 2, "the authority did not change"
        client.roll_back(OPERATION, RollBackFailover(confirm=LOST))
        two.ended(FailoverState.ROLLED_BACK)
        client.roll_back(OPERATION, RollBackFailover(confirm=LOST))
    assert two.b_fabric.recovered() == []
    claim = two.journal.head().claim
    assert claim is not None
    assert (claim.epoch, claim.claimant, claim.reason) == (3, A, "roll-back")
    assert two.journal.state().pins == ()
    two.wait_held(HeldState.RETURNED)
    until(lambda: two.a_fabric.runs(two.machine), "the source let go")
    with two.at_a() as client:
        until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected again")
    last = two.take_point(b"end" * 1000)
    point: Point = two.journal.point(last)
    assert point.epoch == 3
    assert point.changed_bytes <= 128 * 1024, "an increment, not a copy"
    assert {disk.id for disk in point.disks} == {DiskId("vda"), DiskId("vdb")}


@pytest.mark.parametrize(
    "trouble",
    ["the export was lost", HypervisorUnreachable(uri="test:///", why="Connection reset by peer")],
    ids=["export", "hypervisor"],
)
def test_a_commit_needs_a_running_machine_and_leaves_nothing_of_ours_beneath(
    two: Two, trouble: str | HypervisorUnreachable
) -> None:
    two.start()
    two.ended(FailoverState.COMPLETED)
    [recovered] = two.b_fabric.recovered()
    with two.at_b() as client:
        two.b_fabric.switch_off_recovered(recovered.id)
        with pytest.raises(RemoteError, match=r"does not run \(off\)"):
            client.commit_failover(OPERATION, CommitFailover(confirm=KEPT))
        two.b_fabric.run_recovered(recovered)
        two.b_fabric.fail_flattening(trouble)
        client.commit_failover(OPERATION, CommitFailover(confirm=KEPT))
        status = two.ended(FailoverState.COMMITTED)
        assert status.flattened_bytes == status.total_bytes == 3 * MIB
        assert any(entry.event.code == "failover.flattening-stopped" for entry in client.events())
        until(lambda: client.failover(OPERATION).points_deleted_at is not None, "its points deleted")
        assert client.exports("shop") == [], "it is known by its name still"
        assert [replica.name for replica in client.status().replicas] == []
        assert client.points("shop") == []
        assert client.retention("shop").points == 0
        for asked in (
            lambda: client.preview_failover("shop"),
            lambda: client.start_test_failover("shop", StartTestFailover(point="latest", network="isolated")),
            lambda: client.start_export("shop", ExportRequest(point="latest", socket_dir="/nonexistent")),
            lambda: client.hold("shop", HoldRequest(point="latest", reason="late", until="1d")),
        ):
            with pytest.raises(RemoteError, match=r"no recovery point|There are none"):
                asked()
        client.verify("shop", VerifyRequest())
        until(lambda: client.verification("shop").ended_at is not None, "a verification")
        verified = client.verification("shop")
        assert verified.error is None
        assert verified.report is not None
        assert verified.report.damaged == ()
        with pytest.raises(RemoteError, match="is not possible now"):
            client.roll_back(OPERATION, RollBackFailover(confirm=LOST))
    assert two.b_fabric.recovered() == []
    assert two.b_fabric.runs(recovered.id)
    assert two.journal.state().pins == ()
    assert two.journal.head().epoch == 2
    assert two.journal.points() == []
    assert list(two.journal.store.list(segments_prefix(two.machine))) == []


def test_a_point_that_is_held_outlives_the_commit_until_it_is_let_go(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failoverdrop, "LOOK_AGAIN_SECONDS", 0.2)
    held = two.take_point(b"one" * 1000)
    two.take_point(b"two" * 1000)
    with two.at_b() as client:
        client.hold(
            "shop", HoldRequest(point=str(held), reason="an auditor asked", until="30d", name="audit")
        )
        two.start()
        two.ended(FailoverState.COMPLETED)
        client.commit_failover(OPERATION, CommitFailover(confirm=KEPT))
        status = two.ended(FailoverState.COMMITTED)
        until(lambda: client.failover(OPERATION).points_wait != "", "it waits for the hold")
        assert "hold:audit" in client.failover(OPERATION).points_wait
        assert status.points_deleted_at is None
        assert held in {point.number for point in two.journal.points()}, "nothing is gone"
        client.release("shop", "audit")
        until(lambda: client.failover(OPERATION).points_deleted_at is not None, "its points deleted")
        assert client.failover(OPERATION).points_wait == ""
    assert two.journal.points() == []


def test_a_machine_that_lost_its_export_or_its_host_runs_again_after_its_export(two: Two) -> None:
    two.take_point(b"one" * 1000)
    two.start()
    two.ended(FailoverState.COMPLETED)
    [recovered] = two.b_fabric.recovered()

    def told(code: str) -> int:
        with two.at_b() as client:
            return [entry.event.code for entry in client.events()].count(code)

    two.b_fabric.stop_recovered(recovered)  # as its disks' errors do
    two.end_exports()
    until(lambda: told("failover.resumed") == 1, "resumed once its export is back")
    assert two.b_fabric.life_of(recovered).power is PowerState.RUNNING
    assert two.read("vda", 64 * 1024, 6) == b"oneone"

    two.pair.stop_b()
    two.end_exports()
    two.b_fabric.restart_host()
    assert not two.b_fabric.runs(two.machine)
    two.start_b()
    until(lambda: told("failover.restarted") == 1, "started again")
    assert two.b_fabric.runs(two.machine)
    assert two.read("vda", 64 * 1024, 6) == b"oneone", "its export was there first"
