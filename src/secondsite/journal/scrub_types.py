"""What a scrub is given, says while it runs, and finds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId


class ScrubCancelled(SecondsiteError):
    """Somebody stopped it."""

    code = "scrub.cancelled"
    outcome = Outcome.CANCELLED
    happened = "The verification of machine {machine} was stopped."
    cause = "It was cancelled, or the gateway is stopping."
    action = "Start it again with `secondsite verify`; it begins anew."


@dataclass(frozen=True)
class Trusted:
    """What was seen of a journal earlier, kept where who can change the store cannot change it."""

    number: int  # of the newest record
    hash: str  # of that record, 64 hexadecimal digits
    generation: int = 0  # of the state; 0: not known


@dataclass(frozen=True)
class Position:
    """How far a scrub is."""

    doing: str  # e.g. "reading the base of vda"
    done_bytes: int = 0
    total_bytes: int = 0  # an estimate that only the bases' writers move


@dataclass(eq=False)
class Damage:
    """Something that is not as it was written, and what that costs."""

    object: str  # name in the store, or where the base is
    kind: str  # state, record, span, log, key, segment, base, base-sums, content
    why: str
    points: set[int] = field(default_factory=set)  # listed points that cannot be read right because of it
    # what is lost of each disk at the oldest of these points; a disk whose ranges nobody knows is absent
    ranges: dict[DiskId, Extents] = field(default_factory=dict)


@dataclass
class ScrubReport:
    """What a scrub found. Everything counted in it was read and checked."""

    machine: MachineId
    name: str = ""
    started_at: str = ""
    seconds: float = 0.0
    objects: int = 0
    bytes: int = 0  # read from the store, from bases and through views
    points: list[int] = field(default_factory=list)  # listed, ascending
    proved: list[int] = field(default_factory=list)  # whose content is what their manifest says
    unproved: list[int] = field(default_factory=list)  # sound, but no fingerprint says what they held
    lost: list[int] = field(default_factory=list)
    reread: list[int] = field(default_factory=list)  # also read whole, as a machine booted from it would
    damaged: list[Damage] = field(default_factory=list)
    # of the newest point: what the source has to send again; empty ranges: nothing
    missing: dict[DiskId, Extents] = field(default_factory=dict)
    unnamed: int = 0  # segments no point names, on their way or to be removed
    head: Trusted | None = None  # to be trusted next time; None when the log is not whole
    notes: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """How the command ends."""
        return Outcome.DAMAGED if self.damaged else Outcome.OK

    @property
    def bytes_per_second(self) -> float:
        """Mean rate."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


OnProgress = Callable[[Position], None]


# Pins are made to end by themselves, should the process die; well before that they are made again.
PIN = timedelta(days=3)
RENEW_SECONDS = PIN.total_seconds() / 6


class Meter:
    """Counts what is read, keeps the pace, tells the position, and stops when asked to. Thread-safe."""

    def __init__(
        self,
        machine: MachineId,
        *,
        clock: Clock,
        cancel: threading.Event | None,
        progress: OnProgress | None,
        bytes_per_second: float | None,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._cancel = cancel or threading.Event()
        self._progress = progress
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._started = clock.monotonic()
        self._renewals: list[Callable[[], None]] = []
        self._renewed = self._started
        self.doing = ""
        self.done = 0
        self.total = 0

    def check(self) -> None:
        """Raise ScrubCancelled when it is to stop."""
        if self._cancel.is_set():
            raise ScrubCancelled(machine=self._machine)

    def say(self, doing: str) -> None:
        """What comes now."""
        self.check()
        self.doing = doing
        self._tell()

    def renew(self, function: Callable[[], None]) -> None:
        """Call it now and then while it lasts: a paced scrub may take longer than a pin counts."""
        self._renewals.append(function)

    def expect(self, count: int) -> None:
        """So many more bytes will be read."""
        with self._lock:
            self.total += count

    def spend(self, count: int) -> None:
        """Bytes were read; waits while that was faster than allowed."""
        with self._lock:
            self.done += count
            due = self._started + self.done / self._rate if self._rate else 0.0
        self._tell()
        self.check()
        if self._clock.monotonic() - self._renewed >= RENEW_SECONDS:
            self._renewed = self._clock.monotonic()
            for function in self._renewals:
                function()
        wait = due - self._clock.monotonic()
        if self._rate and wait > 0 and self._clock.wait(self._cancel, wait):
            self.check()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(Position(self.doing, self.done, max(self.done, self.total)))
