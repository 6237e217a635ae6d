"""What a gateway tells of its recovery point objective."""

from __future__ import annotations

from secondsite.base.clock import FakeClock
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.source.status import Board
from secondsite.model.points import Consistency
from secondsite.transfer.protocols import CommittedPoint
from support.format_samples import MACHINE


def test_catching_up_after_a_cut_tells_once_that_it_was_late_and_once_that_it_is_well() -> None:
    clock = FakeClock()
    events = EventLog(clock)
    board = Board(MACHINE, "shop", "gateway-b", frequency_seconds=5.0, clock=clock, events=events)
    board.known(committed(1, clock), 1)
    for number in range(2, 14):  # captured while the link is cut
        clock.advance(5.0)
        board.captured(f"c{number}", changed_bytes=1, sent_bytes=1, seconds=0.0)
        board.watch_rpo()
    for number in range(2, 14):  # sent one after the other, once it is back
        board.committed(committed(number, clock))
        board.watch_rpo()
    codes = [event.code for _, event in events.since(0, 100)]
    assert codes == ["replicate.rpo-missed", "replicate.rpo-met"]


def committed(number: int, clock: FakeClock) -> CommittedPoint:
    now = clock.utc().isoformat()
    return CommittedPoint(
        number=number,
        epoch=1,
        nonce="ab" * 16,
        checkpoint=f"c{number}",
        parent_checkpoint=None,
        asked_at=now,
        given_at=now,
        committed_at=now,
        consistency=Consistency.CRASH,
        disks=(),
    )
