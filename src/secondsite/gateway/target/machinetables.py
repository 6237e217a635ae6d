"""The digest tables of one machine: what a proposal does to them, and how they come to hold a point.

A small proposal's changes wait in memory for its commit; a large one is written ahead, with the table marked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.gateway.source.compare import answer_from, disk_asked_for
from secondsite.gateway.source.tables import DigestTable, Stamp, sub_blocks
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
from secondsite.journal.keys import KeyRing
from secondsite.journal.segment_read import SegmentReader
from secondsite.journal.view import DiskView
from secondsite.model.ids import DiskId
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


class MachineTables:
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
