"""One segment, read whole and checked in memory: hash, identity, index, every seal, checksum and digest."""

from __future__ import annotations

from dataclasses import dataclass

import blake3
import numpy as np
import xxhash

from secondsite.base.errors import SecondsiteError
from secondsite.base.files import FileTooLarge
from secondsite.base.units import SUB_BLOCK_BYTES
from secondsite.journal.chain import Journal
from secondsite.journal.digests import Digests, digest_sub_blocks
from secondsite.journal.disk_index import read_segment
from secondsite.journal.errors import FormatUnknown, KeyMissing, ObjectDamaged, WrongKey, damaged
from secondsite.journal.format import KIND_ZERO
from secondsite.journal.keys import DiskKey, KeyRing
from secondsite.journal.segment_read import BlockIndex, SegmentReader
from secondsite.journal.store import ObjectMissing, StoreUnavailable
from secondsite.model.points import DiskState, SegmentRef

_SEED_MASK = (1 << 64) - 1
UNUSABLE = (ObjectDamaged, ObjectMissing, FormatUnknown, WrongKey, KeyMissing, FileTooLarge)


@dataclass(frozen=True, eq=False)
class SegmentCheck:
    """What is wrong with a segment, and what can be used of it."""

    name: str
    read_bytes: int
    error: SecondsiteError | None = None  # None: nothing is wrong
    key_lost: bool = False  # it is the key that is not there; the segment may be good
    index: BlockIndex | None = None  # None: it cannot be read, so any block may have been in it
    digests: Digests | None = None  # of the index, all blocks that are not zeros
    bad: tuple[int, ...] = ()  # numbers of the blocks that cannot be read


def check_segment(journal: Journal, ref: SegmentRef, keys: KeyRing, state: DiskState) -> SegmentCheck:
    """Check a segment a point names, exactly as far as a view would use it. Never raises for damage.

    A storage that fails to give the bytes counts as damage of the object: the caller tells one bad object
    from a store that is gone.
    """
    name = journal.segment_name(ref)
    wrong: SecondsiteError | None = None
    try:
        data = journal.store.read(name, 0, ref.stored_bytes)
        if journal.store.size(name) != ref.stored_bytes:
            wrong = damaged(name, "it is longer than its point says")
    except EOFError:
        return SegmentCheck(name, 0, damaged(name, "it is shorter than its point says"))
    except (ObjectMissing, StoreUnavailable) as error:
        return SegmentCheck(name, 0, error)
    found = blake3.blake3(data).hexdigest()
    if found != ref.hash:
        wrong = damaged(name, f"the hash of the whole is {found[:16]}…, its point says {ref.hash[:16]}…")
    try:
        key = keys.get(ref.sealed_by(state))
    except UNUSABLE as lost:
        if wrong is not None:
            return SegmentCheck(name, len(data), wrong)
        return SegmentCheck(keys.name(ref.sealed_by(state)), len(data), lost, key_lost=True)
    return _open(journal, ref, key, data, found=found, error=wrong)


def _is_whole(reader: SegmentReader, data: memoryview) -> bool:
    """Whether the hashes in its footer are those of its bytes."""
    footer = reader.footer
    return blake3.blake3(data[: footer.index_position]).digest() == footer.payload_hash


def _open(
    journal: Journal, ref: SegmentRef, key: DiskKey, data: bytes, *, found: str, error: SecondsiteError | None
) -> SegmentCheck:
    name, view = journal.segment_name(ref), memoryview(data)
    try:
        reader = read_segment(journal, ref, key, lambda start, length: bytes(view[start : start + length]))
        index, digests = reader.index, reader.digests()
        total = int(index["length"].sum(dtype=np.int64))
        if error is None and not total == reader.footer.data_bytes == ref.data_bytes:
            error = damaged(name, f"it has {total} bytes of data, its point says {ref.data_bytes}")
    except UNUSABLE as wrong:
        return SegmentCheck(name, len(data), wrong)
    bad, first = _bad_blocks(reader, key.digest_seed())
    if found != ref.hash and not bad and _is_whole(reader, view):
        # not a damaged one but another one, made with the keys: nothing in it is what was committed
        bad = list(range(len(index)))
    return SegmentCheck(name, len(data), first or error, index=index, digests=digests, bad=tuple(bad))


def _bad_blocks(reader: SegmentReader, seed: int) -> tuple[list[int], SecondsiteError | None]:
    """Blocks that do not open or hold other data than their digests say, and what is wrong with the first."""
    bad: list[int] = []
    first: SecondsiteError | None = None
    index = reader.index
    for number in np.flatnonzero(index["kind"] != KIND_ZERO).tolist():
        try:
            data = reader.read_block(number)
        except ObjectDamaged as error:
            first = first or error
            bad.append(number)
            continue
        first_sub_block = int(index["offset"][number]) // SUB_BLOCK_BYTES
        if not _fit(memoryview(data), first_sub_block, seed, reader.block_digests(number)):
            what = f"segment {reader.head.id}"
            first = first or damaged(what, f"the digests of block {number} are of other data")
            bad.append(number)
    return bad, first


def _fit(data: memoryview, first: int, seed: int, digests: Digests) -> bool:
    """Whether `data` has these digests. The quick way says nothing of sub-blocks of zeros."""
    digest = xxhash.xxh3_128_digest
    quick = b"".join(
        digest(data[at : at + SUB_BLOCK_BYTES], (seed + first + at // SUB_BLOCK_BYTES) & _SEED_MASK)
        for at in range(0, len(data), SUB_BLOCK_BYTES)
    )
    return quick == digests.tobytes() or np.array_equal(digest_sub_blocks(data, first, seed), digests)
