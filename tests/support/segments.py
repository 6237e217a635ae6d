"""Segments for tests that move bytes and do not read them."""

from __future__ import annotations

import random

import blake3

from secondsite.journal.segment_head import SegmentHead, encode_head
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.points import SegmentRef


def sealed_segment(
    machine: MachineId,
    disk: DiskId,
    epoch: int,
    segment: SegmentId,
    *,
    size_bytes: int,
    chance: random.Random,
) -> tuple[bytes, SegmentRef]:
    """Bytes and reference of a segment of at least `size_bytes`: a real header, then noise."""
    head = SegmentHead(
        machine=machine, disk=disk, epoch=epoch, id=segment, key_id=KeyId("0" * 32), disk_size_bytes=1 << 30
    )
    data = encode_head(head, chance.randbytes(32))
    data += chance.randbytes(max(0, size_bytes - len(data)))
    ref = SegmentRef(
        disk=disk,
        id=segment,
        epoch=epoch,
        stored_bytes=len(data),
        data_bytes=len(data),
        hash=blake3.blake3(data).hexdigest(),
    )
    return data, ref
