"""Sets of byte ranges on numpy: sorted, disjoint, non-adjacent, half-open, int64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

_EMPTY = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Extents:
    """Byte ranges ``[starts[i], ends[i])`` of one disk, ascending, with a gap between each two."""

    starts: Int64s
    ends: Int64s

    @classmethod
    def empty(cls) -> Extents:
        """No bytes at all."""
        return cls(_EMPTY, _EMPTY)

    @classmethod
    def whole(cls, size_bytes: int) -> Extents:
        """Everything below `size_bytes`."""
        return cls.of([(0, size_bytes)])

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Extents:
        """From ``(start, end)`` pairs in any order, overlapping or not; empty ranges are dropped."""
        pairs = np.array([r for r in ranges if r[0] < r[1]], dtype=np.int64).reshape(-1, 2)
        return cls.from_arrays(pairs[:, 0], pairs[:, 1])

    @classmethod
    def from_arrays(cls, starts: Int64s, ends: Int64s) -> Extents:
        """From parallel arrays of non-empty ranges in any order; overlapping and touching ones are joined."""
        if len(starts) == 0:
            return cls.empty()
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        # a range opens a new extent when it starts beyond everything before it
        opens = np.concatenate(([True], starts[1:] > ends[:-1]))
        closes = np.concatenate((opens[1:], [True]))
        return cls(np.ascontiguousarray(starts[opens]), np.ascontiguousarray(ends[closes]))

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.ends.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Extents)
            and np.array_equal(self.starts, other.starts)
            and np.array_equal(self.ends, other.ends)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{a}..{b}" for a, b in list(self)[:8])
        return f"Extents({shown}{', …' if len(self) > 8 else ''})"

    @property
    def total_bytes(self) -> int:
        """How many bytes the ranges cover."""
        return int((self.ends - self.starts).sum())

    def union(self, other: Extents) -> Extents:
        """Bytes in either."""
        return Extents.from_arrays(
            np.concatenate((self.starts, other.starts)), np.concatenate((self.ends, other.ends))
        )

    def complement(self, size_bytes: int) -> Extents:
        """Bytes below `size_bytes` that are in none of the ranges."""
        inside = self.clip(0, size_bytes)
        starts = np.concatenate(([0], inside.ends)).astype(np.int64)
        ends = np.concatenate((inside.starts, [size_bytes])).astype(np.int64)
        keep = starts < ends
        return Extents(starts[keep], ends[keep])

    def intersect(self, other: Extents) -> Extents:
        """Bytes in both. Cost: the shorter list's length times log of the longer's, plus the result."""
        few, many = (self, other) if len(self) <= len(other) else (other, self)
        first = np.searchsorted(many.ends, few.starts, side="right")
        last = np.searchsorted(many.starts, few.ends, side="left")
        counts = np.maximum(last - first, 0)
        if not counts.sum():
            return Extents.empty()
        owner = np.repeat(np.arange(len(few)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        other_index = first[owner] + within
        starts = np.maximum(few.starts[owner], many.starts[other_index])
        ends = np.minimum(few.ends[owner], many.ends[other_index])
        return Extents(starts, ends)

    def subtract(self, other: Extents) -> Extents:
        """Bytes of this that are not in `other`."""
        if not len(self) or not len(other):
            return self
        return self.intersect(other.complement(int(self.ends[-1])))

    def clip(self, start: int, end: int) -> Extents:
        """Only the part inside ``[start, end)``."""
        starts, ends = np.maximum(self.starts, start), np.minimum(self.ends, end)
        keep = starts < ends
        return Extents(starts[keep], ends[keep])

    def align(self, unit_bytes: int, size_bytes: int) -> Extents:
        """Grown outwards to multiples of `unit_bytes`, never beyond `size_bytes`."""
        starts = self.starts // unit_bytes * unit_bytes
        ends = np.minimum((self.ends + unit_bytes - 1) // unit_bytes * unit_bytes, size_bytes)
        return Extents.from_arrays(starts, ends)

    def pieces(self, length_bytes_max: int, *, aligned: bool = False) -> Iterator[tuple[int, int]]:
        """``(offset, length)`` in ascending order, each at most `length_bytes_max`.

        aligned: cut at multiples of it, so that no piece crosses one.
        """
        for start, end in self:
            offset = start
            while offset < end:
                length = min(length_bytes_max - (offset % length_bytes_max if aligned else 0), end - offset)
                yield offset, length
                offset += length

    def take(self, total_bytes_max: int) -> tuple[Extents, Extents]:
        """Split after the first `total_bytes_max` bytes: (those, the rest)."""
        covered = np.cumsum(self.ends - self.starts)
        if not len(self) or covered[-1] <= total_bytes_max:
            return self, Extents.empty()
        index = int(np.searchsorted(covered, total_bytes_max, side="right"))
        before = int(covered[index - 1]) if index else 0
        cut = int(self.starts[index]) + total_bytes_max - before
        return self.clip(0, cut), self.clip(cut, int(self.ends[-1]))
