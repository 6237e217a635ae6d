"""First copy and resynchronisation: everything, in bounded slices, closed by increments (rules 4 and 5).

A checkpoint over all disks comes first; slices of different instants then fill one shipment, which is no
point and which nobody can read; increments since that checkpoint, over all disks at one instant, are added
until one is small: that instant is the point. The shipment's note says how far the slices came, so that a
gateway that was killed goes on there while the checkpoint lives.

A resynchronisation is the same over what the target holds: each slice is compared with the target's digests
of its newest point (`compare`), and only what differs is sent; holes that are none at the target are sent as
zeros (rule 12). Where the target cannot answer, the sub-block table drops what it knows to be unchanged.
A first copy whose target adopted a copy of some disks (`adopt`) does so with those, and with the others not.

What a killed copy had sent after its last note is dropped when it goes on (`Shipper.reopen`): it would lie in
the point under what the same slice, read again, finds to be equal at the target and does not send.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import GIB, MIB, SUB_BLOCK_BYTES, format_bytes
from secondsite.fabrics.base import Capture, DiskCapture, Quiesce
from secondsite.gateway.source.compare import Compared
from secondsite.gateway.source.cycle import (
    READ_BYTES,
    Bench,
    Captured,
    Logs,
    fit_tables,
    propose,
    read_increment,
    require_known,
    tracks_of,
)
from secondsite.gateway.source.encode import DiskTrack, Encoder
from secondsite.gateway.source.findings import facts_of
from secondsite.journal.compare import Comparison
from secondsite.journal.errors import RecordTooLarge
from secondsite.journal.format import PROPOSAL_BYTES_MAX, REF_BYTES, SEGMENT_DATA_BYTES_MAX
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId
from secondsite.transfer.errors import ShipmentLost
from secondsite.transfer.shipping import Shipment

AFTER_SLICE = mark("seed.after-slice")
AFTER_INCREMENT = mark("seed.after-increment")
BEFORE_SEAL = mark("seed.before-seal")

# A job that stays open costs the host scratch space and blocks snapshots and resizing (libvirt.md 4): at the
# 400 MB/s a source reaches, a slice is open for some seconds.
SLICE_BYTES = 2 * GIB
SLICE_SECONDS = 20.0
# Increments end when one is small enough to be an ordinary cycle, or when they no longer shrink.
SMALL_BYTES = 64 * MIB
INCREMENTS_MAX = 8
# A slice ends early when the cache has less room than the pipeline may still put into it.
ROOM_BYTES = 32 * MIB


class SeedNote(msgspec.Struct, frozen=True, kw_only=True):
    """How far a shipment's slices came."""

    checkpoint: str  # what increments are counted from
    resync: bool
    disk: int = 0  # index of the disk the next slice starts in
    offset: int = 0
    sizes: dict[str, int] = {}  # of the disks, as the slices and increments so far saw them
    done_bytes: int = 0
    total_bytes: int = 0
    differed_bytes: int = 0  # of those done, in a comparison
    adopted: str = ""  # the adopted copy it is compared with
    order: int = 0  # the newest wish for a comparison of everything when it began


def read_note(shipment: Shipment) -> SeedNote | None:
    """The note of an open shipment; None when it is none of ours."""
    if not shipment.note or shipment.proposal is not None:
        return None
    try:
        return msgspec.json.decode(shipment.note, type=SeedNote)
    except JSON_ERRORS:
        return None


