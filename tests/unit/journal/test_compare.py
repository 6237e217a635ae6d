"""The compare's core over random disks: what it finds, applied, makes both sides equal, and is not more."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.base.units import SUB_BLOCK_BYTES as SUB
from secondsite.journal import compare
from secondsite.journal.compare import (
    RANGE_BYTES,
    RANGE_SUB_BLOCKS,
    Comparison,
    Int64s,
    Uint64s,
    differing,
    ranges_of,
    sub_blocks_of,
    sums_of,
)
from secondsite.journal.digests import Digests, digest_sub_blocks, no_digests, values_of

SEED = 0x1234_5678_9ABC_DEF0


@dataclass
class Disk:
    """A disk in memory that answers as the other side would, and counts what it is asked."""

    data: bytearray
    asked_values: list[int] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def digests(self, first: int, count: int) -> Digests:
        part = self.data[first * SUB : (first + count) * SUB]
        return digest_sub_blocks(memoryview(bytes(part)), first, SEED)

    def all(self) -> Digests:
        rows = no_digests(ranges_of(self.size_bytes) * RANGE_SUB_BLOCKS)
        found = self.digests(0, sub_blocks_of(self.size_bytes))
        rows[: len(found)] = found
        return rows

    def sums(self, ranges: Int64s) -> Digests:
        rows = self.all().reshape(-1, RANGE_SUB_BLOCKS, 2)
        found: Digests = rows.sum(axis=1, dtype=np.uint64)[ranges]
        return found

    def values(self, ranges: Int64s) -> Uint64s:
        assert list(ranges) == sorted(set(ranges.tolist()))
        self.asked_values += ranges.tolist()
        return values_of(self.all()).reshape(-1, RANGE_SUB_BLOCKS)[ranges]


def filled(chance: random.Random, size: int) -> bytearray:
    """Data in some places, holes in others."""
    data = bytearray(size)
    for _ in range(chance.randrange(6)):
        start = chance.randrange(size)
        length = chance.choice([1, SUB, 3 * SUB, 64 * 1024, RANGE_BYTES])
        data[start : start + length] = chance.randbytes(min(length, size - start))
    return data


def changed(chance: random.Random, data: bytearray) -> bytearray:
    """Another state of the same disk."""
    data = bytearray(data)
    for _ in range(chance.randrange(5)):
        start = chance.randrange(len(data))
        length = min(chance.choice([1, 512, SUB, 100_000, RANGE_BYTES + 1]), len(data) - start)
        data[start : start + length] = chance.choice([bytes(length), chance.randbytes(length)])
    size = len(data) + chance.choice([0, 0, 0, 1, SUB, RANGE_BYTES, -1, -SUB, 5 * RANGE_BYTES // 2])
    return data[:size] + bytes(max(0, size - len(data)))


def pieces_of(chance: random.Random, data: bytearray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(what is read, what is a hole), in sub-blocks: data is read, zeros are read or known as holes."""
    pieces: list[tuple[int, int]] = []
    holes: list[tuple[int, int]] = []
    first, last = 0, sub_blocks_of(len(data))
    while first < last:
        count = min(chance.choice([1, 2, 16, RANGE_SUB_BLOCKS, 700]), last - first)
        if not any(data[first * SUB : (first + count) * SUB]) and chance.random() < 0.8:
            holes.append((first, count))
        else:
            starts = range(first, first + count, RANGE_SUB_BLOCKS)
            pieces.extend((start, min(RANGE_SUB_BLOCKS, first + count - start)) for start in starts)
        first += count
    return pieces, holes


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_not_known_to_be_equal_makes_both_equal(seed: int) -> None:
    chance = random.Random(seed)
    theirs = Disk(filled(chance, chance.randrange(1, 6 * RANGE_BYTES)))
    ours = Disk(changed(chance, theirs.data))
    pieces, holes = pieces_of(chance, ours.data)
    comparison = Comparison(theirs, ours.size_bytes)
    after = bytearray(ours.size_bytes)  # what the other side reads as after the differences were written
    kept = min(len(theirs.data), len(after))
    after[:kept] = theirs.data[:kept]
    after[kept:] = b"\xaa" * (len(after) - kept)  # nothing may be taken for granted beyond its end
    sent = 0
    while pieces or holes:  # in several calls, as batches come
        count, gaps = chance.randrange(1, 5), chance.randrange(3)
        now, pieces = pieces[:count], pieces[count:]
        holes_now, holes = (holes[:gaps], holes[gaps:]) if pieces else (holes, [])
        read = [(first, ours.digests(first, length)) for first, length in now]
        settled = comparison.settle(read, holes_now)
        for (first, digests), values in zip(read, settled.pieces, strict=True):
            for index in np.flatnonzero(values != values_of(digests)).tolist():
                start = (first + index) * SUB
                after[start : start + SUB] = ours.data[start : start + SUB]
                sent += SUB
        for first, values in settled.holes:
            for index in np.flatnonzero(values != 1).tolist():
                start = (first + index) * SUB
                after[start : start + SUB] = bytes(len(after[start : start + SUB]))
    assert after == ours.data
    assert sent <= _differing_sub_blocks(ours.data, theirs.data) * SUB


