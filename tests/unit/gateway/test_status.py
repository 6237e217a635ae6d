"""What a replication tells about itself: a late point shows as a warning until there is a fresh one."""

from __future__ import annotations

from secondsite.base.clock import FakeClock
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.messages.gateway import Health
from secondsite.gateway.source.status import Board
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency
from secondsite.transfer.protocols import CommittedPoint
from support.machines import SHOP


def committed(number: int, clock: FakeClock) -> CommittedPoint:
    now = clock.utc().isoformat()
    return CommittedPoint(
        number=number,
        epoch=1,
        nonce=f"{number:032x}",
        checkpoint=f"c{number}",
        parent_checkpoint=None,
        asked_at=now,
        given_at=now,
        committed_at=now,
        consistency=Consistency.CRASH,
        disks=(),
    )


def test_a_missed_objective_is_a_warning_with_its_reason_until_a_fresh_point() -> None:
    clock = FakeClock()
    events = EventLog(clock)
    board = Board(MachineId(SHOP), "shop", "b", frequency_seconds=5, clock=clock, events=events)
    board.committed(committed(1, clock))
    clock.advance(24)
    board.watch_rpo()
    assert board.show(spool_bytes=0).health is Health.NORMAL
    clock.advance(2)
    board.watch_rpo()
    late = board.show(spool_bytes=0)
    assert late.health is Health.WARNING
    assert late.note == "its newest point is older than it should be, see `secondsite events`"
    # another trouble says more
    board.warn("link.down", "The gateway cannot be reached.", critical=True)
    assert board.show(spool_bytes=0).health is Health.CRITICAL
    board.well()
    assert board.show(spool_bytes=0).health is Health.WARNING
    board.committed(committed(2, clock))
    fresh = board.show(spool_bytes=0)
    assert (fresh.health, fresh.note) == (Health.NORMAL, "")
    assert [event.code for _, event in events.since(0, 9)] == [
        "replicate.rpo-missed",
        "link.down",
        "replicate.recovered",
        "replicate.rpo-met",
    ]
