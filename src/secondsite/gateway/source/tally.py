"""Measuring what a cycle writes while it is encoded: the source's half of `model.signals`.

Counts come from what encoding knows anyway: which sub-blocks changed, what the table held of them before,
how far compression came with each block. Only the entropy costs something of its own: of at most 64
sub-blocks of a batch, for each kind, 64 bytes are counted into a histogram, from another place in each,
because pages begin with headers.
All of it is done a batch at a time: a few microseconds for each 4 KiB piece would be a third of its encoding.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.journal.digests import UNKNOWN, ZERO
from secondsite.journal.format import KIND_ZERO, TAG_BYTES
from secondsite.model.signals import ENTROPY_MAX, HARD_ABOVE, Signals

Uint64s = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_SAMPLE_WORDS = 8
_PLACES = SUB_BLOCK_BYTES // 8 // _SAMPLE_WORDS
_WORDS = np.arange(_SAMPLE_WORDS, dtype=np.int64)
# Fibonacci hashing of the sub-block's number: neighbours are sampled at places far apart.
_SPREAD = 0x9E3779B1
# Of so many sub-blocks of a batch, each kind.
_FEW = 64


@dataclass(frozen=True)
class Looked:
    """What an encoder knows of a batch of one disk; arrays by sub-block unless said otherwise."""

    buffer: memoryview
    starts: Ints  # of each piece, in the buffer
    counts: Ints  # of each piece's sub-blocks
    values: Uint64s  # table entries now
    before: Uint64s  # and before
    differs: Bools  # what was encoded
    complete: bool  # an unknown entry means that the target holds nothing there; else it may hold anything


_COUNTS = ("_written", "_zeroed", "_rewritten", "_assumed", "_packed", "_hard", "_scrambled")


class Tally:
    """What one encoding thread, or (by `take`) a whole cycle, has seen.

    A thread calls `look` after each batch and `packed` for each segment; the blocks of segments are in the
    order of the batches' pieces.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written = self._zeroed = self._rewritten = self._assumed = 0
        self._packed = self._hard = self._scrambled = 0
        self._fresh = np.zeros(256, dtype=np.int64)
        self._replaced = np.zeros(256, dtype=np.int64)
        # of what was looked at and is in no finished segment yet, by sub-block: data; data over data
        self._flags: list[tuple[Bools, Bools]] = []
        self._segments: list[NDArray[np.void]] = []  # finished, not counted yet

    def packed(self, index: NDArray[np.void]) -> None:
        """The index of a finished segment: of all that was encoded since the one before."""
        self._segments.append(index)

    def look(self, batch: Looked) -> None:
        """A batch is encoded."""
        differs = batch.differs
        data, known = batch.values > ZERO, batch.before > ZERO
        used = differs & data
        written = np.flatnonzero(used)
        if batch.complete:
            over = used & known
        else:
            over = used & (known | (batch.before == UNKNOWN))
            self._assumed += _bytes(over & ~known)
        if len(written) < len(used):
            self._zeroed += _bytes(differs & known & ~data)
            self._flags.append((used[differs], over[differs]))
        else:
            self._flags.append((used, over))
        self._written += len(written) * SUB_BLOCK_BYTES
        self._rewritten += _bytes(over)
        if len(written):
            self._sample(batch, np.flatnonzero(over), self._replaced)
            if len(written) * SUB_BLOCK_BYTES > _bytes(over):
                self._sample(batch, np.flatnonzero(used & ~over), self._fresh)

    def take(self, other: Tally) -> None:
        """Add what another one counted, which then begins again at nothing. Thread-safe."""
        other._count()
        with self._lock:
            for name in _COUNTS:
                setattr(self, name, getattr(self, name) + getattr(other, name))
                setattr(other, name, 0)
            for name in ("_fresh", "_replaced"):
                getattr(self, name).__iadd__(getattr(other, name))
                getattr(other, name).fill(0)

    def signals(self, *, seconds: float = 0.0) -> Signals:
        """As a proposal carries them; seconds: since the instant before, 0: not known."""
        return Signals(
            written_bytes=self._written,
            zeroed_bytes=self._zeroed,
            rewritten_bytes=self._rewritten,
            assumed_bytes=self._assumed,
            packed_bytes=self._packed,
            hard_bytes=self._hard,
            scrambled_bytes=self._scrambled,
            entropy=entropy_of(self._fresh + self._replaced),
            rewritten_entropy=entropy_of(self._replaced),
            seconds=round(max(0.0, seconds), 3),
        )

    def _sample(self, batch: Looked, chosen: Ints, histogram: Ints) -> None:
        """Count bytes of the batch's sub-blocks `chosen`, for each of them or for many."""
        if not len(chosen):
            return
        every = -(-len(chosen) // _FEW)
        chosen = chosen[::every]
        ends = np.cumsum(batch.counts)
        piece = np.searchsorted(ends, chosen, side="right")
        starts = batch.starts[piece] + (chosen - (ends - batch.counts)[piece]) * SUB_BLOCK_BYTES
        words = np.frombuffer(batch.buffer, dtype=np.uint64, count=len(batch.buffer) // 8)
        places = (starts // SUB_BLOCK_BYTES * _SPREAD >> 16) % _PLACES * _SAMPLE_WORDS
        # the last sub-block of a disk may be short, and may lie at the buffer's end
        first = np.minimum(starts // 8 + places, len(words) - _SAMPLE_WORDS)
        found = words[first[:, None] + _WORDS].view(np.uint8).ravel()
        histogram += np.bincount(found, minlength=256) * every

    def _count(self) -> None:
        """Bring finished segments and what was looked at together; what is in an open one is kept."""
        if not self._segments or not self._flags:
            return
        index = np.concatenate(self._segments)
        self._segments.clear()
        used, over = (np.concatenate(flags) for flags in zip(*self._flags, strict=True))
        counts = -(-index["length"].astype(np.int64) // SUB_BLOCK_BYTES)
        total = int(counts.sum())
        held = index["kind"] != KIND_ZERO
        sizes = np.where(held, index["stored_length"].astype(np.int64) - TAG_BYTES, 0)
        self._packed += int(sizes.sum())
        hard = np.repeat(held & (sizes > index["length"] * HARD_ABOVE), counts)
        self._hard += _bytes(hard & used[:total])
        self._scrambled += _bytes(hard & over[:total])
        self._flags = [(used[total:], over[total:])]


def _bytes(mask: Bools) -> int:
    return int(np.count_nonzero(mask)) * SUB_BLOCK_BYTES


def entropy_of(histogram: Ints) -> int:
    """Shannon entropy in thousandths of a bit per byte; 0 of nothing.

    A small sample looks more orderly than it is: the Miller-Madow correction, (bins - 1) / 2n, takes most of
    that away.
    """
    counts = histogram[histogram > 0].astype(np.float64)
    total = float(counts.sum())
    if not total:
        return 0
    plain = math.log2(total) - float((counts * np.log2(counts)).sum()) / total
    corrected = plain + (len(counts) - 1) / (2 * total * math.log(2))
    return max(0, min(ENTROPY_MAX, round(corrected * 1000)))
