"""Deep verify: does a point at the target hold what the source held at that instant?

A cycle's capture is one instant over all disks, and what it leads to is a point of that instant. While it is
open, a slice of a disk is read besides what changed, and digested; once the point is committed, the target
reads the same ranges of it again from what it stores, and both are compared (`journal.compare`). So nothing
is ever compared across instants, no job stays open longer than a slice takes, and replication goes on.

A *pass* asked for goes through all disks, a slice with each cycle. Without one, a share of the disks is
verified each day (rule 13), the position being kept across restarts. What differs is a critical event naming
the ranges, and is sent again with the next cycle (`mending`), whatever the table of known blocks says: from
then on points hold what the source holds. Those before stay as they are; they are named as far as is known.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB, SUB_BLOCK_BYTES, format_bytes
from secondsite.fabrics.base import Capture
from secondsite.gateway.messages.gateway import DeepVerification, DifferingRange
from secondsite.gateway.source.compare import RemoteDisk, Traffic
from secondsite.gateway.source.mending import Mending
from secondsite.gateway.source.plan import checkpoint_number
from secondsite.journal.chain_errors import PointUnknown
from secondsite.journal.compare import RANGE_BYTES, differing
from secondsite.journal.digests import Digests, digest_sub_blocks
from secondsite.journal.keys import DiskKey
from secondsite.model.events import EventSink, Severity
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId
from secondsite.transfer.errors import DigestsRefused
from secondsite.transfer.protocols import CommittedPoint, Link, error_code

log = logging.getLogger(__name__)

# With a slice a cycle takes about a second longer, and its digests hold 1 MiB of memory.
SLICE_BYTES = 256 * MIB
SLICE_SECONDS = 2.0
# A whole disk in a month: 64 GiB are 2 GiB a day, in slices that hardly show.
ROLLING_DAYS = 30.0
ROLLING_SLICE_BYTES = 16 * MIB
# What is reported one by one; the rest is counted.
RANGES_MAX = 64
TRIES_MAX = 20
# Ranges that wait to be sent again: at the worst every other sub-block of a slice.
_STATE_BYTES_MAX = 16 * MIB


class VerifyRunning(SecondsiteError):
    """A pass is under way already."""

    code = "verify.deep-running"
    outcome = Outcome.REFUSED
    happened = "A deep verification of {machine} is under way: {done} of {total}."
    cause = "It was asked for before."
    action = "Wait for it; its progress is shown."


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a pass goes on."""

    disk: str = ""
    offset: int = 0


class _Kept(_Place, frozen=True, kw_only=True):
    """What outlives a restart: the place of the rolling pass, and what is not right yet."""

    began: int = 0  # the first point of this pass
    sound: int = (
        0  # the first point of the last pass that went through: what it saw was compared then, or later
    )
    wrong: dict[DiskId, tuple[int, ...]] = {}  # start, end, start, end, …: to be sent again


@dataclass(eq=False)
class _Slice:
    """Read at an instant, to be compared once that is a point."""

    checkpoint: str
    disk: DiskId
    size_bytes: int
    key: DiskKey
    parts: list[tuple[int, Digests]]
    bytes: int
    after: _Place | None  # where the next one begins; None: the pass is through
    total_bytes: int
    deep: bool


@dataclass
class _Pass:
    """One that was asked for."""

    started_at: str
    place: _Place = field(default_factory=_Place)
    done_bytes: int = 0
    total_bytes: int = 0
    differing: list[DifferingRange] = field(default_factory=list)
    differing_bytes: int = 0
    points: tuple[int, int] | None = None
    finished_at: str | None = None
    error: str = ""
    failures: int = 0


