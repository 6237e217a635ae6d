"""The first copy becomes the base: soon after a machine's first point, beside replication, never before it.

One thread for all machines of the store: promotion is bulk work on the target's disk and must not crowd out
the segments that arrive. What is cut off goes on at the next start; nothing waits for it but room.
"""

from __future__ import annotations

import logging
import secrets
import threading
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import fsync_directory
from secondsite.base.units import format_bytes
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal, machines
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.promote import promote
from secondsite.journal.state import BaseState, State
from secondsite.journal.store import ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import Point

log = logging.getLogger(__name__)

# After a failure (a full volume, say) the work is tried again this much later.
RETRY_SECONDS = 60.0


class Promoter:
    """Promotes each machine's first point into raw images under a directory of the target pool.

    `committed` fits `receive.GatewayReceiver(on_commit=…)`. `start` once, `close` at the end.
    """

    def __init__(
        self, store: ObjectStore, directory: Path, *, vault: VaultKey, clock: Clock, events: EventSink
    ) -> None:
        self._store = store
        self._directory = directory
        self._vault = vault
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._waiting: dict[MachineId, Journal] = {}  # at most one entry a machine
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="promote", daemon=True)

    def start(self) -> None:
        """Take up what an earlier process left, then wait for first points."""
        for machine in machines(self._store):
            self._want(Journal(self._store, machine, self._vault))
        self._thread.start()

    def close(self) -> None:
        """Finish the machine at hand, then stop."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def committed(self, journal: Journal, point: Point) -> None:
        """A point was committed; costs a look at it."""
        if point.parent_checkpoint is None:
            self._want(journal)

    def _want(self, journal: Journal) -> None:
        with self._lock:
            self._waiting.setdefault(journal.machine, journal)
        self._wake.set()

    def _root(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            with self._lock:
                waiting = list(self._waiting.values())
            if not waiting:
                self._wake.wait()
                continue
            for journal in waiting:
                if self._stop.is_set():
                    return
                self._try(journal)
            with self._lock:
                failed = bool(self._waiting)
            if failed:
                self._clock.wait(self._wake, RETRY_SECONDS)

    def _try(self, journal: Journal) -> None:
        try:
            if not self._promote_first(journal):
                return
        except SecondsiteError as error:
            text = f"the first copy could not become the base yet: {error}"
            self._events.emit("promote.failed", Severity.WARNING, text, machine=journal.machine)
            return
        except Exception as error:  # a thread's root: told, and tried again
            log.exception("promotion failed")
            text = f"promotion failed: {type(error).__name__}: {error}"
            self._events.emit("promote.internal-error", Severity.CRITICAL, text, machine=journal.machine)
            return
        with self._lock:
            self._waiting.pop(journal.machine, None)

    def _promote_first(self, journal: Journal) -> bool:
        """Whether nothing is left to do."""
        state = journal.state()
        if state.floor and state.promoted >= state.floor:
            return True
        number = state.floor
        if not number:
            first = next(iter(journal.points()), None)
            if first is None:
                return True
            number = first.number
        keys = KeyRing(self._store, journal.machine, self._vault)
        started = self._clock.monotonic()

        def open_base(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
            return self._open_base(journal, state, disk, size_bytes, known)

        done = promote(journal, number, keys, open_base, clock=self._clock)
        seconds = self._clock.monotonic() - started
        if done.floor < number:
            holders = ", ".join(done.held_back_by)
            text = f"promotion waits for points that are pinned by {holders}"
            self._events.emit("promote.held-back", Severity.INFORMATION, text, machine=journal.machine)
            return False
        self._events.emit(
            "promote.done",
            Severity.INFORMATION,
            f"the base holds point {done.floor}: {format_bytes(done.written_bytes)} written",
            machine=journal.machine,
            number=done.floor,
            written_bytes=done.written_bytes,
            seconds=round(seconds, 3),
        )
        return True

    def _open_base(
        self, journal: Journal, state: State, disk: DiskId, size_bytes: int, known: BaseState | None
    ) -> BaseImage:
        if known is not None:
            return RawBase(known.locator)
        directory = self._directory / journal.machine
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        fsync_directory(self._directory)  # what a base holds is nowhere else once its segments are gone
        # what a crash left before the state knew it: ours by its place, and empty by the order of promotion
        registered = {Path(base.locator) for base in state.bases}
        for left in directory.glob(f"{disk}.*.raw"):
            if left not in registered and left.stat().st_blocks == 0:
                left.unlink()
        return RawBase.create(directory / f"{disk}.{secrets.token_hex(4)}.raw", size_bytes)
