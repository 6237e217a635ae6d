"""What the journal holds of one disk between what was promoted and a point: merged pieces of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondsite.journal.chain import Journal
from secondsite.journal.errors import damaged
from secondsite.journal.format import KIND_ZERO
from secondsite.journal.keys import KeyRing
from secondsite.journal.merged_index import Layer, merge
from secondsite.journal.segment import SegmentReader
from secondsite.journal.state import State
from secondsite.model.extents import Int64s
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState, Point, SegmentRef


@dataclass(frozen=True, eq=False)
class DiskIndex:
    """Merged pieces and the segments their blocks are in; blocks are numbered in writing order."""

    readers: Sequence[SegmentReader]
    segments: Int64s  # block -> position in `readers`, -1 for zeros no segment holds
    positions: Int64s  # block -> its number in its segment
    offsets: Int64s  # block -> where it starts on the disk
    zeros: NDArray[np.bool_]  # block -> it is all zeros
    layer: Layer

    def place(self, block: int) -> tuple[str, int]:
        """Segment and number in it: the block's name, also across views."""
        return self.readers[int(self.segments[block])].head.id, int(self.positions[block])

    def read_block(self, block: int) -> bytes:
        """Its content; never asked of zeros."""
        return self.readers[int(self.segments[block])].read_block(int(self.positions[block]))


class _Builder:
    """Collects layers and numbers their blocks."""

    def __init__(self) -> None:
        self.readers: list[SegmentReader] = []
        self._layers: list[Layer] = []
        self._parts: list[tuple[Int64s, Int64s, Int64s, NDArray[np.bool_]]] = []
        self._count = 0

    def add_segment(self, reader: SegmentReader) -> None:
        index = reader.index
        starts = index["offset"].astype(np.int64)
        self._add(
            starts, starts + index["length"].astype(np.int64), index["kind"] == KIND_ZERO, len(self.readers)
        )
        self.readers.append(reader)

    def add_zeros(self, start: int, end: int) -> None:
        self._add(np.array([start]), np.array([end]), np.array([True]), -1)

    def _add(self, starts: Int64s, ends: Int64s, zeros: NDArray[np.bool_], segment: int) -> None:
        count = len(starts)
        blocks = np.arange(self._count, self._count + count, dtype=np.int64)
        self._layers.append(Layer.of_blocks(starts, ends, blocks))
        self._parts.append(
            (np.full(count, segment, dtype=np.int64), np.arange(count, dtype=np.int64), starts, zeros)
        )
        self._count += count

    def finish(self, size_bytes: int) -> DiskIndex:
        none = np.empty(0, dtype=np.int64)
        columns = [np.concatenate(c) for c in zip(*self._parts, strict=True)] if self._parts else [none] * 4
        return DiskIndex(
            readers=self.readers,
            segments=columns[0],
            positions=columns[1],
            offsets=columns[2],
            zeros=columns[3].astype(np.bool_),
            layer=merge(self._layers).clip(size_bytes),
        )


def disk_points(points: Iterable[Point], disk: DiskId) -> Iterator[tuple[Point, DiskState]]:
    """Those that have the disk."""
    for point in points:
        for found in point.disks:
            if found.id == disk:
                yield point, found


def open_segment(journal: Journal, ref: SegmentRef, keys: KeyRing, state: DiskState) -> SegmentReader:
    """A reader of a segment of the journal. Raises ObjectDamaged also when another segment has its name."""
    name, store = journal.segment_name(ref), journal.store

    def read(start: int, length: int) -> bytes:
        try:
            return store.read(name, start, length)
        except EOFError:
            raise damaged(name, "it is shorter than its point says") from None

    reader = SegmentReader(read, ref.stored_bytes, keys.get(state.key_id))
    head = reader.head
    # seals bind blocks to what the header says: it must be what the point says
    if (head.machine, head.disk, head.id) != (journal.machine, ref.disk, ref.id):
        raise damaged(name, f"it is segment {head.id} of disk {head.disk} of machine {head.machine}")
    return reader


def open_disk_index(journal: Journal, disk: DiskId, state: State, number: int, keys: KeyRing) -> DiskIndex:
    """What the journal holds of a disk after what was promoted, up to point `number`."""
    base = state.base(disk)
    points = journal.points_after(state.promoted)
    upto = [point for point in points if point.number <= number]
    return merge_index(journal, disk, upto, base.size_bytes if base else 0, keys)


def merge_index(
    journal: Journal, disk: DiskId, points: Sequence[Point], size_bytes: int, keys: KeyRing
) -> DiskIndex:
    """Merge the indexes of the disk's segments, the newest winning, cut at the size of the last point.

    points: neighbours in the list of points, oldest first. size_bytes: of the disk before the first.
    Where a disk became smaller, the part that went reads as zeros from then on, also when it grows again.
    """
    builder = _Builder()
    for point, found in disk_points(points, disk):
        if found.size_bytes < size_bytes:
            builder.add_zeros(found.size_bytes, size_bytes)
        size_bytes = found.size_bytes
        for ref in point.segments:
            if ref.disk == disk:
                builder.add_segment(open_segment(journal, ref, keys, found))
    return builder.finish(size_bytes)
