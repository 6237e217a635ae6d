"""At the target: what a scrub found missing of the newest point, until the source has sent it again.

Kept in the state directory, so that a restart goes on asking. What a committed point's segments cover is no
longer missing, whoever wrote it and why; an older segment or a base block beneath may stay damaged for ever.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import msgspec
import numpy as np

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import GIB, MIB, format_bytes
from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import open_segment
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.scrub import ScrubReport
from secondsite.model.events import EventSink, Severity
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId, machine_id
from secondsite.model.points import Point
from secondsite.transfer.protocols import REPAIR_RANGES_MAX, REPAIR_VERSION, Repair

AFTER_ASKED = mark("repair.after-asked")
AFTER_CLEARED = mark("repair.after-cleared")

RECORD_BYTES_MAX = 64 * MIB
# Asked for at once: what one capture reads in a second or two. The rest follows with the next.
ASKED_BYTES_MAX = 1 * GIB


class _Lost(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing of a machine, as kept."""

    point: int  # segments up to this point are taken into account
    found_at: str
    ranges: dict[DiskId, tuple[int, ...]]  # start, end, start, end, …
    version: int = 1


class Repairs:
    """For all machines of a store. Thread-safe.

    `found` fits `Scrubs(on_report=…)`, `committed` belongs to what follows a commit, `wanted` fits
    `GatewayReceiver(repairs=…)`.
    """

    def __init__(self, directory: Path, *, vault: VaultKey, clock: Clock, events: EventSink) -> None:
        self._directory, self._vault, self._clock, self._events = directory, vault, clock, events
        self._lock = threading.Lock()
        self._known: dict[MachineId, _Lost | None] = {}

    def found(self, journal: Journal, report: ScrubReport) -> None:
        """A scrub's result: what it found missing replaces what was known before."""
        if report.head is None or not report.points:
            return  # the log itself is damaged: nothing can be committed that would repair it
        machine, newest = journal.machine, report.points[-1]
        with self._lock:
            before = self._read(machine)
            missing = self._without(journal, dict(report.missing), newest)
            lost = _Lost(
                point=journal.head().number,
                found_at=self._clock.utc().isoformat(timespec="seconds"),
                ranges={disk: _flat(where) for disk, where in missing.items()},
            )
            self._write(machine, lost if missing else None)
            crash_point(AFTER_ASKED)
        if missing and (before is None or before.ranges != lost.ranges):
            self._tell_asked(machine, report.name, missing)

    def forget(self, machine: MachineId) -> None:
        """All of it was deleted: nothing of it is missing any more."""
        with self._lock:
            self._write(machine, None)

    def committed(self, journal: Journal, point: Point) -> None:
        """A point was committed: what it covers is there again."""
        with self._lock:
            lost = self._read(journal.machine)
            if lost is None or point.number <= lost.point:
                return
            before = _extents(lost)
            missing = self._without(journal, dict(before), lost.point)
            ranges = {disk: _flat(where) for disk, where in missing.items()}
            left = msgspec.structs.replace(lost, point=point.number, ranges=ranges)
            self._write(journal.machine, left if missing else None)
            crash_point(AFTER_CLEARED)
        came = sum(where.total_bytes for where in before.values())
        came -= sum(where.total_bytes for where in missing.values())
        if came:
            self._tell_done(journal.machine, point, came, missing)

    def wanted(self, machine: MachineId) -> Repair | None:
        """What the source is asked for now, bounded."""
        with self._lock:
            lost = self._read(machine)
        if lost is None:
            return None
        ranges: dict[DiskId, tuple[int, ...]] = {}
        left, rows = ASKED_BYTES_MAX, REPAIR_RANGES_MAX
        for disk, where in _extents(lost).items():
            part, _ = bounded(where, rows).take(left)
            if len(part):
                ranges[disk] = _flat(part)
                left -= part.total_bytes
                rows -= len(part)
            if left <= 0 or rows <= 0:
                break
        return Repair(version=REPAIR_VERSION, ranges=ranges)

    def missing(self, machine: MachineId) -> dict[DiskId, Extents]:
        """What is not there yet."""
        with self._lock:
            lost = self._read(machine)
        return _extents(lost) if lost is not None else {}

    def _without(self, journal: Journal, missing: dict[DiskId, Extents], after: int) -> dict[DiskId, Extents]:
        """What is left of `missing` once the points after `after` are taken into account."""
        spans = {span.last for span in journal.state().spans}
        keys = KeyRing(journal.store, journal.machine, self._vault)
        for point in journal.points_after(after):
            if point.number in spans:
                continue  # what was merged into it may be what was lost
            for disk in point.disks:
                for ref in point.segments:
                    if ref.disk == disk.id and disk.id in missing:
                        # one that cannot be read covers nothing
                        with contextlib.suppress(SecondsiteError):
                            index = open_segment(journal, ref, keys, disk).index
                            starts = index["offset"].astype(np.int64)
                            ends = starts + index["length"].astype(np.int64)
                            covered = Extents.from_arrays(starts, ends)
                            missing[disk.id] = missing[disk.id].subtract(covered)
                if disk.id in missing:
                    missing[disk.id] = missing[disk.id].clip(0, disk.size_bytes)
        return {disk: where for disk, where in missing.items() if len(where)}

    def _tell_asked(self, machine: MachineId, name: str, missing: dict[DiskId, Extents]) -> None:
        count = sum(where.total_bytes for where in missing.values())
        text = f"{format_bytes(count)} of the newest point of {name} are lost; the source is asked for them"
        ranges = sum(len(where) for where in missing.values())
        self._events.emit("repair.asked", Severity.WARNING, text, machine=machine, bytes=count, ranges=ranges)

    def _tell_done(
        self, machine: MachineId, point: Point, count: int, missing: dict[DiskId, Extents]
    ) -> None:
        left = sum(where.total_bytes for where in missing.values())
        rest = f"{format_bytes(left)} are still missing" if left else "nothing is missing any more"
        text = f"{format_bytes(count)} of {point.machine_name} came again with point {point.number}; {rest}"
        code = "repair.going-on" if left else "repair.done"
        self._events.emit(
            code, Severity.INFORMATION, text, machine=machine, bytes=count, missing=left, number=point.number
        )

    # -- the record -----------------------------------------------------------------------------

    def _read(self, machine: MachineId) -> _Lost | None:
        if machine not in self._known:
            self._known[machine] = None
            with contextlib.suppress(FileNotFoundError, OSError, SecondsiteError, *JSON_ERRORS):
                data = read_limited(self._path(machine), size_bytes_max=RECORD_BYTES_MAX)
                self._known[machine] = msgspec.json.decode(data, type=_Lost)
        return self._known[machine]

    def _write(self, machine: MachineId, lost: _Lost | None) -> None:
        if lost is None and self._read(machine) is None:
            return
        self._known.pop(machine, None)  # what is on disk counts, whatever happens now
        if lost is None:
            remove_file(self._path(machine))
        else:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path(machine), msgspec.json.encode(lost))
        self._known[machine] = lost

    def _path(self, machine: MachineId) -> Path:
        return self._directory / f"{machine_id(machine)}.json"


def bounded(where: Extents, ranges_max: int) -> Extents:
    """The same or more in at most `ranges_max` ranges: the narrowest gaps are closed."""
    if len(where) <= ranges_max:
        return where
    gaps = where.starts[1:] - where.ends[:-1]
    kept = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - (ranges_max - 1) :])
    starts = np.concatenate((where.starts[:1], where.starts[1:][kept]))
    ends = np.concatenate((where.ends[:-1][kept], where.ends[-1:]))
    return Extents(starts, ends)


def _flat(where: Extents) -> tuple[int, ...]:
    return tuple(number for pair in where for number in pair)


def _extents(lost: _Lost) -> dict[DiskId, Extents]:
    pairs = ((disk, Extents.of(zip(n[::2], n[1::2], strict=False))) for disk, n in lost.ranges.items())
    return {disk: where for disk, where in pairs if len(where)}
