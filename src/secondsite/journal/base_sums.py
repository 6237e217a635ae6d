"""Sums of a base: a keyed hash of each 64 KiB, kept in the store by promotion, checked by whoever doubts.

Object (one a promotion, named by the point it went up to; several are made one, see `base_sums_merge`),
little-endian:
 0   8  magic "2SITESUM"
 8   2  version
10   2  zero
12   4  required flags
16   8  number of rows
24  32  blake3 of bytes 0..23 and the rows
56   …  rows of 24 bytes: number of the 64 KiB (u64), xxh3_128 of them (16 bytes)

The seed of the hash is the disk's digest seed plus the number: an equal sum says nothing without the key.
Objects are read in ascending order of their names; later rows win.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import blake3
import numpy as np
import xxhash
from numpy.typing import NDArray

from secondsite.base.units import BLOCK_BYTES_MAX, GIB
from secondsite.journal.bases import BaseImage
from secondsite.journal.errors import damaged
from secondsite.journal.format import VERSION, check_version
from secondsite.journal.names import base_sums_prefix
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId

MAGIC = b"2SITESUM"
HEADER = struct.Struct("<8sHHIQ32s")
ROW = np.dtype([("number", "<u8"), ("sum", "<u8", (2,))])
SUMS_BYTES_MAX = 1 * GIB  # rows for a first promotion of 2.8 TiB
_MASK = (1 << 64) - 1
_PIECE_BYTES = 128 * 1024 * ROW.itemsize

Sums = NDArray[np.void]


def sum_base(base: BaseImage, where: Extents, seed: int) -> Sums:
    """Sums of every 64 KiB that `where` touches, read from the base."""
    aligned = where.align(BLOCK_BYTES_MAX, base.size_bytes)
    pieces = list(aligned.pieces(BLOCK_BYTES_MAX))
    rows = np.empty(len(pieces), dtype=ROW)
    buffer = memoryview(bytearray(BLOCK_BYTES_MAX))
    for row, (offset, length) in enumerate(pieces):
        number = offset // BLOCK_BYTES_MAX
        base.read_into(offset, buffer[:length])
        rows[row] = (number, row_sum(buffer[:length], number, seed))
    return rows


def row_sum(data: memoryview, number: int, seed: int) -> tuple[int, int]:
    """The sum of the 64 KiB with this number."""
    found = xxhash.xxh3_128_intdigest(data, (seed + number) & _MASK)
    return found & _MASK, found >> 64


def sums_head(count: int) -> bytes:
    """An object's first 24 bytes, for `count` rows; the hash follows, of these and the rows."""
    return HEADER.pack(MAGIC, VERSION, 0, 0, count, bytes(32))[:24]


def put_sums(store: ObjectStore, machine: MachineId, disk: DiskId, number: int, rows: Sums) -> None:
    """Keep the sums of the promotion up to point `number`; repeated, the first stays (it is the same)."""
    head = sums_head(len(rows))
    body = rows.tobytes()
    data = head + blake3.blake3(head).update(body).digest() + body
    try:
        store.put(f"{base_sums_prefix(machine, disk)}{number:016d}", data)
    except ObjectExists:
        return


def read_rows(store: ObjectStore, name: str) -> Iterator[Sums]:
    """The rows of one object in pieces, after all of it was checked; memory stays bounded.

    Raises:
        ObjectDamaged, FormatUnknown, ObjectMissing.
    """
    size = store.size(name)
    if size < HEADER.size:
        raise damaged(name, "it is too short")
    head = store.read(name, 0, HEADER.size)
    magic, version, _, required, count, digest = HEADER.unpack(head)
    check_version(name, magic, MAGIC, version, required)
    if size != HEADER.size + count * ROW.itemsize:
        raise damaged(name, "its length does not fit")
    places = [(at, min(_PIECE_BYTES, size - at)) for at in range(HEADER.size, size, _PIECE_BYTES)]
    hasher = blake3.blake3(head[:24])
    for at, length in places:
        hasher.update(store.read(name, at, length))
    if hasher.digest() != digest:
        raise damaged(name, "its hash does not fit")
    for at, length in places:
        yield np.frombuffer(store.read(name, at, length), dtype=ROW)


def read_sums(store: ObjectStore, machine: MachineId, disk: DiskId) -> dict[int, tuple[int, int]]:
    """Every sum the store knows of a disk's base, by number of the 64 KiB. Raises ObjectDamaged."""
    # made one with others since they were listed; that happens once in many promotions
    with contextlib.suppress(ObjectMissing):
        return _read_all(store, base_sums_prefix(machine, disk))
    return _read_all(store, base_sums_prefix(machine, disk))


def _read_all(store: ObjectStore, prefix: str) -> dict[int, tuple[int, int]]:
    known: dict[int, tuple[int, int]] = {}
    for name in store.list(prefix):
        known.update(_decode(name, store.get(name, size_bytes_max=SUMS_BYTES_MAX)))
    return known


def differing(base: BaseImage, known: dict[int, tuple[int, int]], seed: int) -> Iterator[int]:
    """Numbers of the 64 KiB whose content is not what promotion left there."""
    for number in sorted(known):
        start = number * BLOCK_BYTES_MAX
        if start >= base.size_bytes:
            continue  # the disk became smaller since
        row = sum_base(base, Extents.of([(start, min(start + 1, base.size_bytes))]), seed)[0]
        if (int(row["sum"][0]), int(row["sum"][1])) != known[number]:
            yield number


def _decode(name: str, data: bytes) -> Iterator[tuple[int, tuple[int, int]]]:
    if len(data) < HEADER.size:
        raise damaged(name, "it is too short")
    magic, version, _, required, count, digest = HEADER.unpack_from(data)
    check_version(name, magic, MAGIC, version, required)
    body = memoryview(data)[HEADER.size :]
    if (
        len(body) != count * ROW.itemsize
        or blake3.blake3(memoryview(data)[:24]).update(body).digest() != digest
    ):
        raise damaged(name, "its hash or length does not fit")
    rows = np.frombuffer(body, dtype=ROW)
    for number, lanes in zip(rows["number"].tolist(), rows["sum"].tolist(), strict=True):
        yield number, (lanes[0], lanes[1])
