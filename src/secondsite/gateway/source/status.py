"""What a replication loop knows about itself, kept under one lock and shown as the control API's structs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import datetime

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.messages.failovererrors import CannotAsk
from secondsite.gateway.messages.gateway import FirstCopy, Health, ProtectionState, ProtectionStatus
from secondsite.gateway.source.firstcopying import Progress
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import NOT_COPIED
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency
from secondsite.model.states import ItemEvent, ItemState, after
from secondsite.transfer.protocols import CommittedPoint

# A point later than three copy frequencies (and some seconds for a slow link) is told once.
RPO_FACTOR = 3.0
RPO_GRACE_SECONDS = 10.0
# Instants that wait for their commit, and some that were given up.
INSTANTS_MAX = 1000
BITMAP_MODE = "replicate.bitmap-mode"
CANNOT_ASK = CannotAsk.code
_ORDER = [Health.NORMAL, Health.WARNING, Health.CRITICAL]


class Board:
    """The status of one machine. Thread-safe; every change of state goes through the table."""

    def __init__(
        self,
        machine: MachineId,
        name: str,
        peer: str,
        *,
        frequency_seconds: float,
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._lock = threading.Lock()
        self._machine = machine
        self._name = name
        self.peer = peer
        self.paused_by = ""  # who wants it to rest
        self._waits = ""  # what its first copy waits for, in a sentence
        self._clock = clock
        self._events = events
        self.frequency_seconds = frequency_seconds
        self.rpo_threshold_seconds: float | None = None  # of a policy that gives one
        self.state = ItemState.ENABLING
        self.progress: Progress | None = None
        self.epoch = 0
        self._health = Health.NORMAL
        self._note = ""
        self._code = ""
        self._point: CommittedPoint | None = None
        # when instants were given, by our clock: a time of day may jump between an instant and its commit
        self._given: OrderedDict[str, float] = OrderedDict()
        self._point_given = 0.0
        self._points = 0
        self._cycle_seconds: float | None = None
        self._changed = self._sent = 0
        self._changed_all = self._sent_all = 0
        self._rpo_missed = False

    def move(self, event: ItemEvent) -> None:
        """Apply an event of the state table. Raises IllegalTransition."""
        with self._lock:
            before, self.state = self.state, after(self.state, event)
            now = self.state
        if now is not before:
            text = f"{self._name} is {now.value} now ({event.value})"
            self._events.emit("item.state", Severity.INFORMATION, text, machine=self._machine)

    def move_if(
        self, event: ItemEvent, *, unless: tuple[ItemState, ...] = (), only: tuple[ItemState, ...] = ()
    ) -> None:
        """Apply an event where it makes sense; never once the protection is being ended."""
        state = self.state
        if state is ItemState.DISABLING or state in unless or (only and state not in only):
            return
        self.move(event)

    def trouble(self, error: SecondsiteError, *, critical: bool = False) -> None:
        """Show an error as the machine's health; an event when it is not the one shown already."""
        happened, cause, action = error.sentences()
        code = str(error.as_dict().get("code", ""))
        self.warn(code, f"{happened} {cause} {action}", critical=critical)

    def warn(self, code: str, text: str, *, critical: bool = False) -> None:
        """Show a sentence as the machine's health; an event when it is not the one shown already."""
        with self._lock:
            first = code != self._code
            self._code, self._note = code, text
            self._health = Health.CRITICAL if critical else Health.WARNING
        if first:
            severity = Severity.CRITICAL if critical else Severity.WARNING
            self._events.emit(code or "replicate.trouble", severity, text, machine=self._machine, lasts=1)

    def well(self) -> None:
        """Nothing is wrong (any more)."""
        with self._lock:
            before, self._code = self._code, ""
            self._note, self._health = "", Health.NORMAL
        if before:
            text = f"replication of {self._name} goes on after {before}"
            self._events.emit(
                "replicate.recovered", Severity.INFORMATION, text, machine=self._machine, ends=before
            )

    def waits(self, text: str) -> None:
        """It waits for what somebody wanted it to wait for: all is well. Empty: it does not any more."""
        with self._lock:
            before, self._waits = self._waits, text
        if text:
            self.well()  # what was wrong before it came as far as that is over
        if text and text != before:
            self._events.emit("replicate.first-copy-waits", Severity.INFORMATION, text, machine=self._machine)

    def known(self, point: CommittedPoint | None, epoch: int) -> None:
        """What the target says it has."""
        with self._lock:
            self._take_point(point)
            self.epoch = epoch

    def _take_point(self, point: CommittedPoint | None) -> None:
        if point is None or (self._point is not None and self._point.number == point.number):
            self._point = point
            return
        self._point = point
        given = self._given.pop(point.checkpoint, None)
        if given is None:  # another process captured it: its label is all there is
            age = (self._clock.utc() - datetime.fromisoformat(point.given_at)).total_seconds()
            given = self._clock.monotonic() - max(0.0, age)
        self._point_given = given

    def captured(self, checkpoint: str, *, changed_bytes: int, sent_bytes: int, seconds: float) -> None:
        """A cycle's figures, once it is sealed."""
        with self._lock:
            self._given[checkpoint] = self._clock.monotonic() - seconds
            while len(self._given) > INSTANTS_MAX:
                self._given.popitem(last=False)
            self._cycle_seconds = seconds
            self._changed, self._sent = changed_bytes, sent_bytes
            self._changed_all += changed_bytes
            self._sent_all += sent_bytes

    def committed(self, point: CommittedPoint) -> None:
        """A point exists."""
        with self._lock:
            self._take_point(point)
            self._points += 1
            fresh = self._clock.monotonic() - self._point_given <= self._rpo_limit
            met = self._rpo_missed and fresh  # while it catches up each point is late, and told of once
            self._rpo_missed = self._rpo_missed and not fresh
        if met:
            text = f"{self._name} has a fresh point again: {point.number}"
            self._events.emit("replicate.rpo-met", Severity.INFORMATION, text, machine=self._machine)

    def watch_rpo(self) -> None:
        """Tell, once, that the newest point is older than it should be."""
        age = self.rpo_seconds()
        if age is None or age <= self._rpo_limit or self._rpo_missed:
            return
        self._rpo_missed = True
        text = f"the newest point of {self._name} is {age:.0f} s old, more than {self._rpo_limit:.0f} s"
        self._events.emit("replicate.rpo-missed", Severity.WARNING, text, machine=self._machine)

    @property
    def _rpo_limit(self) -> float:
        given = self.rpo_threshold_seconds
        return RPO_FACTOR * self.frequency_seconds + RPO_GRACE_SECONDS if given is None else given

    def rpo_seconds(self) -> float | None:
        """Age of the newest committed instant; None: no point is known."""
        with self._lock:
            return None if self._point is None else self._clock.monotonic() - self._point_given

    def show(self, *, spool_bytes: int) -> ProtectionStatus:
        """As the control API says it."""
        rpo = self.rpo_seconds()
        with self._lock:
            point = self._point
            health, note = self._health, self._note
            if self._rpo_missed and health is Health.NORMAL:
                health = Health.WARNING
                note = "its newest point is older than it should be, see `secondsite events`"
            if self.paused_by and not note:
                health, note = max(health, Health.WARNING, key=_ORDER.index), f"paused by {self.paused_by}"
            note = note or self._waits
            consistency: Consistency | None = point.consistency if point else None
            return ProtectionStatus(
                machine=self._machine,
                name=self._name,
                peer=self.peer,
                state=ProtectionState(self.state.value),
                health=health,
                copy_frequency_seconds=self.frequency_seconds,
                epoch=self.epoch,
                first_copy=_first_copy(self.progress),
                points=self._points,
                last_point=point.number if point else None,
                last_point_at=point.given_at if point else None,
                rpo_seconds=rpo,
                cycle_seconds=self._cycle_seconds,
                changed_bytes=self._changed,
                sent_bytes=self._sent,
                total_changed_bytes=self._changed_all,
                total_sent_bytes=self._sent_all,
                spool_bytes=spool_bytes,
                last_consistency=consistency,
                note=note,
                code=self._code,
                paused_by=self.paused_by,
                bitmap_mode=self._code == BITMAP_MODE and self.state is ItemState.PAUSED,
            )


def of_another(shown: ProtectionStatus, claimant: str, epoch: int) -> ProtectionStatus:
    """Of a machine that is held: its journal's newest point is no measure of what this copy writes."""
    note = (
        f"held: {claimant or 'another gateway'} took it over in epoch {epoch}, and this copy is isolated "
        "until a person decides (`secondsite held list`)"
    )
    return msgspec.structs.replace(
        shown,
        health=Health.CRITICAL,
        code=NOT_COPIED,
        note=note,
        last_point=None,
        last_point_at=None,
        last_consistency=None,
        rpo_seconds=None,
        bitmap_mode=False,
    )


def _first_copy(progress: Progress | None) -> FirstCopy | None:
    if progress is None:
        return None
    return FirstCopy(
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        bytes_per_second=progress.bytes_per_second,
        seconds_left=progress.seconds_left,
        differed_bytes=progress.differed_bytes,
    )
