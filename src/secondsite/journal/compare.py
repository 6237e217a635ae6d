"""Hash compare: what of a disk differs between us and another side, found top-down from sums of digests.

Both sides know each 4 KiB sub-block by the same digest: 128 bits, keyed with the disk's data key and bound
to the block's place (`digests`). A range is 256 sub-blocks, 1 MiB; its sum is the sum of its digests in two
lanes modulo 2^64, as a disk's fingerprint is (which is the sum of all ranges: the root of this tree). Zeros
count as nothing in a sum, so holes need not be read, nor even be known, to compare a range.

Sums are compared first. Where they differ, the other side is asked for the range's *values*: 64 bits a
sub-block, 0 for unknown, 1 for zeros, else the low half of the digest. That is what the source's table keeps
of what the target holds (`gateway.subblocks`), and how both widths come together: the values of a range that
is equal follow from our own digests, those of one that differs are asked for, and the table takes either.

Nothing here reads or sends; `Theirs` is the other side, however it is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.journal.digests import UNKNOWN, Digests, no_digests, values_of

Int64s = NDArray[np.int64]
Uint64s = NDArray[np.uint64]
Bools = NDArray[np.bool_]

RANGE_SUB_BLOCKS = 256
RANGE_BYTES = RANGE_SUB_BLOCKS * SUB_BLOCK_BYTES


def sub_blocks_of(size_bytes: int) -> int:
    """How many sub-blocks a disk has."""
    return -(-size_bytes // SUB_BLOCK_BYTES)


def ranges_of(size_bytes: int) -> int:
    """How many ranges a disk has."""
    return -(-size_bytes // RANGE_BYTES)


class Theirs(Protocol):
    """A disk at the other side, as of one point."""

    @property
    def size_bytes(self) -> int:
        """The disk's size there."""

    def sums(self, ranges: Int64s) -> Digests:
        """Of ranges by number, ascending: shape (n, 2); (0, 0) for one that reads as zeros."""

    def values(self, ranges: Int64s) -> Uint64s:
        """Of ranges by number, ascending: shape (n, 256); beyond the disk's end they mean nothing."""


