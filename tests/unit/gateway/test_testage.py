"""Test failovers that stand for more than two weeks are told, once each, also across restarts."""

from __future__ import annotations

from pathlib import Path

import msgspec

from secondsite.base.clock import FakeClock
from secondsite.gateway.messages.testfailover import TestFailoverState, TestFailoverStatus
from secondsite.gateway.recovery.testage import LOOK_SECONDS, OLD, OldTests
from secondsite.gateway.recovery.testfailover import TestFailoverRecord, TestFailoverRecords
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency
from support.control import Events

SHOP = MachineId("00000000-0000-4000-8000-000000000001")
DAY = 86_400.0


def record(clock: FakeClock, number: int, state: TestFailoverState) -> TestFailoverRecord:
    at = clock.utc().isoformat()
    status = TestFailoverStatus(
        id=f"{number:032x}",
        machine=SHOP,
        machine_name="shop",
        name=f"shop-test-{number}",
        state=state,
        point=7,
        point_at=at,
        consistency=Consistency.CRASH,
        network="isolated",
        requested_at=at,
        requested_by="ann",
    )
    return TestFailoverRecord(status=status)


def test_it_is_told_once_and_only_while_it_stands(tmp_path: Path) -> None:
    clock, events = FakeClock(), Events()
    records = TestFailoverRecords(tmp_path)
    records.save(record(clock, 1, TestFailoverState.COMPLETED))
    records.save(record(clock, 2, TestFailoverState.CLEANUP_COMPLETED))
    records.save(record(clock, 3, TestFailoverState.CLEANUP_FAILED))

    def note(identity: str, at: str) -> None:
        known = records.get(identity)
        status = msgspec.structs.replace(known.status, told_old_at=at)
        records.save(msgspec.structs.replace(known, status=status))

    old = OldTests(records, note, clock, events)
    old.look()
    clock.advance(14 * DAY - 60)
    old.look()
    assert events.codes() == []
    clock.advance(120)
    old.look()
    assert events.codes() == [], "the records are read once an hour"
    clock.advance(LOOK_SECONDS)
    old.look()
    assert events.codes() == [OLD, OLD]
    told = " ".join(str(one) for one in events.all)
    assert "shop-test-1" in told
    assert "shop-test-3" in told
    assert "secondsite item clean-up" in told
    clock.advance(LOOK_SECONDS)
    old.look()
    OldTests(records, note, clock, events).look()
    assert len(events.codes()) == 2
