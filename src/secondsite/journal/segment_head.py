"""The clear parts of a segment: header and footer, and the rules every header keeps."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from secondsite.base.units import KIB
from secondsite.journal.errors import damaged
from secondsite.journal.format import (
    BLOCKS_MAX,
    FOOTER_MAGIC,
    INDEX_PLAIN_BYTES_MAX,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    TAG_BYTES,
    VERSION,
    check_version,
    checksum,
)
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId, disk_id

# What libvirt and QEMU can make is far smaller; more is a damaged header.
DISK_BYTES_MAX = 1 << 60


@dataclass(frozen=True)
class SegmentHead:
    """Whose blocks a segment holds, and what they are sealed with."""

    machine: MachineId
    disk: DiskId
    epoch: int
    id: SegmentId
    key_id: KeyId
    disk_size_bytes: int

    def __post_init__(self) -> None:
        assert self.epoch >= 1
        assert 0 <= self.disk_size_bytes <= DISK_BYTES_MAX


@dataclass(frozen=True)
class SegmentFooter:
    """Where the index lies, and the hashes that let anyone check a segment without a key."""

    blocks: int
    index_position: int
    index_stored_bytes: int
    index_plain_bytes: int
    data_bytes: int
    payload_hash: bytes
    index_hash: bytes


def encode_head(head: SegmentHead, salt: bytes) -> bytes:
    """The 192 bytes at the start."""
    name = head.disk.encode()
    packed = SEGMENT_HEADER.pack(
        SEGMENT_MAGIC,
        VERSION,
        SEGMENT_HEADER.size,
        0,
        0,
        0,
        uuid.UUID(head.machine).bytes,
        bytes.fromhex(head.id),
        bytes.fromhex(head.key_id),
        salt,
        head.epoch,
        head.disk_size_bytes,
        len(name),
        name,
        0,
    )[:-8]
    return packed + checksum(packed).to_bytes(8, "little")


def decode_head(data: bytes | memoryview, what: str) -> tuple[SegmentHead, bytes]:
    """(head, salt). Needs the first 192 bytes.

    Raises:
        ObjectDamaged, FormatUnknown.
    """
    if len(data) < SEGMENT_HEADER.size:
        raise damaged(what, f"it has only {len(data)} bytes")
    data = bytes(data[: SEGMENT_HEADER.size])
    fields = SEGMENT_HEADER.unpack(data)
    magic, version, size, required = fields[:4]
    check_version(what, magic, SEGMENT_MAGIC, version, required)
    if checksum(data[:-8]) != fields[14]:
        raise damaged(what, "the checksum of its header does not fit")
    if size != SEGMENT_HEADER.size:
        raise damaged(what, f"its header says it has {size} bytes")
    if fields[5]:
        raise damaged(what, "its header has something where version 1 has zeros")
    machine, segment, key, salt, epoch, disk_bytes, name_bytes, name = fields[6:14]
    if epoch < 1:
        raise damaged(what, "its epoch is 0")
    if disk_bytes > DISK_BYTES_MAX:
        raise damaged(what, f"its disk has {disk_bytes} bytes")
    if not 1 <= name_bytes <= 63 or name[name_bytes:].strip(b"\0"):
        raise damaged(what, "the length of its disk's name does not fit the name")
    head = SegmentHead(
        machine=MachineId(str(uuid.UUID(bytes=machine))),
        disk=disk_id(name[:name_bytes].decode("ascii", "replace")),
        epoch=epoch,
        id=SegmentId(segment.hex()),
        key_id=KeyId(key.hex()),
        disk_size_bytes=disk_bytes,
    )
    return head, salt


def encode_footer(footer: SegmentFooter) -> bytes:
    """The 128 bytes at the end."""
    packed = SEGMENT_FOOTER.pack(
        FOOTER_MAGIC,
        VERSION,
        SEGMENT_FOOTER.size,
        footer.blocks,
        footer.index_position,
        footer.index_stored_bytes,
        footer.index_plain_bytes,
        footer.data_bytes,
        footer.payload_hash,
        footer.index_hash,
        bytes(16),
        0,
    )[:-8]
    return packed + checksum(packed).to_bytes(8, "little")


def decode_footer(data: bytes | memoryview, object_bytes: int, what: str) -> SegmentFooter:
    """Read the footer of a segment of `object_bytes`; every relation between its fields is checked.

    Raises:
        ObjectDamaged, FormatUnknown.
    """
    if len(data) != SEGMENT_FOOTER.size:
        raise damaged(what, "it is too short to have a footer")
    data = bytes(data)
    magic, version, size, blocks, position, stored, plain, covered, payload, index, zero, found = (
        SEGMENT_FOOTER.unpack(data)
    )
    check_version(what, magic, FOOTER_MAGIC, version, 0)
    if checksum(data[:-8]) != found:
        raise damaged(what, "the checksum of its footer does not fit")
    if size != SEGMENT_FOOTER.size:
        raise damaged(what, f"its footer says it has {size} bytes")
    if zero.strip(b"\0"):
        raise damaged(what, "its footer has something where version 1 has zeros")
    if position < SEGMENT_HEADER.size or position + stored + SEGMENT_FOOTER.size != object_bytes:
        raise damaged(what, "its index does not lie between its blocks and its footer")
    if stored < TAG_BYTES or plain > INDEX_PLAIN_BYTES_MAX or stored > INDEX_PLAIN_BYTES_MAX + 64 * KIB:
        raise damaged(what, f"its index has {plain} bytes, {stored} stored")
    if blocks > BLOCKS_MAX:
        raise damaged(what, f"it has {blocks} blocks")
    return SegmentFooter(blocks, position, stored, plain, covered, payload, index)
