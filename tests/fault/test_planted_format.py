"""The net must catch fish: each planted bug in the format's code makes a check of the suite fail."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.journal import segment, segment_read
from secondsite.journal.digests import combine, digest_sub_blocks
from secondsite.journal.format import NONCE
from secondsite.journal.segment import SegmentReader, SegmentWriter, verify_segment
from support.format_samples import DISK_BYTES, KEY, fixed, sample_head


def content_comes_back() -> bool:
    """Overlapping, zero and compressible blocks read as they were written."""
    chance, disk = random.Random(5), bytearray(DISK_BYTES)
    writer = SegmentWriter(sample_head(), KEY, randomness=fixed(7))
    for number in range(30):
        length = 4096 * chance.randint(1, 24)
        offset = 4096 * chance.randrange(0, (DISK_BYTES - length) // 4096)
        data = [chance.randbytes(length), bytes(length), b"log line\n" * (length // 9) + bytes(length % 9)][
            number % 3
        ]
        disk[offset : offset + length] = data
        writer.add(offset, memoryview(data))
    made = bytes(writer.finish()[0])
    got = bytearray(DISK_BYTES)
    try:
        reader = SegmentReader(lambda start, length: made[start : start + length], len(made), KEY)
        for number, row in enumerate(reader.index):
            got[int(row["offset"]) : int(row["offset"] + row["length"])] = reader.read_block(number)
        verify_segment(lambda start, length: made[start : start + length], len(made), None)
    except SecondsiteError:
        return False
    return got == disk


def damage_is_found_without_a_key() -> bool:
    writer = SegmentWriter(sample_head(), KEY, randomness=fixed(7))
    writer.add(0, memoryview(random.Random(1).randbytes(65536)))
    made = bytes(writer.finish()[0])
    for position in (300, 60000, len(made) - 400):
        bad = bytearray(made)
        bad[position] ^= 1
        try:
            verify_segment(lambda start, length, bad=bad: bytes(bad[start : start + length]), len(bad), None)  # type: ignore[misc]
        except SecondsiteError:
            continue
        return False
    return True


def digests_know_their_place() -> bool:
    one, two = (memoryview(bytes([n]) * 4096) for n in (1, 2))
    there = digest_sub_blocks(one, 0, 9), digest_sub_blocks(two, 1, 9)
    swapped = digest_sub_blocks(two, 0, 9), digest_sub_blocks(one, 1, 9)
    sums = [tuple(map(sum, zip(*(combine(d) for d in pair), strict=True))) for pair in (there, swapped)]
    return sums[0] != sums[1]


def keys_and_nonces_never_meet_twice() -> bool:
    """Two blocks of the same content look different: each has a nonce of its own."""
    writer = SegmentWriter(sample_head(), KEY, randomness=fixed(7))
    data = random.Random(2).randbytes(8192)
    writer.add(0, memoryview(data))
    writer.add(128 << 10, memoryview(data))
    made = bytes(writer.finish()[0])
    index = SegmentReader(lambda start, length: made[start : start + length], len(made), KEY).index
    first, second = (made[int(r["position"]) : int(r["position"]) + 4096] for r in index)
    return first != second


CHECKS: list[Callable[[], bool]] = [
    content_comes_back,
    damage_is_found_without_a_key,
    digests_know_their_place,
    keys_and_nonces_never_meet_twice,
]


class _SameNonce:
    size = NONCE.size

    def pack(self, domain: int, number: int) -> bytes:
        return NONCE.pack(domain, 0)


class _Blind:
    """A hash that never disagrees."""

    def __call__(self, *parts: object) -> _Blind:
        return self

    def digest(self) -> _Same:
        return _Same()

    def update(self, data: object) -> _Blind:
        return self

    def hexdigest(self) -> str:
        return "0" * 64


class _Same(bytes):
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__


def _first_row_wins(patch: pytest.MonkeyPatch) -> None:
    real = SegmentWriter.add
    seen: set[int] = set()

    def add(self: SegmentWriter, offset: int, data: memoryview, digests: object = None) -> None:
        if offset not in seen:
            seen.add(offset)
            real(self, offset, data[: 4096 * max(1, len(data) // 8192)])

    patch.setattr(SegmentWriter, "add", add)


def _hash_unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("secondsite.journal.segment_read.blake3.blake3", _Blind())


def _digest_without_place(patch: pytest.MonkeyPatch) -> None:
    import sys

    real = digest_sub_blocks
    patch.setattr(sys.modules[__name__], "digest_sub_blocks", lambda data, place, seed: real(data, 0, seed))


def _one_nonce(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(segment, "NONCE", _SameNonce())
    patch.setattr(segment_read, "NONCE", _SameNonce())


def _zeros_dropped(patch: pytest.MonkeyPatch) -> None:
    """Blocks of zeros get no row: what lay beneath shines through."""
    real = SegmentWriter.add

    def add(self: SegmentWriter, offset: int, data: memoryview, digests: object = None) -> None:
        if any(data):
            real(self, offset, data)

    patch.setattr(SegmentWriter, "add", add)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sound_code_passes(check: Callable[[], bool]) -> None:
    assert check()


@pytest.mark.parametrize(
    "plant",
    [_first_row_wins, _hash_unchecked, _digest_without_place, _one_nonce, _zeros_dropped],
    ids=lambda plant: plant.__name__.strip("_"),
)
def test_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert not all(check() for check in CHECKS), "the suite let this bug through"