class DeepVerifier:
    """One machine's. `read` and `committed` fit `cycle.Beside`; thread-safe."""

    def __init__(
        self,
        machine: MachineId,
        name: str,
        keys: Mapping[DiskId, DiskKey],
        link: Link,
        *,
        state_path: Path,
        clock: Clock,
        events: EventSink,
        rolling_days: float | None = ROLLING_DAYS,
        slice_bytes: int = SLICE_BYTES,
        hurry: Callable[[], None] | None = None,
    ) -> None:
        """rolling_days: how long a rolling pass takes, None: none. hurry: asks for a cycle now."""
        self._machine = machine
        self._name = name
        self._keys = keys
        self._link = link
        self._state_path = state_path
        self._clock = clock
        self._events = events
        self._rolling_days = rolling_days
        self._slice_bytes = slice_bytes
        self.hurry = hurry
        self._lock = threading.Lock()
        self._waiting: _Slice | None = None  # read, not committed yet
        self._comparing = False
        self._pass: _Pass | None = None
        self._kept = self._load()
        self._rolling = _Place(disk=self._kept.disk, offset=self._kept.offset)
        self._rolled_at = clock.monotonic()
        self._mending: Mending | None = None

    def heal_with(self, mending: Mending) -> None:
        """What differs is handed to it, also what an earlier process found. Call before the first cycle."""
        self._mending = mending
        for disk, numbers in self._kept.wrong.items():
            mending.found(disk, Extents.of(zip(numbers[::2], numbers[1::2], strict=True)))

    # -- asked for ------------------------------------------------------------------------------

    def start(self) -> DeepVerification:
        """Begin a pass over all disks. Raises VerifyRunning."""
        with self._lock:
            current = self._pass
            if current is not None and current.finished_at is None:
                done, total = format_bytes(current.done_bytes), format_bytes(current.total_bytes)
                raise VerifyRunning(machine=self._name, done=done, total=total)
            self._pass = _Pass(started_at=self._clock.utc().isoformat(timespec="seconds"))
        self._hurry()
        return self.show()

    def show(self) -> DeepVerification:
        """The pass that was asked for last."""
        with self._lock:
            found = self._pass
            if found is None:
                return DeepVerification(machine=self._machine, name=self._name)
            return DeepVerification(
                machine=self._machine,
                name=self._name,
                started_at=found.started_at,
                finished_at=found.finished_at,
                done_bytes=found.done_bytes,
                total_bytes=found.total_bytes,
                differing_bytes=found.differing_bytes,
                differing=tuple(found.differing),
                first_point=found.points[0] if found.points else None,
                last_point=found.points[1] if found.points else None,
                error=found.error,
            )

    # -- beside the cycles ------------------------------------------------------------------------

    def read(self, capture: Capture, checkpoint: str) -> None:
        """Read the next slice, if one is due; a failure of it is not the cycle's."""
        with self._lock:
            if self._waiting is not None or self._comparing:
                return
            running = self._pass is not None and self._pass.finished_at is None
            place = self._pass.place if running and self._pass is not None else self._rolling
        total = sum(disk.size_bytes for disk in capture.disks)
        length = self._slice_bytes if running else self._share(total)
        if not length:
            return
        try:
            made = self._read(capture, checkpoint, place, length, total, deep=running)
        except SecondsiteError as error:
            log.warning("a slice of %s was not read for verification: %s", self._name, error)
            return
        with self._lock:
            self._waiting = made

    def committed(self, point: CommittedPoint) -> None:
        """A point exists: compare the slice of its instant, in a thread of its own."""
        self._healed(point)
        with self._lock:
            waiting = self._waiting
            if waiting is None:
                return
            if waiting.checkpoint != point.checkpoint:
                if checkpoint_number(point.checkpoint) > checkpoint_number(waiting.checkpoint):
                    self._waiting = None  # its instant was given up
                return
            self._waiting, self._comparing = None, True
        threading.Thread(
            target=self._compare_root, args=(waiting, point), name=f"verify {self._name}", daemon=True
        ).start()

    def _share(self, total_bytes: int) -> int:
        """How much of the disks is due by now in a rolling pass; 0: not worth a slice yet."""
        if self._rolling_days is None:
            return 0
        seconds = self._clock.monotonic() - self._rolled_at
        due = int(total_bytes * seconds / (self._rolling_days * 86_400))
        return min(due, self._slice_bytes) if due >= min(ROLLING_SLICE_BYTES, total_bytes) else 0

    def _read(
        self, capture: Capture, checkpoint: str, place: _Place, length: int, total: int, *, deep: bool
    ) -> _Slice:
        disks = sorted(capture.disks, key=lambda disk: disk.id)
        index = next((i for i, disk in enumerate(disks) if disk.id >= place.disk), 0)
        disk = disks[index]
        offset = place.offset if disk.id == place.disk and place.offset < disk.size_bytes else 0
        key = self._keys[disk.id]
        until = self._clock.monotonic() + SLICE_SECONDS
        parts, end = [], offset
        wanted = Extents.of([(offset, min(disk.size_bytes, offset + max(length, RANGE_BYTES)))])
        for start, data in disk.read(wanted.pieces(RANGE_BYTES, aligned=True)):
            first = start // SUB_BLOCK_BYTES
            parts.append((first, digest_sub_blocks(data, first, key.digest_seed())))
            end = start + len(data)
            if self._clock.monotonic() > until:
                break
        after: _Place | None = _Place(disk=disk.id, offset=end)
        if end >= disk.size_bytes:
            after = _Place(disk=disks[index + 1].id) if index + 1 < len(disks) else None
        return _Slice(
            checkpoint=checkpoint,
            disk=disk.id,
            size_bytes=disk.size_bytes,
            key=key,
            parts=parts,
            bytes=end - offset,
            after=after,
            total_bytes=total,
            deep=deep,
        )

    # -- comparing ----------------------------------------------------------------------------------

    def _compare_root(self, made: _Slice, point: CommittedPoint) -> None:
        try:
            found = self._compare(made, point)
            self._done(made, point, found)
        except SecondsiteError as error:
            self._failed(made, error)
        except Exception as error:  # the thread's root: told, and the slice is read again
            log.exception("verifying %s failed", self._name)
            text = f"verifying {self._name} failed: {type(error).__name__}: {error}"
            self._events.emit("verify.internal-error", Severity.CRITICAL, text, machine=self._machine)
            self._failed(made, DigestsRefused(disk=made.disk, point=point.number, why=text))
        finally:
            with self._lock:
                self._comparing = False
                more = self._pass is not None and self._pass.finished_at is None
                more = more or bool(self._kept.wrong)
            if more:
                self._hurry()

    def _compare(self, made: _Slice, point: CommittedPoint) -> list[tuple[int, int]]:
        state = next((disk for disk in point.disks if disk.id == made.disk), None)
        if state is None or state.key_id != made.key.origin or state.size_bytes != made.size_bytes:
            why = "the point has the disk with another key or size, or not at all"
            raise DigestsRefused(disk=made.disk, point=point.number, why=why)
        theirs = RemoteDisk(self._link, self._machine, state, point.number, traffic=Traffic(), reread=True)
        found = list(differing(made.parts, theirs, made.size_bytes))
        return list(Extents.of(found)) if found else []

    def _done(self, made: _Slice, point: CommittedPoint, found: list[tuple[int, int]]) -> None:
        if found:
            self._tell(made, point, found)
        ended = None
        with self._lock:
            if found:
                self._wound(made.disk, found)
            current = self._pass
            if not made.deep:
                self._rolling, self._rolled_at = made.after or _Place(), self._clock.monotonic()
                self._rolled(point, through=made.after is None)
            elif current is not None and current.finished_at is None:
                current.place = made.after or _Place()
                current.failures = 0
                current.done_bytes += made.bytes
                current.total_bytes = made.total_bytes
                current.differing_bytes += sum(end - start for start, end in found)
                room = RANGES_MAX - len(current.differing)
                current.differing += [
                    DifferingRange(disk=made.disk, offset=start, length=end - start, point=point.number)
                    for start, end in found[:room]
                ]
                first = current.points[0] if current.points else point.number
                current.points = (first, point.number)
                if made.after is None:
                    current.finished_at = self._clock.utc().isoformat(timespec="seconds")
                    self._keep(sound=max(self._kept.sound, first))
                    ended = current
        if ended is not None:
            self._tell_ended(ended)

    def _failed(self, made: _Slice, error: SecondsiteError) -> None:
        """Read the slice again with a later point; a pass ends when that does not help either."""
        log.warning("a slice of %s was not compared: %s", self._name, error)
        with self._lock:
            current = self._pass
            if not made.deep or current is None:
                self._rolled_at = self._clock.monotonic()
                return
            current.failures += 1
            # a point may be thinned out before it was read; everything else that is refused stays refused
            hopeless = not error.retryable and error_code(error) != PointUnknown.code
            if current.failures < (3 if hopeless else TRIES_MAX):
                return
            current.error = str(error)
            current.finished_at = self._clock.utc().isoformat(timespec="seconds")
        text = f"the deep verification of {self._name} ended early: {error}"
        self._events.emit("verify.deep-failed", Severity.WARNING, text, machine=self._machine)

    def _tell(self, made: _Slice, point: CommittedPoint, found: list[tuple[int, int]]) -> None:
        total = sum(end - start for start, end in found)
        sound = self._kept.sound
        since = "since when is not known"
        if sound:
            since = f"it was right when compared last, at point {sound} or later, and may be wrong since"
        shown = ", ".join(f"{start}..{end}" for start, end in found[:8]) + ", …" * (len(found) > 8)
        text = (
            f"point {point.number} of {self._name} differs from the source at that instant: "
            f"{format_bytes(total)} of disk {made.disk} in {len(found)} ranges ({shown}); "
            f"{since}; it is sent again with the next cycle"
        )
        self._events.emit(
            "verify.differs",
            Severity.CRITICAL,
            text,
            machine=self._machine,
            disk=made.disk,
            point=point.number,
            differing_bytes=total,
            sound_point=sound,
        )

    def _wound(self, disk: DiskId, found: list[tuple[int, int]]) -> None:
        """Under the lock."""
        if self._mending is None:
            return
        self._mending.found(disk, Extents.of(found))
        self._keep(wrong=_flat(self._mending.differing()))

    def _healed(self, point: CommittedPoint) -> None:
        """Tell what has become right with a point."""
        with self._lock:
            if self._mending is None or not self._kept.wrong:
                return
            before, left = self._kept.wrong, self._mending.differing()
            if _flat(left) == before:
                return
            self._keep(wrong=_flat(left))
            healed = _count(before) - _count(_flat(left))
        rest = f"; {format_bytes(_count(_flat(left)))} follow" if left else ""
        text = (
            f"{format_bytes(healed)} of {self._name} that differed from the source are right again from "
            f"point {point.number} on{rest}; points before it stay as they are"
        )
        self._events.emit(
            "verify.healed",
            Severity.WARNING,
            text,
            machine=self._machine,
            point=point.number,
            healed_bytes=healed,
        )

    def _tell_ended(self, ended: _Pass) -> None:
        first, last = ended.points or (0, 0)
        text = (
            f"deep verification of {self._name}: {format_bytes(ended.done_bytes)} compared with points "
            f"{first} to {last}, {format_bytes(ended.differing_bytes)} differed"
        )
        severity = Severity.CRITICAL if ended.differing_bytes else Severity.INFORMATION
        self._events.emit("verify.deep-done", severity, text, machine=self._machine)

    # -- small things -------------------------------------------------------------------------------

    def _hurry(self) -> None:
        if self.hurry is not None:
            self.hurry()

    def _load(self) -> _Kept:
        try:
            return msgspec.json.decode(
                read_limited(self._state_path, size_bytes_max=_STATE_BYTES_MAX), type=_Kept
            )
        except (OSError, *JSON_ERRORS):
            return _Kept()

    def _rolled(self, point: CommittedPoint, *, through: bool) -> None:
        """A slice of the rolling pass was compared. Under the lock."""
        place, kept = self._rolling, self._kept
        began = kept.began or point.number
        if through:
            self._keep(disk="", offset=0, began=0, sound=max(kept.sound, began))
        else:
            self._keep(disk=place.disk, offset=place.offset, began=began)

    def _keep(self, **changes: object) -> None:
        """Under the lock."""
        self._kept = msgspec.structs.replace(self._kept, **changes)
        try:
            self._state_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._state_path, msgspec.json.encode(self._kept))
        except OSError as error:  # the next start begins the pass again
            log.warning("the state of the verification was not kept: %s", error)


def _flat(ranges: Mapping[DiskId, Extents]) -> dict[DiskId, tuple[int, ...]]:
    return {
        disk: tuple(number for part in where for number in part) for disk, where in sorted(ranges.items())
    }


def _count(flat: Mapping[DiskId, tuple[int, ...]]) -> int:
    return sum(sum(numbers[1::2]) - sum(numbers[::2]) for numbers in flat.values())
