"""Segments for tests that move bytes and do not read them."""

from __future__ import annotations

import random

import blake3

from secondsite.model.ids import DiskId, MachineId, SegmentId
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
    """Bytes and reference of a segment of about `size_bytes`."""
    data = chance.randbytes(size_bytes)
    ref = SegmentRef(
        disk=disk,
        id=segment,
        epoch=epoch,
        stored_bytes=len(data),
        data_bytes=len(data),
        hash=blake3.blake3(data).hexdigest(),
    )
    return data, ref
