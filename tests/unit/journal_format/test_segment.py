"""Segments: what goes in comes out; what was touched, moved or foreign is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import blake3
import numpy as np
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.journal import format as fmt
from secondsite.journal.digests import (
    combine,
    digest_sub_blocks,
    fingerprint_lanes,
    fingerprint_text,
    no_digests,
    update_lanes,
)
from secondsite.journal.errors import FormatUnknown, ObjectDamaged, WrongKey
from secondsite.journal.keys import DiskKey
from secondsite.journal.segment import SegmentReader, SegmentWriter, encode_segment, verify_segment
from secondsite.journal.segment_head import SegmentFooter, decode_footer, decode_head, encode_footer
from secondsite.model.ids import DiskId, SegmentId
from support.format_samples import DISK_BYTES, KEY, fixed, guest_blocks, sample_head, sample_segment


def reader_of(data: bytes, key: DiskKey | None = KEY) -> SegmentReader:
    return SegmentReader(lambda start, length: data[start : start + length], len(data), key)


def verify(data: bytes, key: DiskKey | None = KEY) -> None:
    verify_segment(lambda start, length: data[start : start + length], len(data), key)


def rewrite_head(data: bytes, position: int, value: bytes) -> bytes:
    """Change a header field and mend the header's checksum: what is tested is the rule, not the checksum."""
    head = bytearray(data[: fmt.SEGMENT_HEADER.size - 8])
    head[position : position + len(value)] = value
    return bytes(head) + fmt.checksum(head).to_bytes(8, "little") + data[fmt.SEGMENT_HEADER.size :]


def test_the_reference_names_the_bytes() -> None:
    data, ref = sample_segment()
    assert ref.hash == blake3.blake3(data).hexdigest()
    assert ref.stored_bytes == len(data)
    assert ref.data_bytes == sum(len(content) for _, content in guest_blocks()) + (64 << 10)


@pytest.mark.parametrize("text_first", [True, False])
def test_a_block_that_is_hard_in_one_half_is_compressed_all_the_same(text_first: bool) -> None:
    """The end of one file and the beginning of another; what stands in the middle says nothing of both."""
    text, hard = (b"a line of a log file\n" * 2000)[: 32 << 10], random.Random(1).randbytes(32 << 10)
    block = text + hard if text_first else hard + text
    items = [(0, random.Random(2).randbytes(64 << 10)), (64 << 10, block)]
    data, _ = encode_segment(sample_head(), KEY, [(at, memoryview(content), None) for at, content in items])
    assert len(data) < (64 << 10) + (36 << 10)


