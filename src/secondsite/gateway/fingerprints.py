"""Fingerprints of arriving points, counted on from the point before by digest tables.

A point's fingerprint is known before its manifest is written, from the digests sealed inside its segments'
indexes: old digests of what it overwrites are taken away, new ones added. A small point is folded into the
table after its commit; a large one (a first copy) before, with the table marked, so that memory stays
bounded. What goes wrong costs the fingerprint of some points, with an event, and never the points: the table
is made again from the store in the background.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.gateway.compare import answer_from, disk_asked_for
from secondsite.gateway.tables import DigestTable, Stamp, sub_blocks
from secondsite.journal.chain import Head, Journal
from secondsite.journal.digests import (
    Digests,
    digest_sub_blocks,
    fingerprint_lanes,
    fingerprint_text,
    update_lanes,
)
from secondsite.journal.disk_index import open_segment
from secondsite.journal.format import KIND_ZERO
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.segment_read import SegmentReader
from secondsite.journal.view import BaseOf, DiskView, open_view
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import DiskState, Point, PointProposal, SegmentRef
from secondsite.transfer.errors import DigestsNotReady
from secondsite.transfer.protocols import DigestAnswer, DigestQuery

DURING_FOLD = mark("fingerprint.during-fold")
AFTER_FOLD = mark("fingerprint.after-fold")

# Changes held in memory until the commit: 1 GiB of them, 24 bytes a sub-block and a few copies, 25 MiB.
OVERLAY_SUB_BLOCKS_MAX = 256 * 1024
# Points that are folded in while a commit waits, when a kill left the table behind.
CATCH_UP_SEGMENTS_MAX = 256
REBUILD_BLOCK_BYTES = 1 * MIB
# It reads the whole disk: where that fails (a full cache volume), it is not tried with every point.
REBUILD_PAUSE_SECONDS = 600.0
# Of the pin while tables are made again. It has no end by the clock, which may jump while it is read on.
HOLDER = "fingerprints"

Numbers = NDArray[np.int64]


class EndMoved(SecondsiteError):
    """A sub-block was digested whole that the disk's end cuts short now."""

    code = "fingerprint.end-moved"
    outcome = Outcome.REFUSED
    happened = "Disk {disk} ends inside a sub-block, at {size_bytes} bytes, that was sent before it shrank."
    cause = "The disk was made smaller while it was copied."
    action = "None: the point is good; its fingerprint is known again once the tables were made again."


@dataclass
class _Change:
    """What a proposal does to one disk's table."""

    disk: DiskState
    previous: int  # the point the change was counted from
    lanes: tuple[int, int]  # the sum afterwards
    where: Numbers | None  # None: it is in the table already
    digests: Digests | None


