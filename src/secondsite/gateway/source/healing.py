"""What a replication notices of its machine besides the bytes: disks that come and go, lost records, clocks.

Each is told once, with its reason and with what is done about it; the doing is the plan's and the cycle's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from secondsite.base.clock import Clock
from secondsite.base.units import format_bytes
from secondsite.fabrics.errors import CheckpointUnknown, TrackingLost
from secondsite.gateway.source.checkpoints import Checkpoints
from secondsite.gateway.source.cycle import Bench, Captured, DisksAppeared, TooMuchUntracked
from secondsite.gateway.source.findings import DiskFact, compare
from secondsite.gateway.source.plan import stand_in
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.points import DiskState

# The clocks of one machine are read microseconds apart; a stopped process or a busy host makes that longer.
JUMP_SECONDS_MIN = 2.0


class ClockWatch:
    """Tells when the time of day jumps. Points are ordered by number, so that nothing else has to follow."""

    def __init__(self, clock: Clock, events: EventSink) -> None:
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._difference = self._read()

    def _read(self) -> float:
        before = self._clock.monotonic()
        return self._clock.utc().timestamp() - (before + self._clock.monotonic()) / 2

    def look(self) -> float:
        """Seconds the time of day jumped by since the last look; 0.0 when it did not."""
        with self._lock:
            jump = self._read() - self._difference
            if abs(jump) < JUMP_SECONDS_MIN:
                return 0.0
            self._difference += jump
        text = (
            f"the time of day jumped {'forward' if jump > 0 else 'back'} by {abs(jump):.0f} s; points are "
            "ordered by their numbers, and those labelled before the jump carry the old time"
        )
        self._events.emit("gateway.clock-jumped", Severity.WARNING, text, seconds=round(jump, 3))
        return jump


class Healing:
    """Of one machine; used by its capturing thread alone."""

    def __init__(self, bench: Bench, checkpoints: Checkpoints) -> None:
        self._bench = bench
        self._checkpoints = checkpoints
        self._disks: dict[DiskId, DiskFact] = {}
        self._left_out: dict[DiskId, str] = {}
        self.lost = ""  # why everything has to be read again; empty: it has not
        self.too_much = ""  # why only a copy in slices will do
        self.appeared: tuple[DiskId, ...] = ()  # to be furnished before the next capture

    def take_in(self) -> dict[KeyId, bytes]:
        """Furnish disks that have appeared; returns their keys, which the target needs."""
        made = self._bench.take_in(self.appeared)
        self.appeared = ()
        return made

    def expect(self, disks: Iterable[DiskState]) -> None:
        """The disks at the newest instant, where that is another than this process captured last."""
        self._disks = {disk.id: DiskFact(disk.id, disk.size_bytes, self._location(disk.id)) for disk in disks}

    def _location(self, disk: DiskId) -> str:
        known = self._disks.get(disk)
        return known.location if known is not None else ""

    def captured(self, captured: Captured) -> None:
        """Tell what became of the disks since the instant before. Call in the order of the instants."""
        if not captured.disks:
            return
        known, now = self._disks, {disk.id: disk for disk in captured.disks}
        if known:
            for finding in compare(known, captured.disks):
                self._tell(finding.code, finding.severity, finding.text)
        for disk in known.keys() - now.keys():
            # what comes back under its name later may be another disk
            if disk in self._bench.tables:
                self._bench.tables[disk].void("")
        self._disks = now
        self._leave_out(captured.left_out)

    def _leave_out(self, left_out: Mapping[DiskId, str]) -> None:
        for disk, why in left_out.items():
            if self._left_out.get(disk) != why:
                text = f"disk {disk} is not part of its points and cannot be recovered from them: {why}"
                self._tell("source.disk-left-out", Severity.WARNING, text)
        self._left_out = dict(left_out)

    def tracking_lost(self, error: TrackingLost) -> None:
        """No checkpoint of ours can be counted from: older ones were in the same images."""
        self._checkpoints.lost_all()
        self.lost = str(error)

    def learn(self, error: DisksAppeared | TooMuchUntracked) -> None:
        """A capture showed what the plan has to see to before it is repeated."""
        if isinstance(error, DisksAppeared):
            self.appeared = error.disks
        else:
            self.needs_slices(error.sizes)

    def needs_slices(self, disks: Mapping[DiskId, int]) -> None:
        """Disks that have to be read whole hold too much for one capture."""
        named = " and ".join(f"disk {disk} ({format_bytes(size)})" for disk, size in disks.items())
        self.too_much = f"{named} has to be read whole, in slices"

    def copied(self) -> None:
        """Everything was read again."""
        self.lost = self.too_much = ""

    def find(self, tip: str) -> None:
        """See to it that changes since the newest instant can be counted, or tell that they cannot."""
        if not tip or self.lost or tip in self._checkpoints.listed():
            return
        if not self._bench.source.recall(tip):
            if stand_in(tip, self._checkpoints.usable()) is None:
                unknown = CheckpointUnknown(
                    machine=self._bench.name, checkpoint=tip, why="the host has neither it nor its bitmaps"
                )
                self.lost = str(unknown)
                self._tell(unknown.code, Severity.WARNING, " ".join(unknown.sentences()))
            return
        text = (
            f"the host no longer listed the checkpoint {tip}, its images still tracked what changed since: "
            "it is listed again, and nothing has to be read again"
        )
        self._tell("tracking.checkpoint-recalled", Severity.WARNING, text)

    def _tell(self, code: str, severity: Severity, text: str) -> None:
        bench = self._bench
        bench.events.emit(code, severity, f"{bench.name}: {text}", machine=bench.machine)
