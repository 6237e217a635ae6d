"""One step of a journal's upkeep: what its retention asks for next, done and told.

The order of a machine's steps: a promotion that was cut off, the first copy into its base, what has left the
policy's past, then the oldest group of points to merge. One step is bounded, so that many machines take turns
and a stop waits for little.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from secondsite.base.clock import Clock
from secondsite.base.units import format_bytes
from secondsite.gateway.common.choose import parse_time
from secondsite.journal.chain import Journal
from secondsite.journal.drop import delete_dropped
from secondsite.journal.keys import KeyRing
from secondsite.journal.merge import Merged, NotMergeable, abandon, merge
from secondsite.journal.page_write import delete_pages, write_log_page, write_page
from secondsite.journal.pages import LEVELS
from secondsite.journal.promote import OpenBase, promote
from secondsite.journal.promote_past import point_past_damage
from secondsite.journal.scrub_segment import UNUSABLE
from secondsite.journal.state import Dropped, State
from secondsite.journal.store import StoreLocked
from secondsite.journal.sweep import delete_promoted, delete_retired, unnamed
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import MOVED
from secondsite.model.ids import DiskId
from secondsite.model.points import Point
from secondsite.model.retention import Decision, Group, PointFacts, RetentionPolicy, decide

# Points that are merged or promoted in one step: an hour of points every five seconds is 720.
POINTS_MAX = 1024
# Garbage is listed object by object: rarely enough not to matter.
SWEEP_SECONDS = 3600.0
# Segments of the epoch in force that nobody names are an abandoned cycle's once so many points were
# committed after they were first seen so, and this much time passed: no shipment is that far ahead of others.
ORPHAN_POINTS, ORPHAN_SECONDS = 1000, 3600.0


@dataclass
class Upkeep:
    """The upkeep of one machine's journal. Used by one thread."""

    journal: Journal
    keys: KeyRing
    policy: Callable[[], RetentionPolicy]
    open_base: OpenBase | None  # None: all stays in the journal
    verified: Callable[[], Collection[int]]  # points that a scrub proved
    clock: Clock
    events: EventSink
    cancel: threading.Event
    pace: Callable[[int], None]  # told of guest bytes merged; may wait
    _began: bool = False
    _swept_at: float | None = None
    _told: str = ""
    _waiting: dict[str, tuple[int, float]] = field(default_factory=dict)  # unnamed segments, first seen
    _unpaged: set[tuple[DiskId, int, int]] = field(default_factory=set)  # pages that cannot be made
    _not_before: float = 0.0  # for deleting, where objects are locked
    _paged: int = -1  # stretches of records there were when all pages were made
    _unpaged_log: set[int] = field(default_factory=set)
    _skipped: set[tuple[int, int]] = field(default_factory=set)  # groups that cannot be merged as they are

    def step(self) -> bool:
        """Do the next thing; False when nothing is left to do for now. Raises what the journal raises."""
        if not self._began:
            abandon(self.journal)  # what an earlier process was merging
            self._began = True
        state = self.journal.state()
        points = self.journal.points()
        claim = self.journal.head().claim
        if not points:
            return self._sweep_dropped(state)
        if claim is not None and claim.reason in MOVED:
            # of a machine that was taken over everything stays: another point may be turned to
            return False
        if self.open_base is not None:
            number = state.floor if state.floor > state.promoted else 0
            if not state.floor:
                number = points[0].number
            if number:
                return self._catch_up(number, "the first copy" if not state.floor else "what was cut off")
        if state.retired:
            self._delete_retired()
        decision = self.decide(state, points)
        if decision.floor is not None and self._leave(decision, state, points):
            return True
        for group in decision.groups:
            if (group.after, group.last) not in self._skipped:
                return self._merge(group, points)
        if self._page():
            return True
        return self._sweep()

    def _catch_up(self, number: int, why: str) -> bool:
        """A promotion that has to come first; past what it cannot read, where a later point has it again."""
        try:
            return self._promote(number, why)
        except UNUSABLE as error:
            past = point_past_damage(self.journal, self.keys)
            if past is None or past <= number:
                raise
            return self._promote(past, f"{why}; what it lacked was written again: {error}", past_damage=True)

    def _page(self) -> bool:
        """Make a page, where a stretch of records ended since the last look: a look is a listing or two."""
        ended = self.journal.head().number // LEVELS[0]
        if ended == self._paged:
            return False
        if (
            write_log_page(self.journal, without=self._unpaged_log) is not None
            or write_page(self.journal, self.keys, without=self._unpaged) is not None
        ):
            return True
        self._paged = ended
        return False

    def decide(self, state: State, points: Sequence[Point]) -> Decision:
        """What the policy asks for now."""
        decision = decide_now(points, state, self.policy(), preferred=self.verified(), clock=self.clock)
        self._tell_waiting(decision, state)
        return decision

    def _tell_waiting(self, decision: Decision, state: State) -> None:
        text = ""
        if decision.waiting:
            holders = sorted({pin.holder for pin in state.pins if pin.number in decision.waiting})
            numbers = ", ".join(map(str, decision.waiting[:5]))
            text = f"points {numbers} would have gone by the retention; {', '.join(holders)} holds them"
        elif decision.settling:
            text = "points came again after a long gap: nothing goes for an hour"
        if text and text != self._told:
            self._emit("retention.waiting", Severity.INFORMATION, text)
        self._told = text

    def _leave(self, decision: Decision, state: State, points: Sequence[Point]) -> bool:
        """What is older than the policy's past goes into the base, or into the oldest point that stays."""
        floor = decision.floor
        assert floor is not None
        gone = [point.number for point in points if point.number < floor]
        why = f"the retention is: {self.policy().describe()}"
        if self.open_base is None:
            return self._merge(Group(state.promoted, floor, tuple(gone), why), points)
        if len(gone) > POINTS_MAX:
            floor = gone[POINTS_MAX]
        return self._promote(floor, why)

    def _promote(self, number: int, why: str, *, past_damage: bool = False) -> bool:
        assert self.open_base is not None
        before = {point.number for point in self.journal.points()}
        started = self.clock.monotonic()
        done = promote(
            self.journal, number, self.keys, self.open_base, clock=self.clock, past_damage=past_damage
        )
        seconds = self.clock.monotonic() - started
        if done.floor < number:
            holders = ", ".join(done.held_back_by)
            text = f"promotion waits for points that are pinned by {holders}"
            if text != self._told:
                self._emit("promote.held-back", Severity.INFORMATION, text)
            self._told = text
            return False
        delete_pages(self.journal)
        gone = len([n for n in before if n < done.floor])
        points = f"; {gone} points before it left ({why})" if gone else ""
        self._emit(
            "promote.done",
            Severity.INFORMATION,
            f"the base holds point {done.floor}: {format_bytes(done.written_bytes)} written{points}",
            number=done.floor,
            written_bytes=done.written_bytes,
            points_gone=gone,
            seconds=round(seconds, 3),
        )
        return True

    def _merge(self, group: Group, points: Sequence[Point]) -> bool:
        """One merge; of a large group the oldest part. False: it is left as it is."""
        inside = [point.number for point in points if group.after < point.number <= group.last]
        last = inside[POINTS_MAX - 1] if len(inside) > POINTS_MAX else group.last
        started = self.clock.monotonic()
        try:
            done = merge(
                self.journal,
                group.after,
                last,
                self.keys,
                clock=self.clock,
                cancel=self.cancel,
                on_bytes=self.pace,
            )
        except (NotMergeable, *UNUSABLE) as error:
            # a pin that came meanwhile, or an odd end of a disk: the next pass sees the pin; or something is
            # damaged, which must not keep other points from being merged
            self._skipped.add((group.after, group.last))
            text = f"points {group.after} to {group.last} stay as they are: {error}"
            is_damage = not isinstance(error, NotMergeable)
            severity = Severity.WARNING if is_damage else Severity.INFORMATION
            self._emit("retention.not-merged", severity, text)
            return False
        delete_pages(self.journal)
        self._delete_retired()
        self._tell_merged(done, group, self.clock.monotonic() - started)
        return True

    def _tell_merged(self, done: Merged, group: Group, seconds: float) -> None:
        text = (
            f"points {done.first} to {done.last} became one, {done.points} are no longer listed"
            f" ({group.reason}): {format_bytes(done.written_bytes)} written"
        )
        self._emit(
            "retention.merged",
            Severity.INFORMATION,
            text,
            first=done.first,
            last=done.last,
            points_gone=done.points,
            read_bytes=done.read_bytes,
            written_bytes=done.written_bytes,
            seconds=round(seconds, 3),
        )

    def _delete_retired(self) -> None:
        if self.clock.monotonic() >= self._not_before:
            delete_retired(self.journal, clock=self.clock, on_locked=self._put_off)

    def _put_off(self, error: StoreLocked) -> None:
        """What is locked is tried again with the next sweep."""
        if self.clock.monotonic() >= self._not_before:
            self._emit("retention.locked", Severity.INFORMATION, f"it stays for now: {error}")
        self._not_before = self.clock.monotonic() + SWEEP_SECONDS

    def _sweep(self) -> bool:
        """Now and then: what nobody names. Never work left to do."""
        now = self.clock.monotonic()
        if self._swept_at is not None and now - self._swept_at < SWEEP_SECONDS:
            return False
        self._swept_at = now
        self._skipped.clear()
        self._unpaged.clear()
        self._unpaged_log.clear()
        delete_promoted(self.journal, clock=self.clock, on_locked=self._put_off)
        found = unnamed(self.journal)
        names = [*found.dead, *self._orphans(found.waiting, now)]
        for name in names:
            if self.cancel.is_set():
                return False
            try:
                self.journal.store.delete(name)
            except StoreLocked as error:
                self._put_off(error)
        if names:
            text = f"{len(names)} objects that no point names were deleted"
            self._emit("retention.swept", Severity.INFORMATION, text, objects=len(names))
        return False

    def _sweep_dropped(self, state: State) -> bool:
        """Where a commit deleted all points: what a late upload brought since, or a lock kept."""
        now = self.clock.monotonic()
        due = self._swept_at is None or now - self._swept_at >= SWEEP_SECONDS
        if isinstance(state.dropped, Dropped) and due:
            self._swept_at = now
            delete_dropped(self.journal, cancel=self.cancel, on_locked=self._put_off)
        return False

    def _orphans(self, waiting: Sequence[str], now: float) -> list[str]:
        """Those that were waiting for a commit for so long that theirs was abandoned."""
        number = self.journal.head().number
        self._waiting = {name: self._waiting.get(name, (number, now)) for name in waiting}
        return [
            name
            for name, (seen_number, seen_at) in self._waiting.items()
            if number - seen_number >= ORPHAN_POINTS and now - seen_at >= ORPHAN_SECONDS
        ]

    def _emit(self, code: str, severity: Severity, text: str, **details: int | float | str) -> None:
        self.events.emit(code, severity, text, machine=self.journal.machine, **details)


def decide_now(
    points: Sequence[Point],
    state: State,
    policy: RetentionPolicy,
    *,
    preferred: Collection[int],
    clock: Clock,
) -> Decision:
    """What a policy asks for now. preferred: points that a scrub proved."""
    now = clock.utc()
    return decide(
        [
            PointFacts(point.number, parse_time(point.committed_at).timestamp(), point.consistency)
            for point in points
        ],
        policy,
        pinned={pin.number for pin in state.pins_at(now.isoformat(timespec="microseconds"))},
        preferred=preferred,
        now=now.timestamp(),
    )
