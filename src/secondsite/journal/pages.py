"""Pages: merged indexes of many neighbouring points, kept so that a long journal opens at once.

A page covers the records of an aligned stretch of numbers: 64 of them, or 4,096. It says, for one disk, which
block of which segment each changed byte is read from after the last of them, as if nothing were before. It is
a cache: made from the segments' own indexes, used only while exactly its points are listed as they were
committed, and deleted when retention touches them. It tells what lies where, so it is sealed with the disk's
key as the segments' indexes are.

Object, little-endian:
 0   8  magic "2SITEPAG"              16   8  number of its first record
 8   2  version                       24   8  number of its last record
10   2  zero                          32  32  salt of its key
12   4  required flags                64  16  data key id
80   …  sealed (AES-256-GCM; the header, machine and disk as associated data): zstd of
        hash of its last point's record (32), points (u32), segments (u32), pieces (u32), zero (u32),
        size of the disk at the first and at the last point (two u64), then
        for each segment (id 16 bytes, epoch u64, stored length u64), and for the pieces, ascending, one
        column after the other: starts u64, ends u64, offsets of blocks u64, segment i32 (-1: zeros of
        none), number of the block in it u32, zeros u8
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from secondsite.base.units import MIB
from secondsite.journal.box import derive
from secondsite.journal.errors import damaged
from secondsite.journal.format import TAG_BYTES, VERSION, check_version
from secondsite.journal.keys import DiskKey
from secondsite.model.extents import Int64s
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.points import SegmentRef

MAGIC = b"2SITEPAG"
HEADER = struct.Struct("<8sHHIQQ32s16s")
_COUNTS = struct.Struct("<32sIIIIQQ")
_SEGMENT = np.dtype([("id", "u1", 16), ("epoch", "<u8"), ("stored", "<u8")])
# Records a page of each level covers.
LEVELS = (64, 4096)
# A stretch that changed more than 16 GiB in 4 KiB pieces is not worth one object: it is opened as it is.
PIECES_MAX = 4 * MIB
_PIECE_BYTES = 8 + 8 + 8 + 4 + 4 + 1
_PLAIN_BYTES_MAX = _COUNTS.size + PIECES_MAX * _PIECE_BYTES + LEVELS[-1] * 64 * _SEGMENT.itemsize
PAGE_BYTES_MAX = HEADER.size + TAG_BYTES + _PLAIN_BYTES_MAX + 1 * MIB
_NONCE = bytes(12)  # one message a key


@dataclass(frozen=True, eq=False)
class Page:
    """The merged index of a disk over a stretch of records."""

    first: int  # numbers of records
    last: int
    hash: str  # of the record of its last point
    points: int  # that have the disk
    key_id: KeyId
    first_size_bytes: int
    last_size_bytes: int
    segments: tuple[SegmentRef, ...]
    starts: Int64s
    ends: Int64s
    offsets: Int64s  # where each piece's block starts
    owners: NDArray[np.int32]  # into `segments`, -1: zeros no segment holds
    positions: NDArray[np.int32]
    zeros: NDArray[np.bool_]


def encode_page(page: Page, machine: MachineId, disk: DiskId, key: DiskKey) -> bytes:
    """The object's bytes."""
    salt = os.urandom(32)
    head = HEADER.pack(MAGIC, VERSION, 0, 0, page.first, page.last, salt, bytes.fromhex(key.id))
    counts = _COUNTS.pack(
        bytes.fromhex(page.hash),
        page.points,
        len(page.segments),
        len(page.starts),
        0,
        page.first_size_bytes,
        page.last_size_bytes,
    )
    rows = np.zeros(len(page.segments), dtype=_SEGMENT)
    for row, ref in zip(rows, page.segments, strict=True):
        row["id"] = np.frombuffer(bytes.fromhex(ref.id), dtype="u1")
        row["epoch"], row["stored"] = ref.epoch, ref.stored_bytes
    columns = [
        page.starts.astype("<u8"),
        page.ends.astype("<u8"),
        page.offsets.astype("<u8"),
        page.owners.astype("<i4"),
        page.positions.astype("<u4"),
        page.zeros.astype("u1"),
    ]
    plain = b"".join([counts, rows.tobytes(), *(column.tobytes() for column in columns)])
    packed = zstandard.ZstdCompressor(level=1).compress(plain)
    return head + _seal(key, salt).encrypt(_NONCE, packed, _bound(head, machine, disk))


