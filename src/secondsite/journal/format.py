"""Byte tables of what lies in a store: the single source FORMAT.md is checked against.

All integers are little-endian. Every header has a magic, a version, required flags (an unknown one is
refused) and optional flags (an unknown one is ignored).

Segment header (192 bytes)          Segment footer (128 bytes, at the very end)
 0   8  magic "2SITESEG"              0   8  magic "2SITEEND"
 8   2  version                       8   2  version
10   2  size of this header          10   2  size of this footer
12   4  required flags               12   4  number of blocks
16   4  optional flags               16   8  position of the sealed index
20   4  zero                         24   4  length of the sealed index, tag included
24  16  machine (UUID)               28   4  length of the index before compression
40  16  segment id                   32   8  guest bytes described, zeros included
56  16  data key id                  40  32  blake3 of everything before the sealed index
72  32  salt of the segment key      72  32  blake3 of the sealed index
104  8  epoch                       104  16  zero
112  8  disk size in bytes          120   8  xxh3_64 of bytes 0..119
120  1  length of the disk's name
121 63  disk's name, zero padded
184  8  xxh3_64 of bytes 0..183

Record (point, claim, span, episode or dismissal) header (112 bytes), followed by the JSON body
 0   8  magic "2SITEREC"             24   8  number
 8   2  version                      32  32  blake3 of bytes 0..31 and the body
10   2  kind: 1 claim, 2 point, 3 span,
         4 episode, 5 dismissal
12   4  required flags
16   4  optional flags                64  16  vault key id, zeros: not sealed
20   4  length of the body            80  32  seal: keyed blake3 of all the rest

Sealed box (wrapped keys, definitions): header (80 bytes), followed by ciphertext and tag
 0   8  magic "2SITEBOX"             24  16  vault key id
 8   2  version                      40  32  salt
10   2  kind: 1 wrapped key,         72   8  xxh3_64 of bytes 0..71
         2 definition, 3 retired keys (in a key file)
12   4  required flags
16   4  optional flags
20   4  length of the plain text
"""

from __future__ import annotations

import struct

import numpy as np
import xxhash

from secondsite.base.units import KIB, MIB
from secondsite.journal.errors import FormatUnknown, damaged

VERSION = 1

SEGMENT_MAGIC = b"2SITESEG"
SEGMENT_HEADER = struct.Struct("<8sHHIII16s16s16s32sQQB63sQ")
FOOTER_MAGIC = b"2SITEEND"
SEGMENT_FOOTER = struct.Struct("<8sHHIQIIQ32s32s16sQ")
RECORD_MAGIC = b"2SITEREC"
RECORD_HEADER = struct.Struct("<8sHHIIIQ32s16s32s")
BOX_MAGIC = b"2SITEBOX"
BOX_HEADER = struct.Struct("<8sHHIII16s32sQ")

# One row a block in the index; rows are ascending by offset within what one `add` wrote.
KIND_ZERO, KIND_STORED, KIND_ZSTD = 0, 1, 2
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # on the disk, bytes
        ("length", "<u4"),  # guest bytes, at most 64 KiB
        ("kind", "<u4"),  # zero, stored, zstd
        ("position", "<u8"),  # of the sealed block in the object; 0 for zeros
        ("stored_length", "<u4"),  # with the tag; 0 for zeros
        ("digests", "<u4"),  # how many rows of the digest table are this block's
        ("checksum", "<u8"),  # xxh3_64 of the guest bytes; 0 for zeros
    ]
)
INDEX_HEADER = struct.Struct("<II")  # number of blocks, number of digests
DIGEST_BYTES = 16

# What a block's seal is bound to: machine, segment, block number, offset, length, kind, disk's name.
BLOCK_AAD = struct.Struct("<16s16sIQII63s")
# The index is bound to the whole header, which says whose it is, and to what the footer says of it.
INDEX_AAD = struct.Struct("<192sIIQ")
NONCE = struct.Struct("<IQ")  # domain, number
NONCE_BLOCK, NONCE_INDEX = 0, 1
TAG_BYTES = 16

# Kinds, and what this version knows of each.
RECORD_CLAIM, RECORD_POINT, RECORD_SPAN, RECORD_EPISODE, RECORD_DISMISSAL = 1, 2, 3, 4, 5
BOX_WRAPPED_KEY, BOX_DEFINITION, BOX_RETIRED_KEYS = 1, 2, 3
REQUIRED_FLAGS_KNOWN = 0
# Of a wrapped key: it took another's place, and carries that one's id and digest seed.
BOX_FLAG_LATER_KEY = 1
# Of a point or span: it names segments that another data key sealed than its disks' first.
RECORD_FLAG_KEYS = 1
# Of a claim whose epoch is not one more than the one before: who does not know it would not count it.
RECORD_FLAG_LEAP = 2

# Limits. A segment is built and sent as a whole: 16 MiB bounds memory and what a cut link repeats.
SEGMENT_DATA_BYTES_MAX = 16 * MIB
BLOCKS_MAX = SEGMENT_DATA_BYTES_MAX // (4 * KIB)
# Zero blocks cost no data, so a segment may describe more than it holds: at most this many rows.
INDEX_PLAIN_BYTES_MAX = (
    INDEX_HEADER.size
    + BLOCKS_MAX * INDEX_DTYPE.itemsize
    + (SEGMENT_DATA_BYTES_MAX // (4 * KIB)) * DIGEST_BYTES
)
SEGMENT_BYTES_MAX = SEGMENT_HEADER.size + SEGMENT_DATA_BYTES_MAX + INDEX_PLAIN_BYTES_MAX + 4 * MIB
# A first point names one segment for each 16 MiB of the machine: 64 MiB of JSON is about 4 TiB of data.
RECORD_BODY_BYTES_MAX = 64 * MIB
# What a source proposes: a receiver adds the point's place in the chain and a fingerprint for each disk.
PROPOSAL_BYTES_MAX = RECORD_BODY_BYTES_MAX - 1 * MIB
# A segment as a record names it: about 190 bytes, some more for long names of disks and for a span's id.
REF_BYTES = 256
BOX_PLAIN_BYTES_MAX = 8 * MIB


def checksum(data: bytes | bytearray | memoryview) -> int:
    """xxh3_64, for accidents; adversaries are kept out by the seals and by blake3."""
    return xxhash.xxh3_64_intdigest(data)


def check_version(what: str, magic: bytes, expected: bytes, version: int, required: int) -> None:
    """The first thing any decoder does.

    Raises:
        ObjectDamaged: another magic. FormatUnknown: a version or a required flag of the future.
    """
    if magic != expected:
        raise damaged(what, f"it begins with {magic!r} instead of {expected!r}")
    if version != VERSION:
        raise FormatUnknown(what=what, why=f"its version is {version}, this secondsite reads {VERSION}")
    if required & ~REQUIRED_FLAGS_KNOWN:
        raise FormatUnknown(what=what, why=f"it needs features {required & ~REQUIRED_FLAGS_KNOWN:#x}")
