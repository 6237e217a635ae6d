"""A policy at the gateway: compression off, when points are missed, and changes that need no new start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.units import MIB
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.source.pace import Pace, Policy
from secondsite.gateway.source.status import Board
from secondsite.model.points import Consistency
from secondsite.model.states import ItemState
from secondsite.transfer.protocols import CommittedPoint
from support.format_samples import MACHINE
from support.source_rig import Rig

HOUR = 3600.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_what_travels_is_compressed_or_not_from_the_next_cycle_on(rig: Rig) -> None:
    replication = rig.open(frequency_seconds=HOUR)
    rig.until(lambda: replication.board.state is ItemState.PROTECTED, "Protected")
    sent = {}
    for turn, level in enumerate((1, None, 1)):
        replication.set_policy(Policy(copy_frequency_seconds=HOUR, level=level))
        # the same could be dropped by its hash; what follows is as compressible each time
        rig.fabric.write(rig.machine, "vda", 0, f"{turn:08x}".encode() * (MIB // 8))
        number = replication.take_point(seconds_max=30).number
        assert rig.view(number) == rig.content()
        [sent[turn]] = [point.sent_bytes for point in rig.points() if point.number == number]
    assert sent[1] > MIB > 20 * sent[0]
    assert 20 * sent[2] < MIB
    assert "replicate.resynced" not in rig.codes()


def _committed(clock: FakeClock) -> CommittedPoint:
    now = clock.utc().isoformat()
    return CommittedPoint(
        number=1,
        epoch=1,
        nonce="ab" * 16,
        checkpoint="c1",
        parent_checkpoint=None,
        asked_at=now,
        given_at=now,
        committed_at=now,
        consistency=Consistency.CRASH,
        disks=(),
    )


@pytest.mark.parametrize(("threshold", "told_at"), [(None, 25.0), (900.0, 900.0), (8.0, 8.0)])
def test_a_policy_says_when_points_are_missed(threshold: float | None, told_at: float) -> None:
    clock = FakeClock()
    events = EventLog(clock)
    board = Board(MACHINE, "shop", "gateway-b", frequency_seconds=5.0, clock=clock, events=events)
    board.rpo_threshold_seconds = threshold
    board.known(_committed(clock), 1)
    clock.advance(told_at)
    board.watch_rpo()
    assert events.since(0, 10) == []
    clock.advance(0.1)
    board.watch_rpo()
    [(_, event)] = events.since(0, 10)
    assert event.code == "replicate.rpo-missed"
    assert board.show(spool_bytes=0).health.value == "Warning"


def test_a_change_brings_forward_what_would_come_too_late() -> None:
    clock = FakeClock()
    pace = Pace(Policy(copy_frequency_seconds=900, application_consistent_frequency_seconds=24 * HOUR), clock)
    pace.begin(0.0)
    assert pace.begun(asked_for=False) == (False, 0.0)
    pace.change(Policy(copy_frequency_seconds=60, application_consistent_frequency_seconds=HOUR))
    assert pace.seconds_left() == 60
    clock.advance(HOUR - 1)
    assert not pace.begun(asked_for=False)[0]
    clock.advance(1)
    application, started = pace.begun(asked_for=False)
    assert application
    pace.asked_the_guest(started)
    clock.advance(HOUR - 1)
    assert not pace.begun(asked_for=False)[0]
