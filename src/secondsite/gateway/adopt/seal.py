"""Taking an image into the store: read in slices, sealed into segments with the source's data keys.

Each slice is noted once all of it is in the store, so that a gateway that was killed goes on with the next
one. The image is looked at after each: if it changed since it was named, nothing of it is of any use.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from secondsite.base.crash import crash_point, mark
from secondsite.base.units import MIB, SUB_BLOCK_BYTES
from secondsite.gateway.adopt.image import ImageReader, open_image, require_unchanged
from secondsite.gateway.adopt.record import AdoptionRecord, RefsLog
from secondsite.gateway.source.encode import DiskTrack, Encoder
from secondsite.gateway.source.tables import DigestTable, Stamp
from secondsite.gateway.target.machinetables import rows_of
from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import open_segment
from secondsite.journal.keys import KeyRing
from secondsite.journal.sweep import unnamed
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState, SegmentRef
from secondsite.transfer.errors import TransferCancelled

BEFORE_PUT = mark("adopt.before-put")
AFTER_PUT = mark("adopt.after-put")
AFTER_SLICE = mark("adopt.after-slice")
DURING_DROP = mark("adopt.during-drop")

SLICE_BYTES = 256 * MIB
READ_BYTES = 1 * MIB
# The compression of a first copy: the store's volume is written to, no link waits for it.
LEVEL = 1

# Told how far it is: (index of the disk, offset in it, length of the log, stored bytes). Raises to end it.
Note = Callable[[int, int, int, int], None]


class _Puts:
    """Where the encoder's segments go: named in the log, then put."""

    def __init__(self, journal: Journal, epoch: int, log: RefsLog) -> None:
        self._journal = journal
        self._log = log
        self.epoch = epoch

    def add(
        self,
        ref: SegmentRef,
        data: bytes | bytearray | memoryview,
        *,
        wait: bool = False,  # noqa: ARG002
        cancel: threading.Event | None = None,  # noqa: ARG002
    ) -> None:
        """See `encode.Sink`."""
        self._log.add(ref)
        crash_point(BEFORE_PUT)
        self._journal.store.put(self._journal.segment_name(ref), data)
        crash_point(AFTER_PUT)


def seal(
    record: AdoptionRecord,
    journal: Journal,
    keys: KeyRing,
    log: RefsLog,
    *,
    note: Note,
    cancel: threading.Event,
    slice_bytes: int = SLICE_BYTES,
) -> None:
    """Seal what is left of the images. Raises what reading and the store raise, ImageChanged, and `note`."""
    drop_objects(journal, log.after(record.log_bytes))
    log.cut(record.log_bytes)
    encoder = Encoder(
        _Puts(journal, record.epoch, log), machine=record.machine, level=LEVEL, wait=True, cancel=cancel
    )
    stored, offset = record.stored_bytes, record.offset
    with contextlib.closing(encoder):
        for index, (disk, image) in enumerate(record.images.items()):
            if index < record.disk:
                continue
            require_unchanged(image)
            track = DiskTrack(id=disk, size_bytes=image.size_bytes, key=keys.get(record.keys[disk]))
            with open_image(image) as reader:
                while offset < image.size_bytes:
                    end = min(offset + slice_bytes, image.size_bytes)
                    _feed(encoder, track, reader, (offset, end), cancel)
                    encoder.flush()
                    require_unchanged(image)
                    offset = end
                    note(index, offset, log.size_bytes, stored + encoder.sent_bytes)
                    crash_point(AFTER_SLICE)
            offset = 0
    for image in record.images.values():
        require_unchanged(image)  # also one that was sealed by an earlier process


def _feed(
    encoder: Encoder,
    track: DiskTrack,
    reader: ImageReader,
    bounds: tuple[int, int],
    cancel: threading.Event,
) -> None:
    """What a slice holds; holes need no segment, nothing lies beneath."""
    start, end = bounds
    buffer = memoryview(bytearray(READ_BYTES))
    extents = (
        reader.data_extents(start, end - start).align(SUB_BLOCK_BYTES, track.size_bytes).clip(start, end)
    )
    for first, length in extents.pieces(READ_BYTES, aligned=True):
        if cancel.is_set():
            raise TransferCancelled(what=f"the copy of disk {track.id}")
        reader.read_into(first, buffer[:length])
        encoder.feed(track, first, buffer[:length])


def make_tables(
    directory: Path,
    journal: Journal,
    keys: KeyRing,
    disks: Mapping[DiskId, DiskState],
    refs: list[SegmentRef],
    *,
    cancel: threading.Event,
) -> dict[DiskId, DigestTable]:
    """What the sealed copy holds, from the segments' own indexes. Raises what reading raises."""
    made: dict[DiskId, DigestTable] = {}
    try:
        for disk, state in disks.items():
            path = directory / f"{disk}.digests"
            table = made[disk] = DigestTable.create(path, Stamp(state.size_bytes, state.key_id))
            for ref in refs:
                if cancel.is_set():
                    raise TransferCancelled(what="the digests of an adopted copy")
                if ref.disk == disk:
                    where, digests = rows_of(open_segment(journal, ref, keys, state))
                    order = np.argsort(where)  # no sub-block is sealed twice
                    table.write(where[order], digests[order])
    except BaseException:
        for table in made.values():
            table.drop()
        raise
    return made


def drop_objects(journal: Journal, refs: list[SegmentRef]) -> None:
    """Remove segments from the store, but for those that a point has become the owner of."""
    if not refs:
        return
    loose = None
    if journal.head().point is not None or journal.state().floor:
        found = unnamed(journal)
        loose = {*found.dead, *found.waiting}
    for ref in refs:
        name = journal.segment_name(ref)
        if loose is None or name in loose:
            journal.store.delete(name)
            crash_point(DURING_DROP)
