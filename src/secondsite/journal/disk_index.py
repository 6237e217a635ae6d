"""What the journal holds of one disk between what was promoted and a point: merged pieces of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondsite.base.errors import SecondsiteError
from secondsite.base.files import FileTooLarge
from secondsite.journal.chain import Journal
from secondsite.journal.errors import FormatUnknown, KeyMissing, ObjectDamaged
from secondsite.journal.format import KIND_ZERO
from secondsite.journal.keys import KeyRing
from secondsite.journal.merged_index import Layer, merge
from secondsite.journal.page_catalog import Pages
from secondsite.journal.pages import Page
from secondsite.journal.segments import Readers, open_segment, read_segment
from secondsite.journal.state import State
from secondsite.journal.store import ObjectMissing
from secondsite.model.extents import Int64s
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState, Point, SegmentRef

__all__ = ["DiskIndex", "disk_points", "merge_index", "open_disk_index", "open_segment", "read_segment"]

Int32s = NDArray[np.int32]

# What makes a segment unusable for good, or until it is put back. A store that may answer later is not.
_UNUSABLE = (ObjectDamaged, ObjectMissing, FormatUnknown, KeyMissing, FileTooLarge)


@dataclass(frozen=True, eq=False)
class DiskIndex:
    """Merged pieces and the segments their blocks are in. Its memory follows the pieces, not the points."""

    readers: Readers
    segments: Int32s  # block -> position in `readers`, -1 for zeros no segment holds
    positions: Int32s  # block -> its number in its segment
    offsets: Int64s  # block -> where it starts on the disk
    zeros: NDArray[np.bool_]  # block -> it is all zeros
    layer: Layer

    def place(self, block: int) -> tuple[str, int]:
        """Segment and number in it: the block's name, also across views."""
        return self.readers.ref(int(self.segments[block])).id, int(self.positions[block])

    def read_block(self, block: int) -> bytes:
        """Its content; never asked of zeros."""
        return self.readers[int(self.segments[block])].read_block(int(self.positions[block]))


_Part = tuple[Int32s, Int32s, Int64s, NDArray[np.bool_]]  # segments, positions, offsets, zeros


