"""What only somebody with the key could write is still checked: every rule of index, block and footer.

Each case alters one thing and makes everything around it right again (compression, seals, hashes, sums), so
that the rule itself is what refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import blake3
import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secondsite.journal import format as fmt
from secondsite.journal.errors import ObjectDamaged
from secondsite.journal.segment import SegmentReader, verify_segment
from secondsite.journal.segment_head import SegmentFooter, decode_footer, decode_head, encode_footer
from support.format_samples import KEY, sample_segment

Rows = np.ndarray[tuple[int, ...], np.dtype[np.void]]
COMPRESS = zstandard.ZstdCompressor(level=1).compress
HEAD_BYTES, FOOT_BYTES = fmt.SEGMENT_HEADER.size, fmt.SEGMENT_FOOTER.size


def reader_of(data: bytes) -> SegmentReader:
    return SegmentReader(lambda start, length: data[start : start + length], len(data), KEY)


def verify(data: bytes) -> None:
    verify_segment(lambda start, length: data[start : start + length], len(data), KEY)


def rebuilt(
    change_plain: Callable[[bytes], bytes] = lambda plain: plain,
    *,
    pack: Callable[[bytes], bytes] = COMPRESS,
    payload: Callable[[bytearray], None] = lambda payload: None,
    footer: dict[str, object] | None = None,
) -> bytes:
    """The sample with an altered index, blocks or footer, sealed again with the right key."""
    data, _ = sample_segment()
    old = decode_footer(data[-FOOT_BYTES:], len(data), "the sample")
    _, salt = decode_head(data, "the sample")
    seal = AESGCM(KEY.segment_key(salt))
    nonce = fmt.NONCE.pack(fmt.NONCE_INDEX, 0)

    def aad(described: SegmentFooter) -> bytes:
        return fmt.INDEX_AAD.pack(
            data[:HEAD_BYTES], described.blocks, described.index_plain_bytes, described.data_bytes
        )

    sealed = data[old.index_position : old.index_position + old.index_stored_bytes]
    plain = change_plain(zstandard.ZstdDecompressor().decompress(seal.decrypt(nonce, sealed, aad(old))))
    body = bytearray(data[: old.index_position])
    payload(body)
    rows = fmt.INDEX_HEADER.unpack_from(plain)[0] if len(plain) >= fmt.INDEX_HEADER.size else old.blocks
    new = replace(old, blocks=min(rows, fmt.BLOCKS_MAX), index_plain_bytes=len(plain))
    new = replace(new, **(footer or {}))  # type: ignore[arg-type]
    sealed = seal.encrypt(nonce, pack(plain), aad(new))
    new = replace(
        new,
        index_stored_bytes=len(sealed),
        payload_hash=blake3.blake3(body).digest(),
        index_hash=blake3.blake3(sealed).digest(),
    )
    return bytes(body) + sealed + encode_footer(new)


def with_row(number: int, **values: int) -> Callable[[bytes], bytes]:
    """Change fields of one row."""

    def change(plain: bytes) -> bytes:
        count, digests = fmt.INDEX_HEADER.unpack_from(plain)
        end = fmt.INDEX_HEADER.size + count * fmt.INDEX_DTYPE.itemsize
        rows = np.frombuffer(plain[fmt.INDEX_HEADER.size : end], dtype=fmt.INDEX_DTYPE).copy()
        for name, value in values.items():
            rows[name][number] = value
        return fmt.INDEX_HEADER.pack(count, digests) + rows.tobytes() + plain[end:]

    return change


def first_row(kind: int) -> int:
    data, _ = sample_segment()
    return int(np.flatnonzero(reader_of(data).index["kind"] == kind)[0])


STORED, ZSTD, ZERO = (first_row(kind) for kind in (fmt.KIND_STORED, fmt.KIND_ZSTD, fmt.KIND_ZERO))


def test_the_sample_rebuilt_unchanged_is_sound() -> None:
    verify(rebuilt())
    assert rebuilt() == sample_segment()[0]


@pytest.mark.parametrize(
    "change",
    [
        with_row(STORED, length=0),
        with_row(STORED, length=fmt.BLOCKS_MAX * 4096),
        with_row(STORED, kind=3),
        with_row(STORED, offset=1 << 62),
        with_row(STORED, offset=(1 << 64) - 4096),
        with_row(STORED, offset=1),
        with_row(ZSTD, offset=(64 << 10) + 4096),
        with_row(STORED, position=0),
        with_row(STORED, position=1 << 50),
        with_row(STORED, position=(1 << 64) - 1),
        with_row(STORED, stored_length=fmt.TAG_BYTES),
        with_row(STORED, stored_length=(1 << 32) - 1),
        with_row(STORED, digests=0),
        with_row(ZERO, digests=1),
    ],
    ids=[
        "no length",
        "length over 64 KiB",
        "unknown kind",
        "beyond the disk",
        "offset that wraps",
        "offset within a sub-block",
        "across 64 KiB",
        "inside the header",
        "beyond the index",
        "position that wraps",
        "nothing stored",
        "stored without end",
        "digests missing",
        "digests of zeros",
    ],
)
def test_a_row_out_of_bounds(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ObjectDamaged, match="a row of its index is out of bounds"):
        _ = reader_of(rebuilt(change)).index


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda plain: plain[:4], "its index is too short"),
        (lambda plain: plain + b"\0" * 16, "the counts in its index"),
        (lambda plain: plain[:4] + (1).to_bytes(4, "little") + plain[8:], "the counts in its index"),
    ],
    ids=["no header", "too long", "another count of digests"],
)
def test_counts_of_the_index(change: Callable[[bytes], bytes], why: str) -> None:
    with pytest.raises(ObjectDamaged, match=why):
        _ = reader_of(rebuilt(change)).index


def test_the_frame_says_its_size_before_anything_is_allocated() -> None:
    lying = zstandard.ZstdCompressor(level=1, write_content_size=False)
    with pytest.raises(ObjectDamaged, match="another length"):
        _ = reader_of(rebuilt(pack=lying.compress)).index
    with pytest.raises(ObjectDamaged, match="another length"):
        _ = reader_of(rebuilt(pack=lambda plain: zstandard.ZstdCompressor().compress(plain + b"x"))).index


def test_an_index_that_is_no_frame() -> None:
    with pytest.raises(ObjectDamaged, match="compressed part"):
        _ = reader_of(rebuilt(pack=lambda plain: plain)).index


def test_the_checksum_of_a_block_is_checked() -> None:
    for number in (STORED, ZSTD):
        with pytest.raises(ObjectDamaged, match="does not fit its checksum"):
            reader_of(rebuilt(with_row(number, checksum=1))).read_block(number)


def test_what_the_footer_describes_is_checked() -> None:
    with pytest.raises(ObjectDamaged, match="do not add up"):
        verify(rebuilt(footer={"data_bytes": 4096}))


def test_a_block_opens_nowhere_else() -> None:
    """The row says another place than the one the block was sealed for: its own seal refuses."""
    with pytest.raises(ObjectDamaged, match=f"the seal of block {STORED}"):
        reader_of(rebuilt(with_row(STORED, offset=32 << 10))).read_block(STORED)


def test_a_block_whose_bytes_changed_place_is_refused() -> None:
    data, _ = sample_segment()
    index = reader_of(data).index
    row = index[STORED]
    position, stored = int(row["position"]), int(row["stored_length"])

    def swap_halves(body: bytearray) -> None:
        half = stored // 2
        part = body[position : position + stored]
        body[position : position + stored] = part[half:] + part[:half]

    with pytest.raises(ObjectDamaged, match="the seal of block"):
        reader_of(rebuilt(payload=swap_halves)).read_block(STORED)


def test_the_index_hash_is_looked_at_before_the_seal() -> None:
    data = bytearray(sample_segment()[0])
    foot = decode_footer(bytes(data[-FOOT_BYTES:]), len(data), "the sample")
    data[-FOOT_BYTES:] = encode_footer(replace(foot, index_hash=bytes(32)))
    with pytest.raises(ObjectDamaged, match="the hash of its index"):
        _ = reader_of(bytes(data)).index


@pytest.mark.parametrize(
    ("position", "value", "why"),
    [(10, b"\x10\x00", "its footer says it has 16 bytes"), (110, b"\x01", "where version 1 has zeros")],
)
def test_the_footers_own_fields(position: int, value: bytes, why: str) -> None:
    foot = bytearray(sample_segment()[0][-FOOT_BYTES:-8])
    foot[position : position + len(value)] = value
    data = bytes(foot) + fmt.checksum(foot).to_bytes(8, "little")
    with pytest.raises(ObjectDamaged, match=why):
        decode_footer(data, len(sample_segment()[0]), "a segment")


def test_the_headers_checksum_and_zeros_are_checked() -> None:
    head = bytearray(sample_segment()[0][:HEAD_BYTES])
    head[30] ^= 1
    with pytest.raises(ObjectDamaged, match="the checksum of its header"):
        decode_head(bytes(head), "a segment")
    head = bytearray(sample_segment()[0][: HEAD_BYTES - 8])
    head[20] = 1
    with pytest.raises(ObjectDamaged, match="where version 1 has zeros"):
        decode_head(bytes(head) + fmt.checksum(head).to_bytes(8, "little"), "a segment")


@pytest.mark.parametrize("change", [{"epoch": 99}, {"disk_size_bytes": 1 << 50}], ids=["epoch", "disk size"])
def test_a_header_somebody_else_wrote_fits_no_index(change: dict[str, int]) -> None:
    """Whoever has no key can make checksums and hashes right, but not the index's seal."""
    data, _ = sample_segment()
    position = {"epoch": 104, "disk_size_bytes": 112}
    head = bytearray(data[: HEAD_BYTES - 8])
    for name, value in change.items():
        head[position[name] : position[name] + 8] = value.to_bytes(8, "little")
    body = bytes(head) + fmt.checksum(head).to_bytes(8, "little")
    foot = decode_footer(data[-FOOT_BYTES:], len(data), "the sample")
    body += data[HEAD_BYTES : foot.index_position]
    foot = replace(foot, payload_hash=blake3.blake3(body).digest())
    forged = body + data[foot.index_position : -FOOT_BYTES] + encode_footer(foot)
    verify_segment(lambda start, length: forged[start : start + length], len(forged), None)
    with pytest.raises(ObjectDamaged, match="the seal of its index"):
        verify(forged)
