"""Which block answers for which bytes: layers of blocks merged so that the newest wins, on numpy.

A layer is a sorted list of disjoint pieces. Two layers merge in time proportional to their pieces (times a
logarithm); many merge pairwise like the turns of a tournament, so a hundred cycles cost seven passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secondsite.model.extents import Extents, Int64s

_FARTHEST = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Layer:
    """Disjoint pieces in ascending order; each is a part of one block, named by the block's number."""

    starts: Int64s
    ends: Int64s
    blocks: Int64s  # whichever numbers the caller gave to the blocks

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def empty(cls) -> Layer:
        """No pieces."""
        none = np.empty(0, dtype=np.int64)
        return cls(none, none, none)

    @classmethod
    def of_blocks(cls, starts: Int64s, ends: Int64s, blocks: Int64s) -> Layer:
        """From blocks in writing order, which may overlap: the later one wins. Empty ones are dropped."""
        keep = starts < ends
        if not keep.all():
            starts, ends, blocks = starts[keep], ends[keep], blocks[keep]
        order = np.argsort(starts, kind="stable")
        sorted_starts, sorted_ends = starts[order], ends[order]
        if len(starts) < 2 or (sorted_ends[:-1] <= sorted_starts[1:]).all():
            return cls(sorted_starts, sorted_ends, blocks[order])
        half = len(starts) // 2
        older = cls.of_blocks(starts[:half], ends[:half], blocks[:half])
        return older.under(cls.of_blocks(starts[half:], ends[half:], blocks[half:]))

    def under(self, newer: Layer) -> Layer:
        """Both, with `newer` winning where they overlap."""
        if not len(self):
            return newer
        if not len(newer):
            return self
        visible = self._outside(newer)
        starts = np.concatenate((visible.starts, newer.starts))
        order = np.argsort(starts, kind="stable")  # merges two sorted runs in linear time
        return Layer(
            starts[order],
            np.concatenate((visible.ends, newer.ends))[order],
            np.concatenate((visible.blocks, newer.blocks))[order],
        )

    def _outside(self, cover: Layer) -> Layer:
        """The parts of this layer's pieces that `cover` leaves visible."""
        gap_starts = np.concatenate(([0], cover.ends)).astype(np.int64)
        gap_ends = np.concatenate((cover.starts, [_FARTHEST])).astype(np.int64)
        first = np.searchsorted(gap_ends, self.starts, side="right")
        last = np.searchsorted(gap_starts, self.ends, side="left")
        counts = np.maximum(last - first, 0)
        owner = np.repeat(np.arange(len(self)), counts)
        gap = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.maximum(self.starts[owner], gap_starts[gap])
        ends = np.minimum(self.ends[owner], gap_ends[gap])
        keep = starts < ends
        return Layer(starts[keep], ends[keep], self.blocks[owner][keep])

    def clip(self, end: int) -> Layer:
        """Only what lies below `end`."""
        count = int(np.searchsorted(self.starts, end, side="left"))
        return Layer(self.starts[:count], np.minimum(self.ends[:count], end), self.blocks[:count])

    def extents(self) -> Extents:
        """The bytes it answers for."""
        return Extents.from_arrays(self.starts, self.ends)


def merge(layers: Sequence[Layer]) -> Layer:
    """All layers, the oldest first, the newest winning."""
    turn = list(layers)
    while len(turn) > 1:
        paired = [turn[i].under(turn[i + 1]) for i in range(0, len(turn) - 1, 2)]
        turn = paired + turn[len(paired) * 2 :]
    return turn[0] if turn else Layer.empty()
