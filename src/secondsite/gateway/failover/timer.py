"""Failovers that commit or roll back by themselves, after a time a person asked for when they were begun.

The time counts from the machine's last start, so a change of its point begins it anew. It is told when it
begins, before it ends and when it acts, and can be cancelled until then. It survives the gateway: what is due
follows from the record. A time of day that jumps ahead does not shorten it while a gateway runs, since that
measures by a clock that only grows.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.base.units import format_seconds
from secondsite.gateway.common.choose import parse_time
from secondsite.gateway.failover.record import FailoverRecord, FailoverRecords
from secondsite.gateway.messages.failover import (
    CommitFailover,
    FailoverStatus,
    FailoverTimer,
    RollBackFailover,
    StartFailover,
    TimerAction,
)
from secondsite.model import confirmations
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import AUTO_COMMIT_BYTES_PER_SECOND, FailoverState

# It is announced that long before it acts, or half of its time before where that is less.
ANNOUNCED_SECONDS = 600.0

# Who asked for what a timer does.
BY_ITSELF = "its timer"

_WORDS = {TimerAction.COMMIT: "committed", TimerAction.ROLL_BACK: "rolled back"}


def timer_of(request: StartFailover, name: str) -> FailoverTimer | None:
    """The timer a request asks for, said word for word as what it will do would be.

    Raises InvalidInput, ConfirmationMissing.
    """
    asked = {
        TimerAction.COMMIT: request.auto_commit_after,
        TimerAction.ROLL_BACK: request.auto_roll_back_after,
    }
    wanted = [(action, seconds) for action, seconds in asked.items() if seconds is not None]
    if not wanted:
        return None
    if len(wanted) > 1:
        raise InvalidInput(what="a failover with two timers", why="it can end in one of the two ways only")
    [(action, seconds)] = wanted
    sentence = confirmations.kept(name) if action is TimerAction.COMMIT else confirmations.lost(name)
    timer = FailoverTimer(action=action, seconds=seconds, bytes_per_second=_rate(request, action))
    why = (
        f"It will be {_WORDS[action]} by itself {format_seconds(seconds)} after it was started, "
        f"whether anybody looks or not{_copied(timer)}."
    )
    confirmations.require(name, request.confirm_timer, sentence, why)
    return timer


def commit_of(status: FailoverStatus) -> CommitFailover:
    """What is asked for when it commits by itself."""
    said = confirmations.kept(status.machine_name)
    return CommitFailover(confirm=said, bytes_per_second=_rate_of(status.timer), requested_by=BY_ITSELF)


def roll_back_of(status: FailoverStatus) -> RollBackFailover:
    """What is asked for when it rolls back by itself."""
    return RollBackFailover(confirm=confirmations.lost(status.machine_name), requested_by=BY_ITSELF)


def _rate_of(timer: FailoverTimer | None) -> int:
    """Bytes a second of an automatic commit; also of one that was begun by an earlier version."""
    return (timer.bytes_per_second if timer is not None else None) or AUTO_COMMIT_BYTES_PER_SECOND


def _rate(request: StartFailover, action: TimerAction) -> int | None:
    if action is TimerAction.ROLL_BACK:
        return None
    return request.bytes_per_second or AUTO_COMMIT_BYTES_PER_SECOND


def _copied(timer: FailoverTimer) -> str:
    """How fast its disks are copied then, for people; of a roll-back nothing is."""
    if timer.action is TimerAction.ROLL_BACK:
        return ""
    return f"; its disks are copied at {_rate_of(timer) / 1e6:,.0f} MB/s at most"


class FailoverTimers:
    """Of one gateway. Used by one thread, but for `cancel`."""

    def __init__(
        self,
        records: FailoverRecords,
        clock: Clock,
        events: EventSink,
        act: Callable[[FailoverStatus, TimerAction], object],
    ) -> None:
        """act: begins a commit or a roll-back, may refuse, and may be called again."""
        self._records = records
        self._clock = clock
        self._events = events
        self._act = act
        self._ends: dict[tuple[str, str], float] = {}  # by the clock that only grows

    def look(self, record: FailoverRecord) -> None:
        """What is due by now. Cheap where nothing is."""
        status, timer = record.status, record.status.timer
        runs = status.state is FailoverState.COMPLETED and status.booted_at is not None
        if timer is None or timer.cancelled_at is not None or not runs:
            return
        assert status.booted_at is not None, "it runs"
        due = parse_time(status.booted_at) + timedelta(seconds=timer.seconds)
        if timer.due_at != due.isoformat():
            timer = self._change(status, due_at=due.isoformat(), told_at=None, waits="")
            text = f"will be {_WORDS[timer.action]} by itself at {due:%Y-%m-%d %H:%M:%S} UTC{_copied(timer)}"
            self._tell("failover.timer-set", Severity.INFORMATION, text, status)
        left = self._left(status.id, due.isoformat(), (due - self._clock.utc()).total_seconds())
        if timer.told_at is None and left <= min(ANNOUNCED_SECONDS, timer.seconds / 2):
            timer = self._change(status, told_at=self._clock.utc().isoformat())
            text = (
                f"will be {_WORDS[timer.action]} by itself in {format_seconds(max(0.0, left))}, "
                "unless `secondsite failover cancel-timer` is said"
            )
            self._tell("failover.timer-soon", Severity.WARNING, text, status)
        if left <= 0:
            self._due(status, timer)

    def _left(self, identity: str, due_at: str, by_day: float) -> float:
        """Seconds: the most that either clock says."""
        now = self._clock.monotonic()
        return max(by_day, self._ends.setdefault((identity, due_at), now + by_day) - now)

    def _due(self, status: FailoverStatus, timer: FailoverTimer) -> None:
        try:
            self._act(status, timer.action)
        except SecondsiteError as error:
            if timer.waits != str(error):
                self._change(status, waits=str(error))
                text = f"should be {_WORDS[timer.action]} by now, and is as soon as it can: {error}"
                self._tell("failover.timer-waits", Severity.WARNING, text, status)
            return
        self._change(status, waits="", acted_at=self._clock.utc().isoformat())
        text = f"is being {_WORDS[timer.action]} by itself: its time is over"
        self._tell("failover.timer-acts", Severity.WARNING, text, status)

    def cancel(self, identity: str, by: str) -> FailoverStatus:
        """It decides by itself no more; without a timer, or asked again, it stays as it is."""
        status = self._records.get(identity).status
        timer = status.timer
        if timer is None or timer.cancelled_at is not None or timer.acted_at is not None:
            return status
        self._change(status, cancelled_at=self._clock.utc().isoformat(), cancelled_by=by)
        text = f"will not be {_WORDS[timer.action]} by itself: {by or 'somebody'} cancelled that"
        self._tell("failover.timer-cancelled", Severity.INFORMATION, text, status)
        return self._records.get(identity).status

    def _change(self, status: FailoverStatus, **changes: str | None) -> FailoverTimer:
        found = self._records.get(status.id).status.timer
        assert found is not None, "timers are never taken away"
        timer = msgspec.structs.replace(found, **changes)
        self._records.tell(status.id, timer=timer)
        return timer

    def _tell(self, code: str, severity: Severity, text: str, status: FailoverStatus) -> None:
        text = f"The failover of {status.machine_name} {text}"
        self._events.emit(code, severity, text, machine=status.machine, operation=status.id)
