"""Promotion in the background: the first point of a machine becomes its base soon after it was committed.

It never stands in the way of replication: one thread for all machines, at low priority, that holds no lock a
commit needs while it writes. What fails is tried again, with the next point or after a pause.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB, format_bytes
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.promote import promote
from secondsite.journal.state import BaseState, State
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import Point

# Lower than everything a guest or a commit waits for; the kernel's scale ends at 19.
NICENESS = 10
RETRY_SECONDS = 60.0
# What must stay free on the bases' volume beside what promotion writes.
ROOM_BYTES_MIN = 64 * MIB


def wanted(state: State, points: list[Point], keep_points: int | None) -> int | None:
    """Which point to promote now; None when there is nothing to do.

    The oldest point as long as there is no base, then whatever is older than the newest `keep_points`; one
    point at a time: points between what the base holds and the floor are in nobody's list any more, neither
    the promotion's nor that of a view opened meanwhile.
    """
    if state.floor > state.promoted:
        return state.floor  # one that was cut off
    if not points:
        return None
    if not state.promoted:
        return points[0].number
    if keep_points is not None and len(points) > keep_points:
        last = points[-keep_points].number
        return next((p.number for p in points if state.promoted < p.number <= last), None)
    return None


class Promoter:
    """Promotes machines of one store into raw images in `directory`. Thread-safe.

    keep_points: how many points stay in the journal; None: all (retention is decided elsewhere).
    """

    def __init__(
        self,
        directory: Path,
        *,
        vault: VaultKey,
        clock: Clock,
        events: EventSink,
        keep_points: int | None = None,
    ) -> None:
        assert keep_points is None or keep_points >= 1
        self._directory = directory
        self._vault = vault
        self._clock = clock
        self._events = events
        self._keep_points = keep_points
        self._lock = threading.Lock()
        self._waiting: dict[MachineId, Journal] = {}  # bounded by the number of machines
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._worker: threading.Thread | None = None

    def committed(self, journal: Journal, point: Point) -> None:
        """To be called after a commit; returns at once."""
        del point  # which one to promote is decided from the journal
        self.want(journal)

    def want(self, journal: Journal) -> None:
        """Look at a machine soon (also at the start, for promotions that were cut off)."""
        with self._lock:
            self._waiting.setdefault(journal.machine, journal)
            if self._worker is None and not self._closing.is_set():
                self._worker = threading.Thread(target=self._work, name="promote", daemon=True)
                self._worker.start()
        self._wake.set()

    def close(self) -> None:
        """Stop after the machine under way; a promotion may be cut off anywhere and is repeated."""
        self._closing.set()
        self._wake.set()
        if self._worker is not None:
            self._worker.join()

    def _work(self) -> None:
        """The worker's thread."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        failed: dict[MachineId, Journal] = {}
        while not self._closing.is_set():
            with self._lock:
                batch, self._waiting = self._waiting, {}
            for journal in batch.values():
                if self._closing.is_set():
                    return
                if not self._attempt(journal):
                    failed[journal.machine] = journal
            if failed:
                self._clock.wait(self._wake, RETRY_SECONDS)
                with self._lock:
                    self._waiting = {**failed, **self._waiting}
                failed = {}
            else:
                self._wake.wait()
            self._wake.clear()

    def _attempt(self, journal: Journal) -> bool:
        """Promote what is to be promoted; False when that is to be tried again."""
        try:
            while not self._closing.is_set():
                number = wanted(journal.state(), journal.points(), self._keep_points)
                if number is None:
                    return True
                if not self._promote(journal, number):
                    return False
        except (SecondsiteError, OSError) as error:
            text = f"promotion failed and is tried again, nothing is lost: {error}"
            self._events.emit("promote.failed", Severity.WARNING, text, machine=journal.machine)
        except Exception as error:  # noqa: BLE001 - the thread's root: other machines are promoted still
            text = f"promotion failed: {type(error).__name__}: {error}"
            self._events.emit("promote.internal-error", Severity.CRITICAL, text, machine=journal.machine)
        return False

    def _promote(self, journal: Journal, number: int) -> bool:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        room = os.statvfs(self._directory)
        free = room.f_bavail * room.f_frsize
        need = ROOM_BYTES_MIN + sum(
            ref.data_bytes for point in journal.points() if point.number <= number for ref in point.segments
        )
        if free < need:
            text = f"promotion needs {format_bytes(need)} in {self._directory}, {format_bytes(free)} are free"
            self._events.emit("promote.no-room", Severity.WARNING, text, machine=journal.machine)
            return False
        begun = self._clock.monotonic()
        keys = KeyRing(journal.store, journal.machine, self._vault)

        def open_base(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
            if known is not None:
                return RawBase(Path(known.locator))
            return RawBase.create(self._directory / f"{journal.machine}.{disk}.raw", size_bytes)

        done = promote(journal, number, keys, open_base, clock=self._clock)
        text = f"the base holds point {done.floor}: {format_bytes(done.written_bytes)} written"
        if done.floor < number:
            # a pin: an event each time it is tried would say nothing new
            return False
        self._events.emit(
            "promote.done",
            Severity.INFORMATION,
            text,
            machine=journal.machine,
            number=done.floor,
            written_bytes=done.written_bytes,
            seconds=round(self._clock.monotonic() - begun, 3),
        )
        return True