class _Builder:
    """Collects layers and numbers their blocks."""

    def __init__(self, journal: Journal) -> None:
        self.readers = Readers(journal)
        self._layers: list[Layer] = []
        self._parts: list[_Part] = []
        self._count = 0
        self._lost: list[tuple[int, SecondsiteError]] = []  # segments that cannot be used, and why

    def add_segment(self, ref: SegmentRef, keys: KeyRing, state: DiskState) -> None:
        """One that cannot be used costs only the points in which it would be seen."""
        try:
            number = self.readers.add(ref, keys.get(ref.sealed_by(state)))
            index = self.readers[number].index
        except _UNUSABLE as error:
            self._add_lost(ref, state, error)
            return
        starts = index["offset"].astype(np.int64)
        ends = starts + index["length"].astype(np.int64)
        self._add(
            starts,
            ends,
            (
                np.full(len(starts), number, dtype=np.int32),
                np.arange(len(starts), dtype=np.int32),
                starts,
                index["kind"] == KIND_ZERO,
            ),
        )

    def _add_lost(self, ref: SegmentRef, state: DiskState, error: SecondsiteError) -> None:
        """What it wrote is not known: it stands for the whole disk and must be hidden by what follows."""
        number = len(self.readers) - 1
        if number < 0 or self.readers.ref(number) is not ref:
            raise error  # not even its key is known
        self.readers.lose(number, state.size_bytes)
        self._lost.append((number, error))
        self._add_one(0, state.size_bytes, number, zero=False)

    def add_zeros(self, start: int, end: int) -> None:
        """What a shrink took away."""
        self._add_one(start, end, -1, zero=True)

    def _add_one(self, start: int, end: int, segment: int, *, zero: bool) -> None:
        part = (
            np.array([segment], dtype=np.int32),
            np.zeros(1, dtype=np.int32),
            np.array([start], dtype=np.int64),
            np.array([zero]),
        )
        self._add(np.array([start], dtype=np.int64), np.array([end], dtype=np.int64), part)

    def add_page(self, page: Page, keys: KeyRing) -> None:
        """Merged pieces of many points at once; their segments are opened when they are read."""
        key = keys.get(page.key_id)
        first = len(self.readers)
        for ref in page.segments:
            self.readers.add(ref, key)
        segments = np.where(page.owners < 0, -1, page.owners + first).astype(np.int32)
        self._add(page.starts, page.ends, (segments, page.positions, page.offsets, page.zeros))

    def _add(self, starts: Int64s, ends: Int64s, part: _Part) -> None:
        blocks = np.arange(self._count, self._count + len(starts), dtype=np.int64)
        self._layers.append(Layer.of_blocks(starts, ends, blocks))
        self._parts.append(part)
        self._count += len(starts)

    def finish(self, size_bytes: int | None) -> DiskIndex:
        """size_bytes: where to cut; None: nowhere."""
        layer = merge(self._layers)
        if size_bytes is not None:
            layer = layer.clip(size_bytes)
        # most blocks of a long journal were written again: only those still seen are kept
        seen, numbers = np.unique(layer.blocks, return_inverse=True)
        layer = Layer(layer.starts, layer.ends, numbers.astype(np.int64))
        segments, positions, offsets, zeros = self._columns(seen)
        for segment, error in self._lost:
            if (segments == segment).any():
                raise error
        return DiskIndex(self.readers, segments, positions, offsets, zeros, layer)

    def _columns(self, seen: Int64s) -> _Part:
        if not self._parts:
            none = np.empty(0, dtype=np.int32)
            return none, none, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        segments, positions, offsets, zeros = (np.concatenate(c) for c in zip(*self._parts, strict=True))
        return segments[seen], positions[seen], offsets[seen], zeros[seen].astype(np.bool_)


def disk_points(points: Iterable[Point], disk: DiskId) -> Iterator[tuple[Point, DiskState]]:
    """Those that have the disk."""
    for point in points:
        for found in point.disks:
            if found.id == disk:
                yield point, found


def open_disk_index(journal: Journal, disk: DiskId, state: State, number: int, keys: KeyRing) -> DiskIndex:
    """What the journal holds of a disk after what was promoted, up to point `number`."""
    base = state.base(disk)
    points = journal.points_after(state.promoted)
    upto = [point for point in points if point.number <= number]
    pages = Pages(journal, disk, keys)
    return merge_index(journal, disk, upto, base.size_bytes if base else 0, keys, pages=pages)


def merge_index(
    journal: Journal,
    disk: DiskId,
    points: Sequence[Point],
    size_bytes: int,
    keys: KeyRing,
    *,
    pages: Pages | None = None,
    clip: bool = True,
) -> DiskIndex:
    """Merge the indexes of the disk's segments, the newest winning, cut at the size of the last point.

    points: neighbours in the list of points, oldest first. size_bytes: of the disk before the first.
    pages: what was merged before, used where it fits. clip: False leaves what lies beyond the last size.
    Where a disk became smaller, the part that went reads as zeros from then on, also when it grows again.
    """
    builder = _Builder(journal)
    found = list(disk_points(points, disk))
    at = 0
    while at < len(found):
        page = pages.at(found, at) if pages is not None else None
        point, state = found[at]
        first_size = page.first_size_bytes if page is not None else state.size_bytes
        if first_size < size_bytes:
            builder.add_zeros(first_size, size_bytes)
        if page is not None:
            builder.add_page(page, keys)
            size_bytes = page.last_size_bytes
            at += page.points
            continue
        size_bytes = state.size_bytes
        for ref in point.segments:
            if ref.disk == disk:
                builder.add_segment(ref, keys, state)
        at += 1
    return builder.finish(size_bytes if clip else None)