def _seal(key: DiskKey, salt: bytes) -> AESGCM:
    return AESGCM(derive(key.secret, salt, b"page"))


def _bound(head: bytes, machine: MachineId, disk: DiskId) -> bytes:
    return head + machine.encode() + b"\0" + disk.encode()


def page_key(data: bytes, what: str) -> KeyId:
    """The id of the key a page is sealed with. Raises ObjectDamaged, FormatUnknown."""
    if len(data) < HEADER.size + TAG_BYTES:
        raise damaged(what, f"it has only {len(data)} bytes")
    magic, version, _, required, *_, key = HEADER.unpack_from(data)
    check_version(what, magic, MAGIC, version, required)
    return KeyId(key.hex())


def decode_page(data: bytes, machine: MachineId, disk: DiskId, key: DiskKey, *, what: str) -> Page:
    """Open and check a page. Raises ObjectDamaged, FormatUnknown."""
    page_key(data, what)
    head = data[: HEADER.size]
    *_, first, last, salt, _ = HEADER.unpack(head)
    try:
        packed = _seal(key, salt).decrypt(_NONCE, data[HEADER.size :], _bound(head, machine, disk))
        if zstandard.frame_content_size(packed) > _PLAIN_BYTES_MAX:
            raise damaged(what, "it is larger than any page")
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_PLAIN_BYTES_MAX)
    except (InvalidTag, zstandard.ZstdError):
        raise damaged(what, "its seal does not fit, or it does not open") from None
    if len(plain) < _COUNTS.size:
        raise damaged(what, "it is too short")
    digest, points, segments, pieces, _, first_size, last_size = _COUNTS.unpack_from(plain)
    end = _COUNTS.size + segments * _SEGMENT.itemsize
    if len(plain) != end + pieces * _PIECE_BYTES:
        raise damaged(what, "its counts do not fit its length")
    columns, at = [], end
    for kind in ("<u8", "<u8", "<u8", "<i4", "<u4", "u1"):
        column = np.frombuffer(plain, dtype=kind, count=pieces, offset=at)
        columns.append(column)
        at += column.nbytes
    page = Page(
        first=first,
        last=last,
        hash=digest.hex(),
        points=points,
        key_id=key.id,
        first_size_bytes=first_size,
        last_size_bytes=last_size,
        segments=_segments(plain[_COUNTS.size : end], disk, key.id),
        starts=columns[0].astype(np.int64),
        ends=columns[1].astype(np.int64),
        offsets=columns[2].astype(np.int64),
        owners=columns[3].astype(np.int32),
        positions=columns[4].astype(np.int32),
        zeros=columns[5].astype(np.bool_),
    )
    _check(page, what)
    return page


def _segments(rows: bytes, disk: DiskId, key: KeyId) -> tuple[SegmentRef, ...]:
    return tuple(
        SegmentRef(
            disk=disk,
            id=SegmentId(row["id"].tobytes().hex()),
            epoch=int(row["epoch"]),
            stored_bytes=int(row["stored"]),
            key_id=key,
            data_bytes=0,  # only the segment itself and its point say this and the hash
            hash="",
        )
        for row in np.frombuffer(rows, dtype=_SEGMENT)
    )


def _check(page: Page, what: str) -> None:
    """What readers rely on; the seal says it is ours, this says we made it right."""
    sound = (
        (page.starts < page.ends).all()
        and (page.ends[:-1] <= page.starts[1:]).all()
        and (page.offsets <= page.starts).all()
        and (page.owners < len(page.segments)).all()
        and (page.zeros | (page.owners >= 0)).all()
    )
    if not sound:
        raise damaged(what, "a piece of it is out of bounds")


def aligned(number: int, size: int) -> tuple[int, int]:
    """The stretch of `size` records that record `number` (from 1) lies in."""
    first = (number - 1) // size * size + 1
    return first, first + size - 1