class Fingerprints:
    """For all machines of a store. `of` and `committed` fit `receive.GatewayReceiver`. Thread-safe.

    directory: on the cache volume. bases_of: opens a machine's bases, for making a table again.
    """

    def __init__(
        self,
        directory: Path,
        *,
        vault: VaultKey,
        bases_of: Callable[[Journal], BaseOf],
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._directory = directory
        self._vault = vault
        self._bases_of = bases_of
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._machines: dict[MachineId, _Tables] = {}
        self._closing = threading.Event()
        self._wanted: dict[MachineId, Journal] = {}  # to make again; bounded by the number of machines
        self._not_before: dict[MachineId, float] = {}  # a machine's next attempt, after one that failed
        self._wake = threading.Event()
        self._worker: threading.Thread | None = None

    def let_go(self, journals: Iterable[Journal]) -> None:
        """At the start: take away pins of an earlier process that was killed while it made tables."""
        for journal in journals:
            with contextlib.suppress(SecondsiteError):  # a damaged journal's upkeep says so
                journal.unpin(HOLDER)

    def of(self, journal: Journal) -> Callable[[PointProposal, Head], dict[DiskId, str | None]]:
        """What the journal's `commit` asks for the fingerprints of a proposal."""

        def fingerprints(proposal: PointProposal, head: Head) -> dict[DiskId, str | None]:
            tables = self._tables(journal)
            known, lost = tables.propose(proposal, head)
            for disk, why in lost.items():
                text = f"the fingerprint of disk {disk} of {proposal.machine_name} is not known: {why}"
                self._events.emit("fingerprint.unknown", Severity.WARNING, text, machine=journal.machine)
            if lost:
                self.rebuild(journal)
            return known

        return fingerprints

    def committed(self, journal: Journal, point: Point) -> None:
        """Fold a committed point in. Called again for a repeated commit: then there is nothing to do."""
        self._tables(journal).fold(point)

    def digests(self, journal: Journal, query: DigestQuery) -> DigestAnswer:
        """What a disk's table holds of the newest point, for hash compare.

        Raises DigestsRefused, and DigestsNotReady when the table has to be made again, which is begun.
        """
        try:
            return self._tables(journal).answer(query)
        except DigestsNotReady:
            self.rebuild(journal)
            raise

    def rebuild(self, journal: Journal) -> None:
        """Make a machine's tables again, in the background."""
        with self._lock:
            if self._clock.monotonic() < self._not_before.get(journal.machine, 0.0):
                return
            self._wanted.setdefault(journal.machine, journal)
            if self._worker is None and not self._closing.is_set():
                self._worker = threading.Thread(target=self._work, name="fingerprints", daemon=True)
                self._worker.start()
        self._wake.set()

    def close(self) -> None:
        """Stop; tables are synced, so that they are good after a restart of the machine."""
        self._closing.set()
        self._wake.set()
        if self._worker is not None:
            self._worker.join()
        for tables in self._machines.values():
            tables.close()

    def _tables(self, journal: Journal) -> _Tables:
        with self._lock:
            found = self._machines.get(journal.machine)
            if found is None:
                keys = KeyRing(journal.store, journal.machine, self._vault)
                found = _Tables(self._directory / journal.machine, journal, keys)
                self._machines[journal.machine] = found
            return found

    def _work(self) -> None:
        """The worker's thread."""
        while not self._closing.is_set():
            with self._lock:
                journal = self._wanted.pop(next(iter(self._wanted))) if self._wanted else None
            if journal is None:
                self._wake.wait()
                self._wake.clear()
                continue
            with self._lock:
                later = self._clock.monotonic() + REBUILD_PAUSE_SECONDS
                self._not_before[journal.machine] = later
            try:
                self._rebuild(journal)
                with self._lock:
                    del self._not_before[journal.machine]
            except SecondsiteError as error:
                text = f"the digest tables could not be made again: {error}"
                self._events.emit(
                    "fingerprint.rebuild-failed", Severity.WARNING, text, machine=journal.machine
                )
            except Exception as error:  # noqa: BLE001 - the thread's root: fingerprints are never worth a crash
                text = f"making digest tables again failed: {type(error).__name__}: {error}"
                self._events.emit(
                    "fingerprint.internal-error", Severity.CRITICAL, text, machine=journal.machine
                )

    def _rebuild(self, journal: Journal) -> None:
        point = journal.head().point
        if point is None:
            return
        tables = self._tables(journal)
        journal.pin(point.number, HOLDER, "digest tables are being made again")
        try:
            view = open_view(journal, point.number, tables.keys, bases=self._bases_of(journal))
            with contextlib.closing(view):
                for disk in point.disks:
                    made = tables.fill(disk, view.disks[disk.id], point.number, self._closing)
                    if made is None:
                        return
                    self._compare(journal, disk, made)
                    tables.install(disk.id, made)
        finally:
            journal.unpin(HOLDER)
        text = f"the digest tables hold point {point.number} again"
        self._events.emit("fingerprint.rebuilt", Severity.INFORMATION, text, machine=journal.machine)

    def _compare(self, journal: Journal, disk: DiskState, made: DigestTable) -> None:
        found = fingerprint_text(made.stamp.lanes)
        if disk.fingerprint is not None and disk.fingerprint != found:
            text = f"disk {disk.id} at point {made.stamp.number} reads as {found}, not as {disk.fingerprint}"
            self._events.emit("fingerprint.mismatch", Severity.CRITICAL, text, machine=journal.machine)


class _Tables:
    """The tables of one machine."""

    def __init__(self, directory: Path, journal: Journal, keys: KeyRing) -> None:
        self._directory = directory
        self._journal = journal
        self.keys = keys
        self._lock = threading.RLock()
        self._open: dict[DiskId, DigestTable] = {}
        self._nonce = ""  # of the proposal the changes are of
        self._changes: dict[DiskId, _Change] = {}

    def propose(
        self, proposal: PointProposal, head: Head
    ) -> tuple[dict[DiskId, str | None], dict[DiskId, str]]:
        """(fingerprints that are known, disks whose table is void and why)."""
        previous = head.point.number if head.point else 0
        known: dict[DiskId, str | None] = {}
        lost: dict[DiskId, str] = {}
        with self._lock:
            if proposal.nonce != self._nonce:
                self._abandon()
                self._nonce = proposal.nonce
            for disk in proposal.disks:
                refs = [ref for ref in proposal.segments if ref.disk == disk.id]
                try:
                    change = self._change(disk, refs, previous, head)
                except (SecondsiteError, OSError) as error:
                    self._drop(disk.id)
                    lost[disk.id] = str(error)
                    continue
                if change is None:
                    lost[disk.id] = "its digest table does not hold the point before"
                else:
                    known[disk.id] = fingerprint_text(change.lanes)
        return known, lost

    def answer(self, query: DigestQuery) -> DigestAnswer:
        """From the table of the query's disk, brought to the newest point."""
        with self._lock:
            head = self._journal.head()
            disk = disk_asked_for(query, head.point)
            change = self._changes.get(disk.id)
            try:
                if change is not None and change.where is None:
                    self._drop(disk.id)  # written ahead for a proposal that was not committed
                table = self._current(disk, query.point, head)
                if table is not None and table.stamp.size_bytes == disk.size_bytes:
                    return answer_from(table, query)
            except (SecondsiteError, OSError) as error:
                self._drop(disk.id)
                raise DigestsNotReady(disk=disk.id, point=query.point, why=str(error)) from error
            why = "the table does not hold that point"
            raise DigestsNotReady(disk=disk.id, point=query.point, why=why)

    def fold(self, point: Point) -> None:
        """The proposal became `point`."""
        with self._lock:
            if point.nonce != self._nonce:
                return  # folded already, or its tables were void
            for disk, change in list(self._changes.items()):
                try:
                    self._apply(self._open[disk], change, point.number)
                except OSError:  # the cache volume is full: void, made again when the next point asks
                    self._drop(disk)
            self._changes.clear()
            self._nonce = ""

    def fill(
        self, disk: DiskState, view: DiskView, number: int, cancel: threading.Event
    ) -> DigestTable | None:
        """A new table from what the disk reads as at a point; None when cancelled."""
        seed = self.keys.get(disk.key_id).digest_seed()
        path = self._directory / f"{disk.id}.new"
        table = DigestTable.create(path, Stamp(disk.size_bytes, disk.key_id, folding=number))
        try:
            if self._fill(table, disk, view, seed, cancel):
                table.set_stamp(replace(table.stamp, number=number, folding=0))
                return table
        except BaseException:
            table.drop()
            raise
        table.drop()
        return None

    @staticmethod
    def _fill(
        table: DigestTable, disk: DiskState, view: DiskView, seed: int, cancel: threading.Event
    ) -> bool:
        buffer = memoryview(bytearray(REBUILD_BLOCK_BYTES))
        for start, end, is_zero in view.extents(0, disk.size_bytes):
            if is_zero:
                continue
            first = start // SUB_BLOCK_BYTES * SUB_BLOCK_BYTES
            last = min(-(-end // SUB_BLOCK_BYTES) * SUB_BLOCK_BYTES, disk.size_bytes)
            for offset in range(first, last, REBUILD_BLOCK_BYTES):
                if cancel.is_set():
                    return False
                block = buffer[: min(REBUILD_BLOCK_BYTES, last - offset)]
                view.read_into(offset, block)
                digests = digest_sub_blocks(block, offset // SUB_BLOCK_BYTES, seed)
                where = np.arange(len(digests), dtype=np.int64) + offset // SUB_BLOCK_BYTES
                table.set_stamp(replace(table.stamp, lanes=table.write(where, digests)))
        return True

    def install(self, disk: DiskId, table: DigestTable) -> None:
        """Use a table that was made again; points committed meanwhile are caught up with at the next one."""
        with self._lock:
            if disk in self._changes:
                return table.drop()  # a commit is under way with another one
            self._drop(disk)
            table.move(self._path(disk))
            self._open[disk] = table
        return None

    def close(self) -> None:
        """Sync and let go of all tables."""
        with self._lock:
            self._abandon()
            for table in self._open.values():
                table.close()
            self._open.clear()

    def _change(self, disk: DiskState, refs: list[SegmentRef], previous: int, head: Head) -> _Change | None:
        earlier = self._changes.get(disk.id)
        if earlier is not None and earlier.previous == previous and earlier.disk == disk:
            return earlier  # the same proposal again
        if earlier is not None and earlier.where is None:
            self._drop(disk.id)
        table = self._current(disk, previous, head)
        if table is None or not table.resize(disk.size_bytes):
            self._drop(disk.id)
            return None
        if sum(ref.data_bytes for ref in refs) > OVERLAY_SUB_BLOCKS_MAX * SUB_BLOCK_BYTES:
            change = self._write_ahead(table, disk, refs, previous, head.number + 1)
        else:
            where, digests = _latest(self._read(disk, refs))
            lanes = update_lanes(table.stamp.lanes, table.look_up(where), digests)
            change = _Change(disk, previous, lanes, where, digests)
        self._changes[disk.id] = change
        return change

    def _write_ahead(
        self, table: DigestTable, disk: DiskState, refs: list[SegmentRef], previous: int, number: int
    ) -> _Change:
        """Too much to hold in memory: write it into the table now, marked."""
        table.set_stamp(replace(table.stamp, folding=number))
        for where, digests in self._read(disk, refs):
            where, digests = _latest([(where, digests)])  # noqa: PLW2901 - the same thing, overlaps resolved
            table.set_stamp(replace(table.stamp, lanes=table.write(where, digests)))
        return _Change(disk, previous, table.stamp.lanes, None, None)

    def _apply(self, table: DigestTable, change: _Change, number: int) -> None:
        if change.where is not None and change.digests is not None:
            table.set_stamp(replace(table.stamp, folding=number))
            crash_point(DURING_FOLD)
            table.write(change.where, change.digests)
        table.set_stamp(replace(table.stamp, number=number, folding=0, lanes=change.lanes))
        crash_point(AFTER_FOLD)

    def _current(self, disk: DiskState, previous: int, head: Head) -> DigestTable | None:
        """The disk's table, holding the point `previous`; None when there is none to be had at once."""
        table = self._open.get(disk.id) or DigestTable.open(self._path(disk.id))
        if table is None:
            if not self._is_new(disk.id, head):
                return None
            table = DigestTable.create(self._path(disk.id), Stamp(disk.size_bytes, disk.key_id, previous))
        self._open[disk.id] = table
        stamp = table.stamp
        if stamp.key != disk.key_id or stamp.number > previous:
            return None
        points = self._journal.points_after(stamp.number)
        gap = stamp.number and self._journal.state().floor > stamp.number
        segments = sum(len(point.segments) for point in points)
        if gap or (not stamp.number and self._journal.state().floor) or segments > CATCH_UP_SEGMENTS_MAX:
            return None
        if stamp.folding and (not points or points[0].number != stamp.folding):
            return None  # written ahead for a proposal that was not committed
        return table if self._catch_up(table, disk.id, points) else None

    def _catch_up(self, table: DigestTable, disk: DiskId, points: Iterable[Point]) -> bool:
        """Fold in points that were committed while the table was not looked after."""
        for point in points:
            state = next((d for d in point.disks if d.id == disk), None)
            if state is None:
                table.set_stamp(replace(table.stamp, number=point.number))
                continue
            if state.key_id != table.stamp.key or not table.resize(state.size_bytes):
                return False
            # of a point that is in the table in part, old digests are gone: only its manifest knows the sum
            half = table.stamp.folding == point.number
            if half and state.fingerprint is None:
                return False
            where, digests = _latest(self._read(state, [s for s in point.segments if s.disk == disk]))
            table.set_stamp(replace(table.stamp, folding=point.number))
            lanes = table.write(where, digests)
            if half and state.fingerprint is not None:
                lanes = fingerprint_lanes(state.fingerprint)
            table.set_stamp(replace(table.stamp, number=point.number, folding=0, lanes=lanes))
        return True

    def _is_new(self, disk: DiskId, head: Head) -> bool:
        """Whether the journal never held anything of this disk."""
        if head.point is None:
            return True
        if self._journal.state().floor or self._journal.state().bases:
            return False
        return all(disk not in {d.id for d in point.disks} for point in self._journal.points())

    def _read(self, disk: DiskState, refs: Iterable[SegmentRef]) -> Iterator[tuple[Numbers, Digests]]:
        """(sub-blocks, digests) of each segment, in writing order. Raises what a damaged segment raises."""
        for ref in refs:
            reader = open_segment(self._journal, ref, self.keys, disk)
            where, digests = rows_of(reader)
            if reader.head.disk_size_bytes > disk.size_bytes:
                # a copy's slice from before the disk shrank: what lies beyond its end is cut off
                if disk.size_bytes % SUB_BLOCK_BYTES and (where == disk.size_bytes // SUB_BLOCK_BYTES).any():
                    raise EndMoved(disk=disk.id, size_bytes=disk.size_bytes)
                inside = where < sub_blocks(disk.size_bytes)
                where, digests = where[inside], digests[inside]
            yield where, digests

    def _abandon(self) -> None:
        """Forget changes of a proposal that was not committed."""
        for disk in [disk for disk, change in self._changes.items() if change.where is None]:
            self._drop(disk)
        self._changes.clear()
        self._nonce = ""

    def _drop(self, disk: DiskId) -> None:
        self._changes.pop(disk, None)
        table = self._open.pop(disk, None)
        if table is not None:
            table.drop()

    def _path(self, disk: DiskId) -> Path:
        return self._directory / f"{disk}.digests"


def rows_of(reader: SegmentReader) -> tuple[Numbers, Digests]:
    """(sub-blocks, digests) of all a segment holds, from its index alone."""
    index = reader.index
    counts = -(-index["length"].astype(np.int64) // SUB_BLOCK_BYTES)
    first = index["offset"].astype(np.int64) // SUB_BLOCK_BYTES
    total = int(counts.sum())
    within = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    digests = np.zeros((total, 2), dtype=np.uint64)
    digests[np.repeat(index["kind"] != KIND_ZERO, counts)] = reader.digests()
    return np.repeat(first, counts) + within, digests


def _latest(parts: Iterable[tuple[Numbers, Digests]]) -> tuple[Numbers, Digests]:
    """Distinct sub-blocks; of one written several times, the last digest."""
    collected = list(parts)
    if not collected:
        return np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.uint64)
    where = np.concatenate([part[0] for part in collected])[::-1]
    digests = np.concatenate([part[1] for part in collected])[::-1]
    distinct, last = np.unique(where, return_index=True)
    return distinct, digests[last]
