"""Views: a machine's disks as of a recovery point, read from journal and base together.

A view is fixed when it is opened: the point's segments after what the base holds, newest first, over the
base. It never writes, and promotion under it changes only blocks the view reads from its segments; pin the
point before opening (`Journal.pin`), so that those segments stay.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType

import numpy as np

from secondsite.base.units import MIB
from secondsite.journal.bases import BaseImage, BaseMismatch
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import PointUnknown
from secondsite.journal.disk_index import DiskIndex, open_disk_index
from secondsite.journal.keys import KeyRing
from secondsite.journal.state import State
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import Point

BaseOf = Callable[[DiskId], BaseImage | None]

# A boot reads some hundred MiB, much of it again; 64 MiB hold a thousand blocks of the largest size.
CACHE_BYTES = 64 * MIB


class BlockCache:
    """Decoded blocks, the least recently read one dropped first. Thread-safe."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, key: tuple[str, int]) -> bytes | None:
        """A block, if it is held."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def add(self, key: tuple[str, int], block: bytes) -> None:
        """Hold a block."""
        with self._lock:
            if key in self._blocks:
                return
            self._blocks[key] = block
            self._bytes += len(block)
            while self._bytes > self._bytes_max and len(self._blocks) > 1:
                self._bytes -= len(self._blocks.popitem(last=False)[1])


class DiskView:
    """One disk at the point. Thread-safe; made by `open_view`."""

    def __init__(self, index: DiskIndex, base: BaseImage | None, size_bytes: int, cache: BlockCache) -> None:
        self._index, self._base, self._size_bytes, self._cache = index, base, size_bytes, cache
        # bisect on a memoryview costs a third of searchsorted for one number, and no memory
        self._starts = index.layer.starts.data
        self._ends = index.layer.ends.data
        self._blocks = index.layer.blocks.data
        self._offsets = index.offsets.data
        self._zeros = index.zeros.data

    @property
    def size_bytes(self) -> int:
        """Its size at the point."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, inside the size."""
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; the range lies inside the size.

        Raises BaseFailed, or what the store or a damaged segment raises.
        """
        end = offset + len(buffer)
        if offset < 0 or end > self._size_bytes:
            raise ValueError(f"{offset}..{end} is outside the disk's {self._size_bytes} bytes")
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, offset)
        count = len(starts)
        if first == count or starts[first] >= end:
            self._read_base(offset, buffer)
            return
        last, at, covered = first, offset, True
        while last < count and starts[last] < end:
            covered = covered and starts[last] <= at
            at = ends[last]
            last += 1
        if not covered or at < end:
            # one read of the base for the whole range costs less than one for each gap
            self._read_base(offset, buffer)
        for piece in range(first, last):
            self._copy_piece(piece, offset, end, buffer)

    def _copy_piece(self, piece: int, offset: int, end: int, buffer: memoryview) -> None:
        block = self._blocks[piece]
        start, stop = max(self._starts[piece], offset), min(self._ends[piece], end)
        if self._zeros[block]:
            buffer[start - offset : stop - offset] = bytes(stop - start)
            return
        data = self._block(block)
        block_start = self._offsets[block]
        buffer[start - offset : stop - offset] = memoryview(data)[start - block_start : stop - block_start]

    def _block(self, block: int) -> bytes:
        index = self._index
        name, position = index.place(block)
        data = self._cache.get((name, position))
        if data is None:
            data = index.read_block(block)
            self._cache.add((name, position), data)
        return data

    def _read_base(self, offset: int, buffer: memoryview) -> None:
        if self._base is None:
            buffer[:] = bytes(len(buffer))
        else:
            self._base.read_into(offset, buffer)

    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """``(start, end, is_zero)`` over the whole range, ascending, neighbours of one kind joined.

        Zero means reads as zeros; data may hold zeros too. Costs what the range holds, not the disk.
        """
        end = min(offset + length, self._size_bytes)
        starts, ends = self._index.layer.starts, self._index.layer.ends
        first = int(np.searchsorted(ends, offset, side="right"))
        last = max(first, int(np.searchsorted(starts, end, side="left")))
        found: list[tuple[int, int, bool]] = []
        at = offset
        zeros = self._index.zeros[self._index.layer.blocks[first:last]]
        for start, stop, zero in zip(
            starts[first:last].tolist(), ends[first:last].tolist(), zeros.tolist(), strict=True
        ):
            self._base_extents(found, at, min(max(start, at), end))
            _extend(found, max(start, offset), min(stop, end), zero)
            at = stop
        self._base_extents(found, at, end)
        return found

    def _base_extents(self, found: list[tuple[int, int, bool]], start: int, end: int) -> None:
        if start >= end:
            return
        if self._base is not None:
            for data_start, data_end in self._base.data_extents(start, end - start):
                _extend(found, start, data_start, True)
                _extend(found, data_start, data_end, False)
                start = data_end
        _extend(found, start, end, True)


def _extend(found: list[tuple[int, int, bool]], start: int, end: int, zero: bool) -> None:
    if start >= end:
        return
    if found and found[-1][1] == start and found[-1][2] == zero:
        found[-1] = (found[-1][0], end, zero)
    else:
        found.append((start, end, zero))


class PointView:
    """All disks of a machine at one point."""

    def __init__(self, point: Point, disks: dict[DiskId, DiskView], bases: list[BaseImage]) -> None:
        self.point = point
        self.disks = disks
        self._bases = bases

    def close(self) -> None:
        """Close the bases the view was given."""
        for base in self._bases:
            base.close()

    def __enter__(self) -> PointView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_base(machine: MachineId, state: State, disk: DiskId, base: BaseImage | None) -> None:
    """The base must be the one the store knows, where it knows one. Raises BaseMismatch."""
    known = state.base(disk)
    if known is None:
        return
    if base is None:
        raise BaseMismatch(
            disk=disk, locator=known.locator, why=f"none was given, machine {machine} stands on one"
        )
    if base.identity != known.identity:
        raise BaseMismatch(
            disk=disk, locator=known.locator, why=f"{base.locator} has another identity than the store knows"
        )


def open_view(
    journal: Journal,
    point_number: int,
    keys: KeyRing,
    *,
    bases: BaseOf,
    cache_bytes: int = CACHE_BYTES,
) -> PointView:
    """The machine's disks as of a point. Close it; pin the point before, if promotion may run meanwhile.

    bases: asked for each disk; None where the disk has no base (yet). The view closes what it was given.
    cache_bytes: of decoded blocks, for all disks together.

    Raises:
        PointUnknown: there is no such point.
        BaseMismatch: a base is missing or another than the store knows.
    """
    state = journal.state()
    point = journal.point(point_number)
    if point_number < state.promoted:
        raise PointUnknown(machine=journal.machine, number=point_number)
    cache = BlockCache(cache_bytes)
    opened: list[BaseImage] = []
    disks: dict[DiskId, DiskView] = {}
    try:
        for disk in point.disks:
            base = bases(disk.id)
            if base is not None:
                opened.append(base)
            check_base(journal.machine, state, disk.id, base)
            if state.base(disk.id) is None:
                base = None  # nothing was promoted into it: whatever it holds is not this disk's
            index = open_disk_index(journal, disk.id, state, point_number, keys)
            disks[disk.id] = DiskView(index, base, disk.size_bytes, cache)
    except BaseException:
        for base in opened:
            base.close()
        raise
    return PointView(point, disks, opened)
