"""Log pages: many records of a log in one object, so that a long chain is read in a few requests.

A page holds the records of an aligned stretch of 1,024 numbers, with the hash of each. It is a cache, made
from records that were checked, and sealed as they are: whoever reads it need not check each again. It is
used only while every one of its records is listed as it was, and deleted when retention touches one.

Object, little-endian:
  0   8  magic "2SITELOG"              24   8  number of records
  8   2  version                       32  32  blake3 of bytes 0..31 and the body
 10   2  zero                          64  16  vault key id, zeros: not sealed
 12   4  required flags                80  32  seal: keyed blake3 of all the rest
 16   8  number of the first record
112   …  body: zstd of, for each record: kind (u32), length of its JSON (u32), hash of the record (32), JSON
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import blake3
import msgspec
import zstandard

from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.journal.errors import damaged
from secondsite.journal.format import RECORD_HEADER, VERSION, check_version
from secondsite.journal.keys import LogKey, check_current, check_seal, sealed_with
from secondsite.journal.manifest import decode_body, record_hash
from secondsite.model.points import Record

MAGIC = b"2SITELOG"
HEADER = struct.Struct("<8sHHIQQ32s16s32s")
_ROW = struct.Struct("<II32s")
RECORDS = 1024
# Records of increments have some kilobytes; a stretch with first copies in it is not worth one object.
PLAIN_BYTES_MAX = 64 * MIB
PAGE_BYTES_MAX = HEADER.size + PLAIN_BYTES_MAX + 1 * MIB
# Definitions repeat from record to record, some kilobytes apart.
_WINDOW_LOG = 20


def encode_log_page(first: int, records: Sequence[bytes], key: LogKey | None) -> bytes | None:
    """The page of whole records as the log has them; None when they are too large for one."""
    parts = []
    for data in records:
        kind = RECORD_HEADER.unpack_from(data)[2]
        body = data[RECORD_HEADER.size :]
        parts += [_ROW.pack(kind, len(body), bytes.fromhex(record_hash(data))), body]
    plain = b"".join(parts)
    if len(plain) > PLAIN_BYTES_MAX:
        return None
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=_WINDOW_LOG)
    body = zstandard.ZstdCompressor(compression_params=parameters).compress(plain)
    head = HEADER.pack(MAGIC, VERSION, 0, 0, first, len(records), bytes(32), sealed_with(key), bytes(32))
    head = head[:32] + blake3.blake3(head[:32]).update(body).digest() + head[64:80]
    return head + (key.seal(head, body) if key is not None else bytes(32)) + body


def log_page_key_id(head: bytes) -> bytes:
    """The vault key id in a page's header, unchecked."""
    found: bytes = HEADER.unpack_from(head)[7]
    return found


def decode_log_page(data: bytes, first: int, key: LogKey | None, *, what: str) -> list[tuple[str, Record]]:
    """(hash, record) of each, from number `first` on. Raises ObjectDamaged, FormatUnknown, WrongKey."""
    if len(data) < HEADER.size:
        raise damaged(what, f"it has only {len(data)} bytes")
    magic, version, _, required, number, count, digest, vault, seal = HEADER.unpack_from(data)
    check_version(what, magic, MAGIC, version, required)
    head, body = memoryview(data)[:80], memoryview(data)[HEADER.size :]
    if number != first or count != RECORDS:
        raise damaged(what, f"it holds {count} records from number {number} on")
    if blake3.blake3(head[:32]).update(body).digest() != digest:
        raise damaged(what, "its hash does not fit its content")
    check_seal(what, key, vault, seal, head, body)
    # Its records are not checked again, so the present key must have sealed it: a rotation drops the others.
    check_current(what, key, vault, "in a page of the log")
    try:
        if zstandard.frame_content_size(body) > PLAIN_BYTES_MAX:
            raise damaged(what, "it is larger than any page")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=PLAIN_BYTES_MAX)
        return _split(plain, count)
    except (zstandard.ZstdError, struct.error, msgspec.DecodeError, *JSON_ERRORS) as error:
        raise damaged(what, f"it does not open: {error}") from None


def _split(plain: bytes, count: int) -> list[tuple[str, Record]]:
    found, at, whole = [], 0, memoryview(plain)
    for _ in range(count):
        kind, length, digest = _ROW.unpack_from(plain, at)
        at += _ROW.size
        found.append((digest.hex(), decode_body(kind, whole[at : at + length])))
        at += length
    return found