@dataclass
class Progress:
    """How far a copy has come; read by other threads."""

    clock: Clock
    done_bytes: int = 0
    total_bytes: int = 0
    resumed_bytes: int = 0
    differed_bytes: int | None = None  # of those done, in a resynchronisation
    started: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.started = self.clock.monotonic()

    @property
    def bytes_per_second(self) -> float:
        """Since it began or was resumed."""
        seconds = self.clock.monotonic() - self.started
        return (self.done_bytes - self.resumed_bytes) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None while the rate is not known."""
        rate = self.bytes_per_second
        return max(0, self.total_bytes - self.done_bytes) / rate if rate > 0 and self.total_bytes else None


class DisksChanged(SecondsiteError):
    """The machine has other disks than when its copy began; what was copied so far is of no use."""

    code = "replicate.disks-changed"
    outcome = Outcome.UNAVAILABLE
    happened = "{machine} has other disks than when its copy began: {disks}."
    cause = "Somebody added or removed one meanwhile."
    action = "None: the copy begins again."


class Seed:
    """One first copy or resynchronisation. `run` once; its shipment stays when it fails, to be resumed."""

    def __init__(
        self,
        bench: Bench,
        *,
        epoch: int,
        fresh: bool,
        name_checkpoint: Callable[[], str],
        progress: Progress,
        cancel: threading.Event,
        on_wait: Callable[[bool], None],
        compared: Compared | None = None,
        before_slice: Callable[[], None] = lambda: None,
        order: int = 0,
        slice_bytes: int = SLICE_BYTES,
        slice_seconds: float = SLICE_SECONDS,
    ) -> None:
        """fresh: the target holds nothing. on_wait: told when the copy begins and ends to wait for room.

        compared: what the target holds, if it can say so. before_slice: may raise, to end the copy.
        order: the newest wish for a comparison, kept in the note.
        """
        self._bench = bench
        self._epoch = epoch
        self._fresh = fresh
        self._name_checkpoint = name_checkpoint
        self._progress = progress
        self._cancel = cancel
        self._on_wait = on_wait
        self._compared = compared.disks if compared is not None else {}
        self._adopted = compared.adopted if compared is not None else ""
        self._before_slice = before_slice
        self._order = order
        self._comparisons: dict[DiskId, Comparison] = {}
        self._slice_bytes = slice_bytes
        self._slice_seconds = slice_seconds
        self._logs = Logs(bench.tables)

    def run(self, shipment: Shipment | None) -> Captured:
        """Copy everything, or go on with `shipment`. Raises what source and shipper raise."""
        if shipment is not None:
            shipment = self._bench.shipper.reopen(shipment)
        note = read_note(shipment) if shipment is not None else None
        if shipment is None or note is None:
            shipment = self._bench.shipper.begin(self._bench.machine, self._epoch)
        bench = self._bench
        started = bench.clock.monotonic()
        encoder = Encoder(shipment, machine=bench.machine, level=bench.level, wait=True, cancel=self._cancel)
        try:
            note = self._slices(shipment, encoder, note)
            return self._close(shipment, encoder, note, started)
        except BaseException as error:
            self._logs.abandon()
            if isinstance(error, (ShipmentLost, DisksChanged, RecordTooLarge)):
                shipment.discard()  # nothing can be sent for what is lost: the copy begins again
            raise
        finally:
            encoder.close()

    # -- slices ---------------------------------------------------------------------------------

    def _slices(self, shipment: Shipment, encoder: Encoder, note: SeedNote | None) -> SeedNote:
        resumed = note is not None
        differed_before = 0
        if note is not None:
            differed_before = note.differed_bytes
            progress = self._progress
            progress.done_bytes = progress.resumed_bytes = note.done_bytes
            progress.total_bytes = note.total_bytes
        while note is None or note.disk < len(note.sizes):
            self._wait_for_room()
            self._before_slice()
            checkpoint = self._name_checkpoint() if note is None else None
            with self._bench.source.capture(
                since=None, checkpoint=checkpoint, quiesce=Quiesce.NONE
            ) as capture:
                require_known(self._bench, capture, ())
                if note is not None:
                    self._require_disks(note, capture, more=False)
                if note is None:
                    assert checkpoint is not None
                    note = self._first_note(capture, checkpoint)
                if not self._logs.logs:
                    self._begin_logs(capture, resumed=resumed)
                note = self._slice(capture, encoder, note)
            encoder.flush()
            if note.resync or note.adopted:
                differed = differed_before + encoder.kept_bytes
                note = msgspec.structs.replace(note, differed_bytes=differed)
                self._progress.differed_bytes = differed
            shipment.set_note(msgspec.json.encode(note), wait=True, cancel=self._cancel)
            crash_point(AFTER_SLICE)
        if not self._logs.logs:  # resumed after the last slice
            for table in self._bench.tables.values():
                table.void("a copy goes on that an earlier process began")
            self._logs.begin()
        return note

    def _require_disks(self, note: SeedNote, capture: Capture, *, more: bool) -> None:
        """The slices' disks, and with `more` perhaps others, which the closing increment reads whole."""
        disks = [disk.id for disk in capture.disks]
        if not (set(note.sizes) <= set(disks) if more else list(note.sizes) == disks):
            raise DisksChanged(machine=self._bench.name, disks=", ".join(disks))

    def _require_room_in_a_record(self, total: int) -> None:
        """Refuse what could not be committed at the end, before a byte of it is read.

        A quarter is left for segments that are not full (each slice ends some) and for the increments.
        """
        size = -(-total // SEGMENT_DATA_BYTES_MAX) * REF_BYTES * 5 // 4
        if size > PROPOSAL_BYTES_MAX:
            what = f"the first copy of {self._bench.name} ({format_bytes(total)})"
            raise RecordTooLarge(what=what, size=size, limit=PROPOSAL_BYTES_MAX)

    def _first_note(self, capture: Capture, checkpoint: str) -> SeedNote:
        total = sum(disk.changed().total_bytes for disk in capture.disks)
        self._require_room_in_a_record(total)
        self._progress.total_bytes = total
        sizes: dict[str, int] = {disk.id: disk.size_bytes for disk in capture.disks}
        return SeedNote(
            checkpoint=checkpoint,
            resync=not self._fresh,
            adopted=self._adopted,
            sizes=sizes,
            total_bytes=total,
            order=self._order,
        )

    def _begin_logs(self, capture: Capture, *, resumed: bool) -> None:
        self._logs.whole = not resumed
        for disk in capture.disks:
            table = self._bench.tables[disk.id]
            if self._fresh:
                table.void("", size_bytes=disk.size_bytes)
            elif resumed:
                # what the earlier process sent is in no log: the table would speak of what was before
                table.void("a copy goes on that an earlier process began", size_bytes=disk.size_bytes)
        fit_tables(self._bench, capture)
        self._logs.begin()

    def _slice(self, capture: Capture, encoder: Encoder, note: SeedNote) -> SeedNote:
        """Read from the note's position on, until the slice is full; returns the position reached."""
        end = self._bench.clock.monotonic() + self._slice_seconds
        left = self._slice_bytes
        tracks = tracks_of(self._bench, capture, self._logs)
        for track in tracks:
            track.comparison = self._comparison(track, note)
        index, offset = note.disk, note.offset
        while index < len(tracks):
            disk, track = capture.disks[index], tracks[index]
            # the size the copy began with, in whole sub-blocks; what grew later is the increments' business
            size = min(disk.size_bytes, -(-note.sizes[disk.id] // SUB_BLOCK_BYTES) * SUB_BLOCK_BYTES)
            allocated = disk.changed().align(SUB_BLOCK_BYTES, disk.size_bytes).clip(0, size)
            reached, full = self._part(encoder, track, disk, allocated, (offset, size, left, end))
            left -= allocated.clip(offset, reached).total_bytes
            if full:
                return self._at(note, index, reached)
            index, offset = index + 1, 0
        return self._at(note, index, 0)

    def _comparison(self, track: DiskTrack, note: SeedNote) -> Comparison | None:
        theirs = self._compared.get(track.id)
        if theirs is not None and track.id not in self._comparisons:
            self._comparisons[track.id] = Comparison(theirs, note.sizes[track.id])
        return self._comparisons.get(track.id)

    def _part(
        self,
        encoder: Encoder,
        track: DiskTrack,
        disk: DiskCapture,
        allocated: Extents,
        bounds: tuple[int, int, int, float],
    ) -> tuple[int, bool]:
        """Read one disk from an offset; (how far it came, whether the slice is full)."""
        offset, size, left, end = bounds
        # a disk before this one may end inside a sub-block, and with it what is left of the slice
        whole = max(left, READ_BYTES) // SUB_BLOCK_BYTES * SUB_BLOCK_BYTES
        now, rest = allocated.clip(offset, size).take(whole)
        goal = int(rest.starts[0]) if len(rest) else size
        position = offset
        full = bool(len(rest))
        for start, data in disk.read(now.pieces(READ_BYTES, aligned=True)):
            self._holes(encoder, track, position, start)
            encoder.feed(track, start, data)
            position = start + len(data)
            self._progress.done_bytes += len(data)
            if self._bench.clock.monotonic() > end or not self._bench.shipper.has_room(ROOM_BYTES):
                return position, True
        self._holes(encoder, track, position, goal)
        return goal, full

    def _holes(self, encoder: Encoder, track: DiskTrack, start: int, end: int) -> None:
        if start < end and (not self._fresh or track.comparison is not None):
            encoder.zeros(track, start, end - start)

    def _at(self, note: SeedNote, disk: int, offset: int) -> SeedNote:
        return msgspec.structs.replace(note, disk=disk, offset=offset, done_bytes=self._progress.done_bytes)

    def _wait_for_room(self) -> None:
        """Between slices no capture is open: the host pays nothing while the link is cut."""
        shipper = self._bench.shipper
        if shipper.has_room(ROOM_BYTES) or not shipper.queued_bytes:
            return
        self._on_wait(True)
        while not shipper.has_room(ROOM_BYTES) and shipper.queued_bytes and not self._cancel.is_set():
            self._bench.clock.wait(self._cancel, 0.2)
        self._on_wait(False)

    # -- increments -----------------------------------------------------------------------------

    def _close(self, shipment: Shipment, encoder: Encoder, note: SeedNote, started: float) -> Captured:
        bench = self._bench
        changed_all = 0
        for round_number in range(1, INCREMENTS_MAX + 1):
            self._wait_for_room()
            name = self._name_checkpoint()
            with bench.source.capture(
                since=note.checkpoint, checkpoint=name, quiesce=Quiesce.NONE
            ) as capture:
                require_known(bench, capture, note.sizes)
                self._require_disks(note, capture, more=True)
                fit_tables(bench, capture)
                sizes: dict[str, int] = {disk.id: disk.size_bytes for disk in capture.disks}
                tracks, disks = tracks_of(bench, capture, self._logs), facts_of(capture)
                changed = 0
                for track, disk in zip(tracks, capture.disks, strict=True):
                    changed += read_increment(encoder, track, disk, note.sizes.get(disk.id))
            encoder.flush()
            changed_all += changed
            if changed <= SMALL_BYTES or round_number == INCREMENTS_MAX:
                break
            older = note.checkpoint
            note = msgspec.structs.replace(note, checkpoint=name, sizes=sizes)
            shipment.set_note(msgspec.json.encode(note), wait=True, cancel=self._cancel)
            crash_point(AFTER_INCREMENT)
            bench.source.forget(older)  # the note counts from the newer one, durably
        crash_point(BEFORE_SEAL)
        proposal = propose(
            bench,
            shipment,
            capture.instant,
            tracks,
            checkpoint=name,
            parent=None,
            changed_bytes=self._progress.done_bytes + changed_all,
            fresh=(self._adopted or True) if self._fresh else False,
            tally=encoder.tally,
        )
        shipment.seal(proposal, wait=True, cancel=self._cancel)
        return Captured(
            shipment=shipment,
            proposal=proposal,
            logs=self._logs,
            sent_bytes=encoder.sent_bytes,
            seconds=bench.clock.monotonic() - started,
            note=capture.instant.note,
            disks=disks,
            left_out=capture.left_out,
        )


def sizes_of(captured: Captured) -> dict[DiskId, int]:
    """The disks' sizes at the captured instant."""
    return {disk.id: disk.size_bytes for disk in captured.proposal.disks}
