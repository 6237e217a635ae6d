"""Extents against a set of integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secondsite.model.extents import Extents

SIZE = 64
RANGES = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda p: (min(p), max(p))), max_size=12
)


def _bytes(extents: Extents) -> set[int]:
    return {byte for start, end in extents for byte in range(start, end)}


def _normal(extents: Extents) -> bool:
    pairs = list(extents)
    return all(a < b for a, b in pairs) and all(pairs[i][1] < pairs[i + 1][0] for i in range(len(pairs) - 1))


@given(RANGES)
def test_of_is_the_union_of_its_ranges(ranges: list[tuple[int, int]]) -> None:
    extents = Extents.of(ranges)
    assert _bytes(extents) == {b for s, e in ranges for b in range(s, e)}
    assert _normal(extents)
    assert extents.total_bytes == len(_bytes(extents))


@given(RANGES, RANGES)
def test_set_operations(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = Extents.of(left), Extents.of(right)
    assert _bytes(a.union(b)) == _bytes(a) | _bytes(b)
    assert _bytes(a.intersect(b)) == _bytes(a) & _bytes(b)
    assert _bytes(a.subtract(b)) == _bytes(a) - _bytes(b)
    for result in (a.union(b), a.intersect(b), a.subtract(b)):
        assert _normal(result)


@given(RANGES, st.integers(0, SIZE))
def test_complement(ranges: list[tuple[int, int]], size: int) -> None:
    extents = Extents.of(ranges)
    assert _bytes(extents.complement(size)) == set(range(size)) - _bytes(extents)
    assert _normal(extents.complement(size))


@given(RANGES, st.integers(0, SIZE), st.integers(0, SIZE))
def test_clip(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    extents = Extents.of(ranges)
    assert _bytes(extents.clip(start, end)) == _bytes(extents) & set(range(start, end))


@given(RANGES, st.sampled_from([1, 4, 16]))
def test_align_grows_outwards_and_stays_inside(ranges: list[tuple[int, int]], unit: int) -> None:
    extents = Extents.of(ranges)
    aligned = extents.align(unit, SIZE)
    wanted = {b for x in _bytes(extents) for b in range(x // unit * unit, x // unit * unit + unit)}
    assert _bytes(aligned) == {b for b in wanted if b < SIZE}
    assert _normal(aligned)


@given(RANGES, st.integers(1, SIZE))
def test_take_splits_after_so_many_bytes(ranges: list[tuple[int, int]], count: int) -> None:
    extents = Extents.of(ranges)
    first, rest = extents.take(count)
    everything = sorted(_bytes(extents))
    assert sorted(_bytes(first)) == everything[:count]
    assert sorted(_bytes(rest)) == everything[count:]


@given(RANGES, st.integers(1, 9))
def test_pieces_cover_everything_once(ranges: list[tuple[int, int]], most: int) -> None:
    extents = Extents.of(ranges)
    pieces = list(extents.pieces(most))
    assert all(0 < length <= most for _, length in pieces)
    assert [b for o, n in pieces for b in range(o, o + n)] == sorted(_bytes(extents))
