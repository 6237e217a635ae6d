"""What a view of a disk adds up to, read as a machine booted from it would read it."""

from __future__ import annotations

from concurrent.futures import Executor

from secondsite.base.units import GIB, MIB, SUB_BLOCK_BYTES
from secondsite.journal.digests import combine, digest_sub_blocks, fingerprint_text
from secondsite.journal.scrub_types import Meter
from secondsite.journal.scrub_work import in_order
from secondsite.journal.view import DiskView
from secondsite.model.extents import Extents

REREAD_BYTES = 1 * MIB
_SLICE_BYTES = 1 * GIB


def sum_view(view: DiskView, seed: int, pool: Executor, meter: Meter) -> str:
    """The fingerprint of what a view of a disk reads as. Raises what reading raises."""

    def read(piece: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        offset, length = piece
        buffer = memoryview(bytearray(length))
        view.read_into(offset, buffer)
        return length, combine(digest_sub_blocks(buffer, offset // SUB_BLOCK_BYTES, seed))

    slices = [(at, min(_SLICE_BYTES, view.size_bytes - at)) for at in range(0, view.size_bytes, _SLICE_BYTES)]
    meter.expect(sum(_data(view, *part).total_bytes for part in slices))
    lanes = (0, 0)
    for part in slices:
        for length, found in in_order(pool, read, _data(view, *part).pieces(REREAD_BYTES, aligned=True)):
            lanes = (lanes[0] + found[0], lanes[1] + found[1])
            meter.spend(length)
    return fingerprint_text(lanes)


def _data(view: DiskView, offset: int, length: int) -> Extents:
    """Where there is data, in whole sub-blocks."""
    found = Extents.of((start, end) for start, end, zero in view.extents(offset, length) if not zero)
    return found.align(SUB_BLOCK_BYTES, view.size_bytes)
