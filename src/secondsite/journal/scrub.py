"""Scrub: read everything a machine's journal consists of, and say which points can be trusted.

In this order: state, log and spans (one chain of hashes), wrapped keys, the bases against their sums, then
every segment of every point, oldest first, and what each point's content adds up to against the fingerprint
in its manifest; last some points whole through a view, as a machine booted from them would read them.

Points are pinned meanwhile: the newest, so that no segment goes while it is to be read, and for as long as
the bases are read the oldest, so that no promotion writes into them. What is committed after that is for the
next one: nothing keeps it from being merged and deleted while it would be read.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.journal.bases import BaseFailed, BaseImage, BaseMismatch
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import PointUnknown
from secondsite.journal.disk_index import open_disk_index
from secondsite.journal.keys import KeyRing
from secondsite.journal.names import base_sums_prefix, merged_prefix, segments_prefix
from secondsite.journal.scrub_base import base_lost, read_base, read_known
from secondsite.journal.scrub_disk import DiskWalk, Loss, PairArray, Verdict
from secondsite.journal.scrub_log import Log, read_log
from secondsite.journal.scrub_pages import see_through_pages
from secondsite.journal.scrub_pins import OnUnpinned, pinned, pinned_for_reading
from secondsite.journal.scrub_segment import UNUSABLE, SegmentCheck, check_segment
from secondsite.journal.scrub_types import (
    Damage,
    Meter,
    OnProgress,
    Position,
    ScrubCancelled,
    ScrubReport,
    Trusted,
)
from secondsite.journal.scrub_view import sum_view
from secondsite.journal.scrub_work import in_order
from secondsite.journal.segment_read import verify_segment
from secondsite.journal.store import ObjectMissing, StoreUnavailable
from secondsite.journal.view import BaseOf, check_base, open_view
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.points import DiskState, Point, SegmentRef

# Hashing, opening and unpacking release the interpreter's lock: more threads than cores win nothing.
WORKERS_MAX = 4
# One unreadable object is a bad sector; so many in a row are a store that is gone.
UNAVAILABLE_IN_A_ROW_MAX = 8


def scrub(
    journal: Journal,
    keys: KeyRing,
    bases: BaseOf,
    *,
    clock: Clock,
    points: Collection[int] | None = None,
    trusted: Trusted | None = None,
    progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    bytes_per_second: float | None = None,
    work_dir: Path | None = None,
    on_unpinned: OnUnpinned | None = None,
) -> ScrubReport:
    """Verify a machine's replica. Damage is reported, not raised.

    journal, keys: opened for this, so that nothing is answered from memory. bases: as `open_view` takes it.
    points: to be read whole through a view; None: the newest and the oldest.
    trusted: what was seen before, so that a rewritten or shortened log is noticed.
    bytes_per_second: not faster than this. work_dir: for temporary files of large disks.
    on_unpinned: told that the store cannot be written, so that nothing can be pinned; without it that raises.

    Raises:
        ScrubCancelled. WrongKey: nothing here is sealed with the key. StoreUnavailable: the store is gone.
    """
    meter = Meter(
        journal.machine, clock=clock, cancel=cancel, progress=progress, bytes_per_second=bytes_per_second
    )
    report = ScrubReport(machine=journal.machine, started_at=clock.utc().isoformat(timespec="seconds"))
    started = clock.monotonic()
    with contextlib.ExitStack() as stack:
        pins = stack.enter_context(pinned(journal, clock, meter, on_unpinned))
        log = read_log(journal, meter, trusted, last=pins.last)
        pool = stack.enter_context(ThreadPoolExecutor(min(WORKERS_MAX, os.cpu_count() or 1), "scrub"))
        run = _Run(journal, keys, log, report, meter=meter, pool=pool, work_dir=work_dir)
        stack.callback(run.close)
        run.check_keys()
        run.read_bases(bases)
        pins.bases.close()  # promotion may go on: what it takes from the journal now is held by the other pin
        run.read_segments()
        run.judge()
        run.reread(points, bases)
        run.finish()
    report.bytes = meter.done
    report.seconds = clock.monotonic() - started
    return report


class _Run:
    """One scrub's work."""

    def __init__(
        self,
        journal: Journal,
        keys: KeyRing,
        log: Log,
        report: ScrubReport,
        *,
        meter: Meter,
        pool: Executor,
        work_dir: Path | None,
    ) -> None:
        self._journal, self._keys, self._log, self._report = journal, keys, log, report
        self._meter, self._pool, self._work_dir = meter, pool, work_dir
        self._walks: dict[DiskId, DiskWalk] = {}
        self._verdicts: dict[int, dict[DiskId, Verdict]] = {}  # of listed points
        self._content: dict[DiskId, Damage] = {}
        self._sums_damaged: set[DiskId] = set()
        self._unavailable = 0  # objects in a row
        report.name, report.objects, report.head = log.name, log.objects, log.head
        report.damaged += log.damaged
        report.notes += log.notes
        report.points = log.listed()

    # -- keys and bases -------------------------------------------------------------------------

    def check_keys(self) -> None:
        """The wrapped keys of all points; what a lost one costs shows where its segments are applied."""
        self._meter.say("reading the keys")
        named = {disk.key_id for point in self._log.points for disk in point.disks}
        named |= {s.key_id for point in self._log.points for s in point.segments if s.key_id is not None}
        for key in sorted(named):
            self._report.objects += 1
            try:
                self._keys.read(key)
            except UNUSABLE as error:
                name = self._keys.name(key)
                self._report.damaged.append(Damage(name, "key", str(error)))

    def read_bases(self, bases: BaseOf) -> None:
        """Start each disk's walk with what its base holds."""
        state = self._log.state
        for disk in self._disks():
            known = state.base(disk)
            sizes = [d.size_bytes for p in self._log.points for d in p.disks if d.id == disk]
            size = known.size_bytes if known else 0
            key = self._first_key(disk)
            walk = DiskWalk(disk, key, size, max([size, *sizes]), self._work_dir)
            self._walks[disk] = walk
            if known is not None:
                self._meter.say(f"reading the base of {disk}")
                try:
                    self._read_base(walk, bases)
                except UNUSABLE:
                    walk.know_nothing()  # without its key nothing in a base can be judged; it can be read

    def _disks(self) -> list[DiskId]:
        return sorted({disk.id for point in self._log.points for disk in point.disks})

    def _first_key(self, disk: DiskId) -> KeyId:
        return next(d.key_id for p in self._log.points for d in p.disks if d.id == disk)

    def _read_base(self, walk: DiskWalk, bases: BaseOf) -> None:
        journal, state = self._journal, self._log.state
        known = state.base(walk.disk)
        assert known is not None
        base: BaseImage | None = None
        try:
            base = bases(walk.disk)
            check_base(journal.machine, state, walk.disk, base)
        except SecondsiteError as error:
            if base is not None:
                base.close()
            base_lost(walk, known.locator, error)
            return
        assert base is not None
        sums = PairArray(-(-walk.size_bytes // (64 * 1024)), self._work_dir)
        try:
            rows, objects, damages = read_known(
                journal, walk.disk, walk.size_bytes, meter=self._meter, sums=sums
            )
            self._report.objects += objects + 1
            self._report.damaged += damages
            if damages:
                self._sums_damaged.add(walk.disk)
            rows.forget(self._being_written(walk, base))
            seed = self._keys.get(walk.key).digest_seed()
            read_base(walk, base, rows, seed, pool=self._pool, meter=self._meter)
        finally:
            sums.close()
            base.close()

    def _being_written(self, walk: DiskWalk, base: BaseImage) -> Extents:
        """Where a promotion that has not ended may be writing: no listed point reads that from the base."""
        state, size = self._log.state, walk.size_bytes
        where = Extents.empty()
        if base.size_bytes != size:
            end = min(base.size_bytes, size)
            where = Extents.of([(max(0, end - 1), max(size, end))])
        if state.floor <= state.promoted:
            return where
        try:
            index = open_disk_index(self._journal, walk.disk, state, state.floor, self._keys)
        except SecondsiteError:
            return Extents.whole(size)  # what it writes cannot be told
        return where.union(index.layer.extents())

    # -- segments -------------------------------------------------------------------------------

    def read_segments(self) -> None:
        """Every segment of every point, and a verdict on every listed point."""
        work = [
            (point, disk, ref)
            for point in self._log.points
            for disk in point.disks
            for ref in self._segments(point, disk.id)
        ]
        self._meter.expect(sum(ref.stored_bytes for _, _, ref in work))
        self._meter.say("reading the segments")
        checks = in_order(self._pool, self._check, work)
        try:
            for point in self._log.points:
                self._point(point, checks)
        finally:
            checks.close()

    def _segments(self, point: Point, disk: DiskId) -> list[SegmentRef]:
        """What a view reads of it from the journal: nothing of a point that the bases hold."""
        if point.number <= self._log.state.promoted:
            return []
        return [ref for ref in point.segments if ref.disk == disk]

    def _check(self, item: tuple[Point, DiskState, SegmentRef]) -> SegmentCheck:
        _, state, ref = item
        return check_segment(self._journal, ref, self._keys, state)

    def _point(self, point: Point, checks: Iterator[SegmentCheck]) -> None:
        verdicts: dict[DiskId, Verdict] = {}
        self._meter.say(f"reading point {point.number}")
        for disk in point.disks:
            walk = self._walks[disk.id]
            walk.resize(disk)
            for _ in self._segments(point, disk.id):
                walk.apply(self._counted(next(checks)))
            if point.number >= self._log.state.floor:
                verdicts[disk.id] = walk.judge(point.number, disk)
        if point.number >= self._log.state.floor:
            self._verdicts[point.number] = verdicts

    def _counted(self, check: SegmentCheck) -> SegmentCheck:
        self._report.objects += 1
        if isinstance(check.error, StoreUnavailable):
            self._unavailable += 1
            if self._unavailable >= UNAVAILABLE_IN_A_ROW_MAX:
                raise check.error
        else:
            self._unavailable = 0
        self._meter.spend(check.read_bytes)
        if check.error is not None and check.index is not None and not check.bad:
            # found wrong, but everything in it can be used
            self._report.damaged.append(Damage(check.name, "segment", str(check.error)))
        return check

    # -- what it comes to -----------------------------------------------------------------------

    def judge(self) -> None:
        """Which point is lost to what; which content is not what was committed."""
        for walk in self._walks.values():
            see_through_pages(self._journal, self._log.state, walk, self._keys)
            for loss in walk.losses:
                if loss.suspect and walk.disk in self._sums_damaged and not self._mismatched(walk.disk):
                    continue  # the sums are what is damaged; nothing else says that the base is
                self._blame(walk, loss)
        for number, verdicts in self._verdicts.items():
            for disk, verdict in verdicts.items():
                if verdict.matches is False and not self._suspected(number, disk):
                    self._content_differs(number, disk, verdict.text)
        self._report.damaged += self._content.values()

    def _mismatched(self, disk: DiskId) -> bool:
        return any(v[disk].matches is False for v in self._verdicts.values() if disk in v)

    def _suspected(self, number: int, disk: DiskId) -> bool:
        return any(loss.suspect and number in loss.points for loss in self._walks[disk].losses)

    def _blame(self, walk: DiskWalk, loss: Loss) -> None:
        if loss.cleared and not loss.points:
            why = f"{loss.why}, but the content is what was committed: it is the sums that are wrong"
            prefix = base_sums_prefix(self._journal.machine, walk.disk)
            self._report.damaged.append(Damage(prefix, "base-sums", why))
            return
        mine = (d for d in self._report.damaged if d.object == loss.object and d.ranges.keys() <= {walk.disk})
        damage = next(mine, None)
        if damage is None:
            damage = Damage(loss.object, loss.kind, loss.why)
            self._report.damaged.append(damage)
        damage.points |= loss.points
        if not loss.forever and len(loss.widest):
            before = damage.ranges.get(walk.disk, Extents.empty())
            damage.ranges[walk.disk] = before.union(loss.widest)

    def _content_differs(self, number: int, disk: DiskId, text: str) -> None:
        why = f"from point {number} on it adds up to {text}, which is not what was committed"
        found = self._content.setdefault(disk, Damage(f"the content of disk {disk}", "content", why))
        found.points.add(number)

    def reread(self, points: Collection[int] | None, bases: BaseOf) -> None:
        """Some points whole, through views; of a log that is not whole no view opens."""
        if any(damage.kind in {"state", "record", "span"} and damage.points for damage in self._log.damaged):
            return
        listed = [point for point in self._log.points if point.number >= self._log.state.floor]
        lost = {number for damage in self._report.damaged for number in damage.points}
        wanted = {listed[0].number, listed[-1].number} if points is None and listed else set(points or ())
        if points is None:
            # of a point that is all in the bases, each block was read and added up already
            wanted -= {self._log.state.promoted}
        for point in listed:
            if point.number in wanted and point.number not in lost:
                self._meter.say(f"reading point {point.number} whole")
                with pinned_for_reading(self._journal, point.number) as readable:
                    if readable:
                        self._reread(point, bases)

    def _reread(self, point: Point, bases: BaseOf) -> None:
        damage = Damage(f"point {point.number}, read through a view", "content", "", points={point.number})
        try:
            with open_view(self._journal, point.number, self._keys, bases=bases, cache_bytes=0) as view:
                for disk in point.disks:
                    try:
                        seed = self._keys.get(disk.key_id).digest_seed()
                    except UNUSABLE:
                        continue  # nothing can be told of it, as was said already
                    found = sum_view(view.disks[disk.id], seed, self._pool, self._meter)
                    verdict = self._verdicts[point.number][disk.id]
                    expected = disk.fingerprint or (verdict.text if verdict.comparable else found)
                    if found != expected:
                        damage.why = f"disk {disk.id} adds up to {found}, not to {expected}"
        except PointUnknown:
            return  # promoted or merged away meanwhile
        except (*UNUSABLE, BaseFailed, BaseMismatch) as error:
            damage.why = str(error)
        if damage.why:
            self._report.damaged.append(damage)
        self._report.reread.append(point.number)

    def finish(self) -> None:
        """What no point names, and the lists of points."""
        self._read_unnamed()
        report = self._report
        lost = {number for damage in report.damaged for number in damage.points}
        report.lost = [number for number in report.points if number in lost]
        for number, verdicts in self._verdicts.items():
            if number not in lost:
                proved = bool(verdicts) and all(verdict.matches for verdict in verdicts.values())
                (report.proved if proved else report.unproved).append(number)
        if not self._log.beyond:
            report.missing = {disk: where for disk, where in self._missing_now() if len(where)}

    def close(self) -> None:
        """Free what the walks hold."""
        for walk in self._walks.values():
            walk.close()

    def _missing_now(self) -> Iterator[tuple[DiskId, Extents]]:
        newest = self._log.points[-1] if self._log.points else None
        for disk in newest.disks if newest else ():
            walk = self._walks[disk.id]
            ignored = walk.disk in self._sums_damaged and not self._mismatched(walk.disk)
            yield disk.id, walk.lost(suspects=not ignored).clip(0, disk.size_bytes)

    def _read_unnamed(self) -> None:
        """Segments on their way to a commit, or waiting to be deleted: checked without their keys."""
        journal, store = self._journal, self._journal.store
        points = self._log.points
        named = {journal.segment_name(s) for p in points for d in p.disks for s in self._segments(p, d.id)}
        for prefix in (segments_prefix(journal.machine), merged_prefix(journal.machine)):
            for name in store.list(prefix):
                if name in named:
                    continue
                try:
                    read = partial(store.read, name)
                    size = verify_segment(read, store.size(name), None).stored_bytes
                except ObjectMissing:
                    continue
                except (*UNUSABLE, EOFError) as error:
                    self._report.damaged.append(Damage(name, "segment", f"{error}; no point needs it"))
                    size = 0
                self._report.objects += 1
                self._report.unnamed += 1
                self._meter.spend(size)


__all__ = [
    "Damage",
    "Position",
    "ScrubCancelled",
    "ScrubReport",
    "Trusted",
    "scrub",
]