def sums_of(first: int, digests: Digests) -> tuple[Int64s, Digests]:
    """(numbers, sums) of the ranges that sub-blocks from number `first` on lie in, as far as they do."""
    if not len(digests):
        return np.empty(0, dtype=np.int64), no_digests(0)
    last = (first + len(digests) - 1) // RANGE_SUB_BLOCKS
    numbers = np.arange(first // RANGE_SUB_BLOCKS, last + 1, dtype=np.int64)
    starts = np.maximum(numbers * RANGE_SUB_BLOCKS - first, 0)
    return numbers, np.add.reduceat(digests, starts, axis=0, dtype=np.uint64)


@dataclass(frozen=True)
class Settled:
    """What the other side holds, for what was asked about."""

    pieces: list[Uint64s]  # the values of each piece's sub-blocks
    holes: list[tuple[int, Uint64s]]  # (first sub-block, values) of the parts that may not be zeros there


class Comparison:
    """Compares one disk with the other side's, piece by piece in any order; thread-safe if `theirs` is.

    A range is compared as a whole when all of it that is not zeros comes in one call, in pieces; in parts, it
    is asked for sub-block by sub-block: never wrong, only dearer.
    """

    def __init__(self, theirs: Theirs, size_bytes: int) -> None:
        self._theirs = theirs
        same = theirs.size_bytes == size_bytes
        # Beyond the other side's end nothing is known. A sub-block cut short by the end is digested as it is,
        # which says something only where it ends in the same place.
        shorter = min(theirs.size_bytes, size_bytes)
        self._known = sub_blocks_of(size_bytes) if same else shorter // SUB_BLOCK_BYTES
        self._whole = ranges_of(size_bytes) if same else self._known // RANGE_SUB_BLOCKS

    def settle(self, pieces: Sequence[tuple[int, Digests]], holes: Sequence[tuple[int, int]] = ()) -> Settled:
        """pieces: (first sub-block, our digests). holes: (first sub-block, count), which read as zeros here.

        Raises what `theirs` raises.
        """
        ours, edges, inner = _sums_here(pieces), _edges(holes), _inner(holes)
        ranges = np.unique(np.concatenate([ours.numbers, edges, inner]))
        equal = self._equal(ranges, ours)
        # Zeros for a whole range are told in fewer bytes than its values are asked for.
        asked = np.union1d(ours.numbers, edges)
        asked = asked[(asked * RANGE_SUB_BLOCKS < self._known) & ~_member(asked, ranges[equal])]
        found = _Found(asked, self._theirs.values(asked) if len(asked) else np.empty((0, 0), np.uint64))
        same = ranges[equal]
        return Settled(
            pieces=[self._piece(first, digests, same, found) for first, digests in pieces],
            holes=[part for hole in holes for part in self._hole(hole, same, found)],
        )

    def _equal(self, ranges: Int64s, ours: _Sums) -> Bools:
        here = no_digests(len(ranges))
        here[np.searchsorted(ranges, ours.numbers)] = ours.sums
        equal = ranges < self._whole
        equal[equal] = (self._theirs.sums(ranges[equal]) == here[equal]).all(axis=1)
        return equal

    def _piece(self, first: int, digests: Digests, same: Int64s, found: _Found) -> Uint64s:
        """The other side's values of a piece."""
        values = values_of(digests)
        for begin, end, number in _parts(first, len(digests)):
            if not _member(np.array([number]), same)[0]:
                values[begin - first : end - first] = self._clip(begin, found.of(number, begin, end))
        return values

    def _hole(self, hole: tuple[int, int], same: Int64s, found: _Found) -> Iterator[tuple[int, Uint64s]]:
        """The parts of a hole in ranges that are not known to be equal, neighbours joined."""
        first, count = hole
        numbers = np.arange(first // RANGE_SUB_BLOCKS, (first + count - 1) // RANGE_SUB_BLOCKS + 1)
        numbers = numbers[~_member(numbers, same)]
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            if not len(run):
                continue
            begin = max(first, int(run[0]) * RANGE_SUB_BLOCKS)
            end = min(first + count, (int(run[-1]) + 1) * RANGE_SUB_BLOCKS)
            parts = [found.of(number, start, stop) for start, stop, number in _parts(begin, end - begin)]
            yield begin, self._clip(begin, np.concatenate(parts))

    def _clip(self, first: int, values: Uint64s) -> Uint64s:
        values[max(0, self._known - first) :] = UNKNOWN
        return values


def differing(
    ours: Iterable[tuple[int, Digests]], theirs: Theirs, size_bytes: int
) -> Iterator[tuple[int, int]]:
    """``(start, end)`` in bytes of what differs, ascending where `ours` is, as (first sub-block, digests).

    Of each part of `ours` on its own, so that memory is bounded by the largest of them; what is zeros here
    must be told too, as digests of zeros.
    """
    comparison = Comparison(theirs, size_bytes)
    for first, digests in ours:
        [values] = comparison.settle([(first, digests)]).pieces
        for begin, end in runs(values != values_of(digests)):
            start = (first + begin) * SUB_BLOCK_BYTES
            yield start, min((first + end) * SUB_BLOCK_BYTES, size_bytes)


def runs(mask: Bools) -> Iterator[tuple[int, int]]:
    """``(begin, end)`` of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    yield from zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True)


@dataclass(frozen=True)
class _Sums:
    """Our sums, by range."""

    numbers: Int64s
    sums: Digests


def _sums_here(pieces: Sequence[tuple[int, Digests]]) -> _Sums:
    made = [sums_of(first, digests) for first, digests in pieces]
    if not made:
        return _Sums(np.empty(0, dtype=np.int64), no_digests(0))
    numbers, where = np.unique(np.concatenate([one[0] for one in made]), return_inverse=True)
    sums = no_digests(len(numbers))
    np.add.at(sums, where, np.concatenate([one[1] for one in made]))
    return _Sums(numbers, sums)


class _Found:
    """The other side's values of the ranges that were asked for."""

    def __init__(self, ranges: Int64s, values: Uint64s) -> None:
        self._rows = {number: index for index, number in enumerate(ranges.tolist())}
        self._values = values

    def of(self, number: int, begin: int, end: int) -> Uint64s:
        """Of sub-blocks within a range; unknown where it was not asked for."""
        row = self._rows.get(number)
        if row is None:
            return np.full(end - begin, UNKNOWN, dtype=np.uint64)
        base = number * RANGE_SUB_BLOCKS
        return self._values[row, begin - base : end - base].copy()


def _parts(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, range) of sub-blocks cut at the borders of ranges."""
    begin, last = first, first + count
    while begin < last:
        number = begin // RANGE_SUB_BLOCKS
        end = min(last, (number + 1) * RANGE_SUB_BLOCKS)
        yield begin, end, number
        begin = end


def _edges(holes: Sequence[tuple[int, int]]) -> Int64s:
    """Ranges that holes cover in part."""
    cut = [first // RANGE_SUB_BLOCKS for first, _ in holes if first % RANGE_SUB_BLOCKS]
    cut += [
        (first + count) // RANGE_SUB_BLOCKS for first, count in holes if (first + count) % RANGE_SUB_BLOCKS
    ]
    return np.unique(np.array(cut, dtype=np.int64))


def _inner(holes: Sequence[tuple[int, int]]) -> Int64s:
    """Ranges that lie within holes."""
    spans = [
        np.arange(-(-first // RANGE_SUB_BLOCKS), (first + count) // RANGE_SUB_BLOCKS, dtype=np.int64)
        for first, count in holes
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *spans])


def _member(numbers: Int64s, among: Int64s) -> Bools:
    """Which of `numbers` are in `among`, which is ascending."""
    if not len(among):
        return np.zeros(len(numbers), dtype=np.bool_)
    where = np.minimum(np.searchsorted(among, numbers), len(among) - 1)
    found: Bools = among[where] == numbers
    return found
