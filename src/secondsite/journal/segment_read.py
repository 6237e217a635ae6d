"""Reading segments: the index, single blocks, and verification with and without the key."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import blake3
import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from secondsite.base.units import BLOCK_BYTES_MAX, MIB, SUB_BLOCK_BYTES
from secondsite.journal.digests import Digests
from secondsite.journal.errors import ObjectDamaged, WrongKey, damaged
from secondsite.journal.format import (
    BLOCK_AAD,
    DIGEST_BYTES,
    INDEX_AAD,
    INDEX_DTYPE,
    INDEX_HEADER,
    KIND_STORED,
    KIND_ZERO,
    KIND_ZSTD,
    NONCE,
    NONCE_BLOCK,
    NONCE_INDEX,
    SEGMENT_BYTES_MAX,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    TAG_BYTES,
    checksum,
)
from secondsite.journal.keys import DiskKey
from secondsite.journal.segment_head import SegmentFooter, SegmentHead, decode_footer, decode_head

Read = Callable[[int, int], bytes]
BlockIndex = NDArray[np.void]

_local = threading.local()


def _decompress(data: bytes, length: int, what: str) -> bytes:
    """Exactly `length` bytes; never allocates more, whatever the frame says."""
    decompressor = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=MIB)
    try:
        if zstandard.frame_content_size(data) != length:
            raise damaged(what, "a compressed part has another length than its index says")
        plain: bytes = decompressor.decompress(data, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damaged(what, f"a compressed part does not open: {error}") from None
    if len(plain) != length:
        raise damaged(what, "a compressed part is shorter than its index says")
    return plain


@dataclass(frozen=True)
class PackedBlock:
    """A block as its segment keeps it, beneath the seal."""

    offset: int
    length: int
    kind: int  # KIND_STORED or KIND_ZSTD
    payload: bytes
    checksum: int  # of the guest bytes


class SegmentReader:
    """One segment, read as needed. Thread-safe after `index` was read once.

    read: ``read(start, length)`` gives exactly those bytes of the object. key: None for what needs none.
    Every method raises ObjectDamaged or FormatUnknown for what is wrong, WrongKey for another key's segment.
    """

    def __init__(self, read: Read, size: int, key: DiskKey | None) -> None:
        what = "a segment"
        if not SEGMENT_HEADER.size + SEGMENT_FOOTER.size <= size <= SEGMENT_BYTES_MAX:
            raise damaged(what, f"it has {size} bytes")
        self._read = read
        self.size = size
        self.head: SegmentHead
        self._head_bytes = read(0, SEGMENT_HEADER.size)
        self.head, salt = decode_head(self._head_bytes, what)
        self._what = f"segment {self.head.id}"
        self._seal: AESGCM | None = None
        if key is not None:
            if key.id != self.head.key_id:
                raise WrongKey(what=self._what, needed=self.head.key_id, given=key.id)
            self._seal = AESGCM(key.segment_key(salt))
        self._footer: SegmentFooter | None = None
        self._tables: tuple[BlockIndex, Digests] | None = None
        self._digest_ends: NDArray[np.int64] | None = None

    @property
    def footer(self) -> SegmentFooter:
        """Sizes and hashes; needs no key."""
        if self._footer is None:
            tail = self._read(self.size - SEGMENT_FOOTER.size, SEGMENT_FOOTER.size)
            self._footer = decode_footer(tail, self.size, self._what)
        return self._footer

    @property
    def index(self) -> BlockIndex:
        """A row a block, see `format.INDEX_DTYPE`."""
        return self._opened()[0]

    def digests(self) -> Digests:
        """Rows of all blocks that are not zeros, in the order of the index; shape (n, 2)."""
        return self._opened()[1]

    def read_block(self, number: int) -> bytes:
        """The guest bytes of one block."""
        row = self.index[number]
        if int(row["kind"]) == KIND_ZERO:
            return bytes(int(row["length"]))
        block = self.read_packed(number)
        data = block.payload
        if block.kind == KIND_ZSTD:
            data = _decompress(block.payload, block.length, self._what)
        if len(data) != block.length or checksum(data) != block.checksum:
            raise damaged(self._what, f"the content of block {number} does not fit its checksum")
        return data

    def read_packed(self, number: int) -> PackedBlock:
        """One block that is not zeros, its seal opened and checked, still compressed where it was."""
        row = self.index[number]
        offset, length, kind = int(row["offset"]), int(row["length"]), int(row["kind"])
        assert kind != KIND_ZERO, "zeros have no payload"
        aad = BLOCK_AAD.pack(*self._bound(), number, offset, length, kind, self.head.disk.encode())
        sealed = self._read(int(row["position"]), int(row["stored_length"]))
        payload = self._open(NONCE_BLOCK, number, sealed, aad)
        return PackedBlock(offset, length, kind, payload, int(row["checksum"]))

    def block_digests(self, number: int) -> Digests:
        """The rows of one block; shape (n, 2), none for zeros."""
        if self._digest_ends is None:
            self._digest_ends = np.cumsum(self.index["digests"], dtype=np.int64)
        end = int(self._digest_ends[number])
        return self.digests()[end - int(self.index["digests"][number]) : end]

    def _bound(self) -> tuple[bytes, bytes]:
        return uuid.UUID(self.head.machine).bytes, bytes.fromhex(self.head.id)

    def _open(self, domain: int, number: int, sealed: bytes, aad: bytes) -> bytes:
        assert self._seal is not None, "this needs the disk's key"
        try:
            return self._seal.decrypt(NONCE.pack(domain, number), sealed, aad)
        except InvalidTag:
            part = "its index" if domain == NONCE_INDEX else f"block {number}"
            raise damaged(self._what, f"the seal of {part} does not fit") from None

    def _opened(self) -> tuple[BlockIndex, Digests]:
        if self._tables is None:
            footer = self.footer
            sealed = self._read(footer.index_position, footer.index_stored_bytes)
            if blake3.blake3(sealed).digest() != footer.index_hash:
                raise damaged(self._what, "the hash of its index does not fit")
            aad = INDEX_AAD.pack(self._head_bytes, footer.blocks, footer.index_plain_bytes, footer.data_bytes)
            packed = self._open(NONCE_INDEX, 0, sealed, aad)
            plain = _decompress(packed, footer.index_plain_bytes, self._what)
            self._tables = _split_index(plain, footer, self.head, self._what)
        return self._tables


def _split_index(
    plain: bytes, footer: SegmentFooter, head: SegmentHead, what: str
) -> tuple[BlockIndex, Digests]:
    """Parse and check the opened index: every relation that a reader relies on."""
    if len(plain) < INDEX_HEADER.size:
        raise damaged(what, "its index is too short")
    blocks, digests = INDEX_HEADER.unpack_from(plain)
    rows_end = INDEX_HEADER.size + blocks * INDEX_DTYPE.itemsize
    if blocks != footer.blocks or len(plain) != rows_end + digests * DIGEST_BYTES:
        raise damaged(what, "the counts in its index do not fit its length")
    rows = np.frombuffer(plain, dtype=INDEX_DTYPE, count=blocks, offset=INDEX_HEADER.size)
    table = np.frombuffer(plain, dtype="<u8", offset=rows_end).reshape(-1, 2)
    length, kind = rows["length"].astype(np.int64), rows["kind"]
    used = kind != KIND_ZERO
    stored = rows["stored_length"].astype(np.int64)
    position_end = rows["position"] + rows["stored_length"]
    sound = (
        (length > 0).all()
        and (length <= BLOCK_BYTES_MAX).all()
        and np.isin(kind, (KIND_ZERO, KIND_STORED, KIND_ZSTD)).all()
        and (rows["offset"] <= head.disk_size_bytes).all()
        and (rows["offset"] + rows["length"] <= head.disk_size_bytes).all()
        and (rows["offset"] % SUB_BLOCK_BYTES == 0).all()
        and (rows["offset"] % BLOCK_BYTES_MAX + rows["length"] <= BLOCK_BYTES_MAX).all()
        and (rows["position"][used] >= SEGMENT_HEADER.size).all()
        and (rows["position"][used] <= footer.index_position).all()
        and (position_end[used] <= footer.index_position).all()
        and (stored[used] > TAG_BYTES).all()
        and (stored[used] <= length[used] + TAG_BYTES).all()
        and (rows["digests"][used] == -(-length[used] // SUB_BLOCK_BYTES)).all()
        and (rows["digests"][~used] == 0).all()
        and int(rows["digests"].sum()) == digests
    )
    if not sound:
        raise damaged(what, "a row of its index is out of bounds")
    return rows, table.astype(np.uint64)


@dataclass(frozen=True)
class SegmentReport:
    """What a verification found; everything in it was checked."""

    head: SegmentHead
    blocks: int
    data_bytes: int
    stored_bytes: int
    hash: str  # blake3 of the whole object, as manifests name it
    opened: bool  # every block was opened with the key


def verify_segment(read: Read, size: int, key: DiskKey | None) -> SegmentReport:
    """Check everything: without the key header, footer and hashes; with it every block's seal and checksum.

    Raises:
        ObjectDamaged, FormatUnknown, WrongKey.
    """
    reader = SegmentReader(read, size, key)
    footer = reader.footer
    what = f"segment {reader.head.id}"
    hasher = blake3.blake3()
    for start in range(0, footer.index_position, MIB):
        hasher.update(read(start, min(MIB, footer.index_position - start)))
    if hasher.digest() != footer.payload_hash:
        raise damaged(what, "the hash of its blocks does not fit")
    sealed = read(footer.index_position, footer.index_stored_bytes)
    if blake3.blake3(sealed).digest() != footer.index_hash:
        raise damaged(what, "the hash of its index does not fit")
    if key is not None:
        for number in range(footer.blocks):
            reader.read_block(number)
        if int(reader.index["length"].sum(dtype=np.int64)) != footer.data_bytes:
            raise damaged(what, "its blocks do not add up to what its footer says")
    whole = hasher.update(sealed).update(read(size - SEGMENT_FOOTER.size, SEGMENT_FOOTER.size)).hexdigest()
    return SegmentReport(reader.head, footer.blocks, footer.data_bytes, size, whole, key is not None)


__all__ = ["ObjectDamaged", "SegmentReader", "SegmentReport", "verify_segment"]