def _differing_sub_blocks(ours: bytearray, theirs: bytearray) -> int:
    def cut(data: bytearray, index: int) -> bytes:
        return bytes(data[index * SUB : (index + 1) * SUB])

    both = min(len(ours), len(theirs)) // SUB if len(ours) != len(theirs) else sub_blocks_of(len(ours))
    beyond = sub_blocks_of(len(ours)) - both
    return beyond + sum(cut(ours, i) != cut(theirs, i) for i in range(both))


def test_equal_disks_are_not_asked_for_values_and_holes_cost_nothing() -> None:
    chance = random.Random(3)
    data = bytearray(20 * RANGE_BYTES)
    data[5 * RANGE_BYTES : 6 * RANGE_BYTES] = chance.randbytes(RANGE_BYTES)
    ours, theirs = Disk(data), Disk(bytearray(data))
    comparison = Comparison(theirs, ours.size_bytes)
    five = 5 * RANGE_SUB_BLOCKS
    settled = comparison.settle(
        [(five, ours.digests(five, RANGE_SUB_BLOCKS))],
        [(0, five), (five + RANGE_SUB_BLOCKS, 14 * RANGE_SUB_BLOCKS)],
    )
    assert settled.holes == []
    assert theirs.asked_values == []


def test_one_changed_block_asks_for_one_range() -> None:
    chance = random.Random(4)
    ours = Disk(bytearray(chance.randbytes(8 * RANGE_BYTES)))
    theirs = Disk(bytearray(ours.data))
    ours.data[3 * RANGE_BYTES + 7] ^= 1
    parts = ((n * RANGE_SUB_BLOCKS, ours.digests(n * RANGE_SUB_BLOCKS, RANGE_SUB_BLOCKS)) for n in range(8))
    found = list(differing(parts, theirs, ours.size_bytes))
    assert found == [(3 * RANGE_BYTES, 3 * RANGE_BYTES + SUB)]
    assert theirs.asked_values == [3]


def test_blocks_that_changed_places_differ() -> None:
    chance = random.Random(5)
    ours = Disk(bytearray(chance.randbytes(RANGE_BYTES)))
    theirs = Disk(bytearray(ours.data))
    theirs.data[:SUB], theirs.data[SUB : 2 * SUB] = ours.data[SUB : 2 * SUB], ours.data[:SUB]
    found = list(differing([(0, ours.digests(0, RANGE_SUB_BLOCKS))], theirs, ours.size_bytes))
    assert found == [(0, 2 * SUB)]


def test_a_part_of_a_range_that_sums_up_says_nothing_of_the_rest() -> None:
    """The rest is a hole here and data there: the part's sum differs, and the hole is told."""
    chance = random.Random(6)
    theirs = Disk(bytearray(chance.randbytes(RANGE_BYTES)))
    ours = Disk(theirs.data[: 4 * SUB] + bytes(RANGE_BYTES - 4 * SUB))
    settled = Comparison(theirs, RANGE_BYTES).settle([(0, ours.digests(0, 4))], [(4, RANGE_SUB_BLOCKS - 4)])
    assert (settled.pieces[0] == values_of(ours.digests(0, 4))).all()
    [(first, values)] = settled.holes
    assert (first, len(values)) == (4, RANGE_SUB_BLOCKS - 4)
    assert (values > 1).all()


def test_sums_are_cut_at_the_ranges_borders() -> None:
    chance = random.Random(7)
    digests = np.frombuffer(chance.randbytes(16 * 600), dtype=np.uint64).reshape(-1, 2)
    numbers, sums = sums_of(200, digests)
    assert numbers.tolist() == [0, 1, 2, 3]
    cuts = [0, 56, 312, 568, 600]
    for index in range(4):
        expected = digests[cuts[index] : cuts[index + 1]].sum(axis=0, dtype=np.uint64)
        assert (sums[index] == expected).all()


def test_planted_bug_holes_that_are_not_compared_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_inner", lambda holes: np.empty(0, dtype=np.int64))
    monkeypatch.setattr(
        Comparison,
        "_hole",
        lambda self, hole, same, found: iter(()),
    )
    with pytest.raises(AssertionError):
        test_what_is_not_known_to_be_equal_makes_both_equal()