def test_zero_blocks_hold_no_bytes_and_blocks_never_cross_64_kib() -> None:
    data, _ = sample_segment()
    index = reader_of(data).index
    zeros = index[index["kind"] == fmt.KIND_ZERO]
    assert zeros["stored_length"].sum() == 0
    assert zeros["length"].sum() == (128 << 10) + (64 << 10)
    assert (index["offset"] // 65536 == (index["offset"] + index["length"] - 1) // 65536).all()
    kinds = set(index["kind"].tolist())
    assert kinds == {fmt.KIND_ZERO, fmt.KIND_STORED, fmt.KIND_ZSTD}


def test_random_content_in_random_pieces() -> None:
    chance = random.Random(3)
    for _ in range(20):
        size = chance.choice([4096 * 40, 4096 * 40 + 512])
        disk = bytearray(size)
        writer = SegmentWriter(sample_head(disk_size_bytes=size), KEY)
        for _ in range(chance.randint(1, 12)):
            offset = chance.randrange(0, 40) * 4096
            length = min(size - offset, chance.randint(1, 20) * 4096)
            content = chance.choice([chance.randbytes(length), bytes(length), b"ab" * (length // 2)])
            disk[offset : offset + length] = content
            writer.add(offset, memoryview(content))
        data, _ = writer.finish()
        reader = reader_of(bytes(data))
        got = bytearray(size)
        for number, row in enumerate(reader.index):
            got[int(row["offset"]) : int(row["offset"] + row["length"])] = reader.read_block(number)
        assert got == disk


def test_digests_in_the_segment_are_those_of_its_content() -> None:
    data, _ = sample_segment()
    reader = reader_of(data)
    digests, at = reader.digests(), 0
    for number, row in enumerate(reader.index):
        count = int(row["digests"])
        expected = digest_sub_blocks(
            memoryview(reader.read_block(number)), int(row["offset"]) // 4096, KEY.digest_seed()
        )
        if count:
            assert np.array_equal(digests[at : at + count], expected)
        at += count
    assert at == len(digests)


@pytest.mark.parametrize("key", [KEY, None], ids=["with the key", "without the key"])
def test_any_changed_byte_is_found(key: DiskKey | None) -> None:
    data, _ = sample_segment()
    chance = random.Random(11)
    for position in [*range(fmt.SEGMENT_HEADER.size), *chance.sample(range(len(data)), 200), len(data) - 1]:
        bad = bytearray(data)
        bad[position] ^= 1 << chance.randrange(8)
        with pytest.raises(SecondsiteError):
            verify(bytes(bad), key)


@pytest.mark.parametrize("cut", [0, 1, 191, 192, 300, 319, 320, -1, -128])
def test_a_truncated_segment_is_refused(cut: int) -> None:
    data, _ = sample_segment()
    with pytest.raises(ObjectDamaged):
        verify(data[:cut])


def test_the_wrong_key_is_named() -> None:
    data, _ = sample_segment()
    other = DiskKey.create()
    with pytest.raises(WrongKey) as caught:
        reader_of(data, other)
    assert KEY.id in str(caught.value)
    assert other.id in str(caught.value)


def test_the_same_id_with_another_secret_opens_nothing() -> None:
    data, _ = sample_segment()
    with pytest.raises(ObjectDamaged, match="the seal of its index does not fit"):
        _ = reader_of(data, DiskKey(KEY.id, os.urandom(32))).index


def _moved(name: str, value: object) -> Callable[[], bytes]:
    """The sample's blocks under a header that says they are another's."""

    def make() -> bytes:
        other, _ = sample_segment(sample_head(**{name: value}))
        mine, _ = sample_segment()
        return other[: fmt.SEGMENT_HEADER.size] + mine[fmt.SEGMENT_HEADER.size :]

    return make


@pytest.mark.parametrize(
    "make",
    [
        _moved("machine", "00000000-0000-4000-8000-000000000001"),
        _moved("disk", DiskId("vdb")),
        _moved("id", SegmentId("00" * 16)),
    ],
    ids=["another machine", "another disk", "another segment"],
)
def test_blocks_do_not_open_elsewhere(make: Callable[[], bytes]) -> None:
    with pytest.raises(ObjectDamaged, match="the seal"):
        _ = reader_of(make()).index


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"2SITEXXX", "it begins with"),
        (8, b"\x02\x00", "its version is 2"),
        (10, b"\x00\x00", "its header says it has 0 bytes"),
        (12, b"\x01\x00\x00\x00", "it needs features 0x1"),
        (104, bytes(8), "its epoch is 0"),
        (112, b"\xff" * 8, "its disk has"),
        (120, b"\x00", "the length of its disk's name"),
        (120, b"\x02", "the length of its disk's name"),
    ],
)
def test_every_rule_of_the_header(position: int, value: bytes, message: str) -> None:
    data = rewrite_head(sample_segment()[0], position, value)
    with pytest.raises((ObjectDamaged, FormatUnknown), match=message):
        decode_head(data, "a segment")


def test_an_unknown_optional_flag_is_ignored() -> None:
    data = rewrite_head(sample_segment()[0], 16, b"\x80\x00\x00\x00")
    assert decode_head(data, "a segment")[0] == sample_head()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index_position": 100}, "does not lie between"),
        ({"index_position": 1 << 40}, "does not lie between"),
        ({"index_plain_bytes": fmt.INDEX_PLAIN_BYTES_MAX + 1}, "its index has"),
        ({"blocks": fmt.BLOCKS_MAX + 1}, "it has 4097 blocks"),
    ],
)
def test_every_rule_of_the_footer(changes: dict[str, int], message: str) -> None:
    data, _ = sample_segment()
    good = reader_of(data).footer
    footer = SegmentFooter(**{**good.__dict__, **changes})
    with pytest.raises(ObjectDamaged, match=message):
        decode_footer(encode_footer(footer), len(data), "a segment")


def test_has_room_keeps_the_limits() -> None:
    writer = SegmentWriter(sample_head(disk_size_bytes=1 << 40), KEY)
    block = memoryview(os.urandom(1 << 20))
    count = 0
    while writer.has_room(len(block)):
        writer.add(count << 20, block)
        count += 1
    assert count == 16
    data, _ = writer.finish()
    assert len(data) <= fmt.SEGMENT_BYTES_MAX


def test_encode_segment_is_the_writer() -> None:
    items = [(offset, memoryview(content), None) for offset, content in guest_blocks()]
    data, ref = encode_segment(sample_head(), KEY, items, randomness=fixed(1))
    assert verify_segment(lambda s, n: bytes(data[s : s + n]), len(data), KEY).hash == ref.hash


def test_a_digest_is_bound_to_key_and_place_and_zero_means_zero() -> None:
    block = memoryview(b"x" * 4096)
    one, other = (digest_sub_blocks(block, place, 5) for place in (1, 2))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, digest_sub_blocks(block, 1, 6))
    assert np.array_equal(digest_sub_blocks(memoryview(bytes(8192 + 100)), 9, 5), no_digests(3))
    assert digest_sub_blocks(memoryview(bytes(4096) + b"\0\1"), 0, 5)[1].any()


def test_the_fingerprint_follows_changes() -> None:
    chance = random.Random(1)
    disk = bytearray(chance.randbytes(64 * 4096))
    whole = digest_sub_blocks(memoryview(disk), 0, 9)
    lanes = combine(whole)
    for _ in range(30):
        place, count = chance.randrange(0, 60), chance.randint(1, 4)
        content = chance.choice([chance.randbytes(count * 4096), bytes(count * 4096)])
        before = digest_sub_blocks(memoryview(disk)[place * 4096 : (place + count) * 4096], place, 9)
        disk[place * 4096 : (place + count) * 4096] = content
        lanes = update_lanes(lanes, before, digest_sub_blocks(memoryview(content), place, 9))
    assert lanes == combine(digest_sub_blocks(memoryview(disk), 0, 9))
    assert fingerprint_lanes(fingerprint_text(lanes)) == lanes
    assert DISK_BYTES % 4096 == 0
