"""Writing segments: blocks of at most 64 KiB, zero-detected, checksummed, compressed, sealed.

A segment is built in memory (at most 16 MiB of guest data) and handed over whole; its bytes never change.
Speed comes from doing per-4-KiB work once (the digests, which also find the zeros) and per-64-KiB work in
libraries that release the interpreter lock, so that two threads encode on two cores.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence

import blake3
import numpy as np
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secondsite.base.units import BLOCK_BYTES_MAX, KIB, MIB, SUB_BLOCK_BYTES
from secondsite.journal.digests import Digests, digest_sub_blocks, no_digests
from secondsite.journal.format import (
    BLOCK_AAD,
    BLOCKS_MAX,
    INDEX_AAD,
    INDEX_DTYPE,
    INDEX_HEADER,
    KIND_STORED,
    KIND_ZERO,
    KIND_ZSTD,
    NONCE,
    NONCE_BLOCK,
    NONCE_INDEX,
    SEGMENT_DATA_BYTES_MAX,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    TAG_BYTES,
    checksum,
)
from secondsite.journal.keys import DiskKey
from secondsite.journal.segment_head import SegmentFooter, SegmentHead, encode_footer, encode_head
from secondsite.journal.segment_read import PackedBlock, SegmentReader, SegmentReport, verify_segment
from secondsite.model.points import SegmentRef

__all__ = [
    "SEGMENT_DATA_BYTES_MAX",
    "SegmentHead",
    "SegmentReader",
    "SegmentReport",
    "SegmentWriter",
    "blocks_of",
    "encode_segment",
    "verify_segment",
]

# A sample decides whether a block is worth compressing: 4 KiB of random data cost 3 us to try, 64 KiB 25.
_SAMPLE_BYTES = 4 * KIB
# Most segments of a cycle fit; a first copy's grow once, twice at most.
_FIRST_BUFFER_BYTES = 1 * MIB
# The largest segment with its tags, index and footer; one step more would reserve four times that.
_LAST_BUFFER_BYTES = SEGMENT_DATA_BYTES_MAX + 1 * MIB
# Less than 1/32 won is not worth decompressing for.
_WORTH = 31 / 32

_local = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    made: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    found = made.get(level)
    if found is None:
        # frames carry their content size, which the reader checks before it allocates
        found = made[level] = zstandard.ZstdCompressor(level=level, write_checksum=False)
    return found


def _compressed(
    compressor: zstandard.ZstdCompressor | None, data: memoryview, *, doubtful: bool
) -> bytes | None:
    """`data` compressed, or None when that is not worth it; `doubtful`: try a sample first."""
    if compressor is None:
        return None
    if doubtful and len(data) > 4 * _SAMPLE_BYTES:
        # A quarter and three quarters in: the first bytes of a file are often a header that says little about
        # the rest, and where a block holds the end of one file and another, one place says nothing of both.
        quarter, half = len(data) // 4, _SAMPLE_BYTES // 2
        parts = (data[place : place + half] for place in (quarter, 3 * quarter))
        if len(compressor.compress(b"".join(parts))) > _SAMPLE_BYTES * _WORTH:
            return None
    packed = compressor.compress(data)
    return packed if len(packed) < len(data) * _WORTH else None


class SegmentWriter:
    """Builds one segment. Add blocks in any order (later ones win), then `finish` once."""

    def __init__(
        self,
        head: SegmentHead,
        key: DiskKey,
        level: int | None = 1,
        *,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """level: zstd's; None: blocks are stored as they are (the index is always compressed)."""
        assert key.id == head.key_id
        self.head = head
        self._key = key
        self._seed = key.digest_seed()
        self._compressor = None if level is None else _compressor(level)
        salt = randomness(32)
        self._seal = AESGCM(key.segment_key(salt))
        self._machine = uuid.UUID(head.machine).bytes
        self._segment = bytes.fromhex(head.id)
        self._disk = head.disk.encode()
        # Grown in one step and filled in place: a growing bytearray is copied again and again (198 MB/s
        # against 1,000 for random data), and a sealed block returned by `encrypt` is one copy more.
        self._buffer = np.empty(_FIRST_BUFFER_BYTES, dtype=np.uint8)
        self._view = self._buffer.data
        self._length = 0
        self._append(encode_head(head, salt))
        self._shrinks = False  # the last block did
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._digests: list[Digests] = []
        self.data_bytes = 0  # guest bytes described, zeros included
        self.held_bytes = 0  # guest bytes held, without zeros
        self.index = np.empty(0, dtype=INDEX_DTYPE)  # the blocks in the order they were added, once finished

    @property
    def stored_bytes(self) -> int:
        """Bytes of the object so far, without index and footer."""
        return self._length

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self._rows

    def has_room(self, length: int) -> bool:
        """Whether `length` more bytes may be added (16 MiB of data, 4096 blocks)."""
        blocks = length // BLOCK_BYTES_MAX + 2
        return self.held_bytes + length <= SEGMENT_DATA_BYTES_MAX and len(self._rows) + blocks <= BLOCKS_MAX

    def add(self, offset: int, data: memoryview, digests: Digests | None = None) -> None:
        """Add guest bytes at `offset` (a multiple of 4 KiB; so is the length, except at the disk's end).

        digests: of each 4 KiB, as `digest_sub_blocks` gives them; computed here when absent.
        """
        end = offset + len(data)
        assert offset % SUB_BLOCK_BYTES == 0
        assert end <= self.head.disk_size_bytes
        assert end % SUB_BLOCK_BYTES == 0 or end == self.head.disk_size_bytes
        assert self.has_room(len(data)), "the caller asks has_room() first"
        if digests is None:
            digests = digest_sub_blocks(data, offset // SUB_BLOCK_BYTES, self._seed)
        used = (digests != 0).any(axis=1).tolist()
        first = offset
        while first < end:
            # blocks never cross a multiple of 64 KiB, so that one read of an aligned 64 KiB opens one block
            last = min(end, first // BLOCK_BYTES_MAX * BLOCK_BYTES_MAX + BLOCK_BYTES_MAX)
            rows = slice((first - offset) // SUB_BLOCK_BYTES, -(-(last - offset) // SUB_BLOCK_BYTES))
            if any(used[rows]):
                self._add_block(first, data[first - offset : last - offset], digests[rows])
            else:
                self._rows.append((first, last - first, KIND_ZERO, 0, 0, 0, 0))
            first = last
        self.data_bytes += len(data)

    @property
    def blocks_left(self) -> int:
        """How many blocks more it may have."""
        return BLOCKS_MAX - len(self._rows)

    def add_packed(self, block: PackedBlock, digests: Digests) -> None:
        """Add a block of another segment of the same data key as it is, without packing it again."""
        assert self.has_room(block.length), "the caller asks has_room() first"
        number = len(self._rows)
        position, stored = self._length, len(block.payload) + TAG_BYTES
        aad = BLOCK_AAD.pack(
            self._machine, self._segment, number, block.offset, block.length, block.kind, self._disk
        )
        self._seal.encrypt_into(NONCE.pack(NONCE_BLOCK, number), block.payload, aad, self._room(stored))
        self._rows.append(
            (block.offset, block.length, block.kind, position, stored, len(digests), block.checksum)
        )
        self._digests.append(digests)
        self.data_bytes += block.length
        self.held_bytes += block.length

    def add_zeros(self, offset: int, length: int) -> None:
        """Record that a range reads as zeros; costs nothing but a row for each 64 KiB at most."""
        first, end = offset, offset + length
        while first < end:
            assert len(self._rows) < BLOCKS_MAX, "the caller counts blocks_of() first"
            last = min(end, first // BLOCK_BYTES_MAX * BLOCK_BYTES_MAX + BLOCK_BYTES_MAX)
            self._rows.append((first, last - first, KIND_ZERO, 0, 0, 0, 0))
            first = last
        self.data_bytes += length

    def _add_block(self, offset: int, data: memoryview, digests: Digests) -> None:
        number = len(self._rows)
        # What shrank is mostly followed by more that does: there a sample costs 7 % and says nothing new.
        packed = _compressed(self._compressor, data, doubtful=not self._shrinks)
        self._shrinks = packed is not None
        kind, payload = (KIND_STORED, data) if packed is None else (KIND_ZSTD, packed)
        position, stored = self._length, len(payload) + TAG_BYTES
        aad = BLOCK_AAD.pack(self._machine, self._segment, number, offset, len(data), kind, self._disk)
        self._seal.encrypt_into(NONCE.pack(NONCE_BLOCK, number), payload, aad, self._room(stored))
        self._rows.append((offset, len(data), kind, position, stored, len(digests), checksum(data)))
        self._digests.append(digests)
        self.held_bytes += len(data)

    def _room(self, length: int) -> memoryview:
        """The next `length` bytes of the object, to be written by the caller."""
        end = self._length + length
        if end > len(self._buffer):
            enough = min(4 * len(self._buffer), _LAST_BUFFER_BYTES)
            grown = np.empty(max(end, enough), dtype=np.uint8)
            grown[: self._length] = self._buffer[: self._length]
            self._buffer, self._view = grown, grown.data
        room = self._view[self._length : end]
        self._length = end
        return room

    def _append(self, data: bytes) -> None:
        self._room(len(data))[:] = data

    def finish(self) -> tuple[memoryview, SegmentRef]:
        """The object's bytes and how a manifest names it."""
        rows = self.index = np.array(self._rows, dtype=INDEX_DTYPE)
        digests = np.concatenate(self._digests) if self._digests else no_digests(0)
        plain = INDEX_HEADER.pack(len(rows), len(digests)) + rows.tobytes() + digests.astype("<u8").tobytes()
        # the digests are as good as random, the rows are not: level 1 takes what is there to take
        packed = _compressor(1).compress(plain)
        head = bytes(self._view[: SEGMENT_HEADER.size])
        aad = INDEX_AAD.pack(head, len(rows), len(plain), self.data_bytes)
        sealed = self._seal.encrypt(NONCE.pack(NONCE_INDEX, 0), packed, aad)
        hasher = blake3.blake3(self._view[: self._length])
        footer = SegmentFooter(
            blocks=len(rows),
            index_position=self._length,
            index_stored_bytes=len(sealed),
            index_plain_bytes=len(plain),
            data_bytes=self.data_bytes,
            payload_hash=hasher.digest(),
            index_hash=blake3.blake3(sealed).digest(),
        )
        tail = sealed + encode_footer(footer)
        self._append(tail)
        ref = SegmentRef(
            disk=self.head.disk,
            id=self.head.id,
            epoch=self.head.epoch,
            stored_bytes=self._length,
            data_bytes=self.data_bytes,
            hash=hasher.update(tail).hexdigest(),
            key_id=self._key.id if self._key.first_id is not None else None,
        )
        if self._length < len(self._buffer) // 2:
            # it may wait for the link: what it holds is then what was counted for it, not what was reserved
            kept = np.empty(self._length, dtype=np.uint8)
            kept[:] = self._buffer[: self._length]
            return kept.data, ref
        return self._view[: self._length], ref


def blocks_of(offset: int, length: int) -> int:
    """How many blocks a range is cut into: none crosses a multiple of 64 KiB."""
    return (offset + length - 1) // BLOCK_BYTES_MAX - offset // BLOCK_BYTES_MAX + 1 if length else 0


def encode_segment(
    head: SegmentHead,
    key: DiskKey,
    items: Sequence[tuple[int, memoryview, Digests | None]],
    level: int | None = 1,
    *,
    randomness: Callable[[int], bytes] = os.urandom,
) -> tuple[memoryview, SegmentRef]:
    """One segment from ``(offset, data, digests)`` items; for worker threads."""
    writer = SegmentWriter(head, key, level, randomness=randomness)
    for offset, data, digests in items:
        writer.add(offset, data, digests)
    return writer.finish()


assert SEGMENT_HEADER.size == 192
assert SEGMENT_FOOTER.size == 128
