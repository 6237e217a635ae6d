"""One disk through all points, oldest first: what cannot be read at each, and what its content adds up to.

The digests of the base are computed from what it holds; then each segment's, sealed in its index and compared
with its blocks, are applied in writing order. So every point's fingerprint is counted anew at the cost of the
base and the changes, not of the disk for every point. What a damaged object held is followed the same way:
where it is overwritten, it costs the later points nothing.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.journal.digests import Digests, fingerprint_text, no_digests, update_lanes
from secondsite.journal.format import KIND_ZERO
from secondsite.journal.merged_index import Layer
from secondsite.journal.scrub_segment import SegmentCheck
from secondsite.journal.segment_read import BlockIndex
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, KeyId
from secondsite.model.points import DiskState

# Digests of 16 GiB of disk; those of larger ones lie in a temporary file, whose pages the system may take.
IN_MEMORY_BYTES_MAX = 64 * MIB
Numbers = NDArray[np.int64]


class PairArray:
    """Pairs of 64 bits by number, zeros at first; in memory, or in a temporary file where there are many."""

    def __init__(self, count: int, directory: Path | None) -> None:
        self._stack = contextlib.ExitStack()
        count = max(1, count)
        self.rows: Digests
        if 16 * count <= IN_MEMORY_BYTES_MAX:
            self.rows = no_digests(count)
        else:
            file = self._stack.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115 - the stack
            file.truncate(16 * count)  # sparse: what a disk never used costs nothing
            self.rows = np.memmap(file, dtype=np.uint64, mode="r+", shape=(count, 2))

    def close(self) -> None:
        """Let go of the file."""
        self.rows = no_digests(0)
        self._stack.close()


class DigestArray(PairArray):
    """The digest of every sub-block of a disk, and their sum."""

    def __init__(self, size_bytes_max: int, directory: Path | None) -> None:
        super().__init__(-(-size_bytes_max // SUB_BLOCK_BYTES), directory)
        self.lanes = (0, 0)

    def write(self, where: Numbers | slice, digests: Digests) -> None:
        """Replace the digests of distinct sub-blocks."""
        self.lanes = update_lanes(self.lanes, self.rows[where], digests)
        self.rows[where] = digests

    def is_zero(self, number: int) -> bool:
        """Whether a sub-block is all zeros."""
        return not self.rows[number].any()

    def cut(self, first: int) -> None:
        """Zeros from sub-block `first` on."""
        for start in range(first, len(self.rows), 64 * 1024):
            rows = self.rows[start : start + 64 * 1024]
            if rows.any():
                self.write(slice(start, start + len(rows)), no_digests(len(rows)))


@dataclass(eq=False)
class Loss:
    """What one damaged object takes away from the disk, at the point the walk has come to."""

    object: str
    kind: str
    why: str
    where: Extents
    blind: bool = False  # its digests are not known either: nothing can be said of the sum while it lasts
    suspect: bool = False  # a sum says so; a fingerprint that fits says more
    cleared: bool = False  # a fingerprint showed that some of it is as it should be
    forever: bool = False  # nothing that is written later hides it
    points: set[int] = field(default_factory=set)  # it costs
    widest: Extents = field(default_factory=Extents.empty)  # at the oldest of them
    seen: list[tuple[int, Extents]] = field(default_factory=list)  # of a suspect: at which point, and what


@dataclass(frozen=True)
class Verdict:
    """What the walk says of the disk at one point."""

    lost: bool
    comparable: bool  # the sum is of everything that was committed
    matches: bool | None  # whether the sum is the manifest's; None: cannot be told
    text: str  # the sum


class DiskWalk:
    """See the module's text. For each point in order: `resize`, `apply` each segment, then `judge`."""

    def __init__(
        self, disk: DiskId, key: KeyId, size_bytes: int, size_bytes_max: int, directory: Path | None
    ) -> None:
        self.disk = disk
        self.key = key
        self.size_bytes = size_bytes
        self.digests = DigestArray(size_bytes_max, directory)
        self.losses: list[Loss] = []  # all there ever were
        self._open: list[Loss] = []  # that still cover something
        self._unknown = Extents.empty()  # readable, but of a digest nobody computed

    def lose(self, loss: Loss) -> None:
        """Something of the disk cannot be read from now on."""
        self.losses.append(loss)
        if len(loss.where):
            self._open.append(loss)

    def know_nothing(self) -> None:
        """What is there can be read, but its digests cannot be told."""
        self._unknown = Extents.whole(self.size_bytes)

    def lost(self, *, suspects: bool) -> Extents:
        """What cannot be read until it is written again; suspects: also what may be readable."""
        open_now = [loss for loss in self._open if not loss.forever and (suspects or not loss.suspect)]
        starts = [np.empty(0, np.int64), *(loss.where.starts for loss in open_now)]
        ends = [np.empty(0, np.int64), *(loss.where.ends for loss in open_now)]
        return Extents.from_arrays(np.concatenate(starts), np.concatenate(ends))

    def resize(self, state: DiskState) -> None:
        """Follow the disk's size and key, before the point's segments."""
        size, old = state.size_bytes, self.size_bytes
        if state.key_id != self.key:
            # digests under another key say nothing about the old ones
            self.key, self._unknown = state.key_id, Extents.whole(min(size, old))
        if size == old:
            return
        # the sub-block in which the shorter end lies is digested in another length now
        edge = min(size, old) // SUB_BLOCK_BYTES
        if min(size, old) % SUB_BLOCK_BYTES and not self.digests.is_zero(edge):
            start = edge * SUB_BLOCK_BYTES
            self._unknown = self._unknown.union(Extents.of([(start, start + SUB_BLOCK_BYTES)]))
        if size < old:
            self.digests.cut(-(-size // SUB_BLOCK_BYTES))
            self._hide(Extents.of([(size, max(old, size + SUB_BLOCK_BYTES))]))
        self.size_bytes = size

    def apply(self, check: SegmentCheck) -> None:
        """A segment of the point, in writing order."""
        if check.index is None or check.digests is None:
            kind = "key" if check.key_lost else "segment"
            why = str(check.error)
            self.lose(Loss(check.name, kind, why, Extents.whole(self.size_bytes), blind=True))
            return
        where, digests = rows_of(check.index, check.digests)
        if not len(where):
            return
        self.digests.write(where, digests)
        starts = check.index["offset"].astype(np.int64)
        ends = starts + check.index["length"].astype(np.int64)
        self._hide(Extents.from_arrays(starts, ends))
        if check.bad:
            layer = Layer.of_blocks(starts, ends, np.arange(len(starts), dtype=np.int64))
            seen = np.isin(layer.blocks, check.bad)
            gone = Extents.from_arrays(layer.starts[seen], layer.ends[seen])
            self.lose(Loss(check.name, "segment", str(check.error), gone))

    def _hide(self, where: Extents) -> None:
        """Overwritten: what was lost or unknown there is so no more."""
        for loss in self._open:
            if not loss.forever:
                loss.where = loss.where.subtract(where)
        self._open = [loss for loss in self._open if len(loss.where)]
        self._unknown = self._unknown.subtract(where)

    def judge(self, number: int, state: DiskState) -> Verdict:
        """The disk at a point, all its segments applied."""
        text = fingerprint_text(self.digests.lanes)
        comparable = not len(self._unknown) and not any(loss.blind for loss in self._open)
        matches = None
        if comparable and state.fingerprint is not None:
            matches = text == state.fingerprint
        if matches:
            # the content is what was committed: a sum that says otherwise is itself what is wrong
            self._clear()
        for loss in self._open:
            if not loss.points:
                loss.widest = loss.where
            loss.points.add(number)
            if loss.suspect and (not loss.seen or loss.seen[-1][1] != loss.where):
                loss.seen.append((number, loss.where))
        return Verdict(bool(self._open), comparable, matches, text)

    def _clear(self) -> None:
        for loss in [loss for loss in self._open if loss.suspect]:
            proven, loss.where, loss.cleared = loss.where, Extents.empty(), True
            self._open.remove(loss)
            left = [(number, where.subtract(proven)) for number, where in loss.seen]
            upto = next((number for number, where in left if not len(where)), None)
            if upto is not None:
                # what is left only shrinks from point to point
                loss.points = {number for number in loss.points if number < upto}
            loss.widest = loss.widest.subtract(proven)
            loss.seen = [(number, where) for number, where in left if len(where)]

    def settle(self) -> None:
        """What was lost turned out to be less."""
        self._open = [loss for loss in self._open if len(loss.where)]

    def close(self) -> None:
        """Free the digests."""
        self.digests.close()


def rows_of(index: BlockIndex, digests: Digests) -> tuple[Numbers, Digests]:
    """(distinct sub-blocks, digests) of a segment; of one written several times the last."""
    counts = -(-index["length"].astype(np.int64) // SUB_BLOCK_BYTES)
    first = index["offset"].astype(np.int64) // SUB_BLOCK_BYTES
    total = int(counts.sum())
    within = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    every = no_digests(total)
    every[np.repeat(index["kind"] != KIND_ZERO, counts)] = digests
    where = (np.repeat(first, counts) + within)[::-1]
    distinct, last = np.unique(where, return_index=True)
    return distinct, every[::-1][last]
