"""Measuring what a cycle writes while it is encoded: the source's half of `model.signals`.

Counts come from what encoding knows anyway: which sub-blocks changed, what the table held of them before,
how far compression came with each block. Only the entropy costs something of its own: 64 bytes of each 4 KiB
are counted into a histogram, from another place in each, because pages begin with headers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.journal.digests import UNKNOWN, ZERO
from secondsite.model.signals import ENTROPY_MAX, HARD_ABOVE, Signals

Uint64s = NDArray[np.uint64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_SAMPLE_WORDS = 8
_PLACES = SUB_BLOCK_BYTES // 8 // _SAMPLE_WORDS
_WORDS = np.arange(_SAMPLE_WORDS, dtype=np.int64)
# Fibonacci hashing of the sub-block's number: neighbours are sampled at places far apart.
_SPREAD = 0x9E3779B1


@dataclass(frozen=True)
class Change:
    """What is known of the sub-blocks of one piece before they are encoded; all by sub-block."""

    used: Bools  # differs, and is not zeros
    rewritten: Bools  # of these: data is replaced
    assumed: Bools  # of these: what is replaced is not known
    zeroed: Bools  # data becomes zeros


def change_of(values: Uint64s, before: Uint64s, differs: Bools, *, complete: bool) -> Change:
    """Compare table entries.

    complete: an unknown entry means that the target holds nothing there; else it may hold anything.
    """
    used = differs & (values > ZERO)
    nothing = np.zeros(len(values), dtype=np.bool_)
    assumed = nothing if complete else used & (before == UNKNOWN)
    return Change(used, (used & (before > ZERO)) | assumed, assumed, (values == ZERO) & (before > ZERO))


class Tally:
    """What one encoding thread, or a whole cycle, has seen; `take` adds another one's up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written = self._zeroed = self._rewritten = self._assumed = 0
        self._packed = self._hard = self._scrambled = 0
        self._fresh = np.zeros(256, dtype=np.int64)
        self._replaced = np.zeros(256, dtype=np.int64)

    def piece(self, change: Change) -> None:
        """Count a piece's sub-blocks."""
        self._written += int(np.count_nonzero(change.used)) * SUB_BLOCK_BYTES
        self._rewritten += int(np.count_nonzero(change.rewritten)) * SUB_BLOCK_BYTES
        self._assumed += int(np.count_nonzero(change.assumed)) * SUB_BLOCK_BYTES
        self._zeroed += int(np.count_nonzero(change.zeroed)) * SUB_BLOCK_BYTES

    def zeros(self, count: int) -> None:
        """Sub-blocks whose data became zeros without being read."""
        self._zeroed += count * SUB_BLOCK_BYTES

    def blocks(self, change: Change, offset: int, blocks: Sequence[tuple[int, int, int]]) -> None:
        """Count how blocks of a piece at `offset` compressed: (offset, length, bytes packed) of each."""
        for start, length, packed in blocks:
            self._packed += packed
            if packed > length * HARD_ABOVE:
                first = (start - offset) // SUB_BLOCK_BYTES
                rows = slice(first, first + -(-length // SUB_BLOCK_BYTES))
                self._hard += int(np.count_nonzero(change.used[rows])) * SUB_BLOCK_BYTES
                self._scrambled += int(np.count_nonzero(change.rewritten[rows])) * SUB_BLOCK_BYTES

    def sample(self, buffer: memoryview, starts: Ints, rewritten: Bools) -> None:
        """Look at the sub-blocks that begin at `starts` of `buffer`, each whole within it."""
        if not len(starts):
            return
        words = np.frombuffer(buffer, dtype=np.uint64, count=len(buffer) // 8)
        places = (starts // SUB_BLOCK_BYTES * _SPREAD >> 16) % _PLACES * _SAMPLE_WORDS
        found = words[(starts // 8 + places)[:, None] + _WORDS]
        if not rewritten.all():
            self._fresh += _histogram(found[~rewritten])
        if rewritten.any():
            self._replaced += _histogram(found[rewritten])

    def take(self, other: Tally) -> None:
        """Add what another one counted, which then begins again at nothing. Thread-safe."""
        with self._lock:
            for name in ("_written", "_zeroed", "_rewritten", "_assumed", "_packed", "_hard", "_scrambled"):
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


def _histogram(words: Uint64s) -> Ints:
    return np.bincount(words.view(np.uint8).ravel(), minlength=256)


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
