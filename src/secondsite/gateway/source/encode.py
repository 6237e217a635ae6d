"""From what a capture reads to sealed segments: digest once, drop what the target holds, seal, ship.

The capturing thread copies what it reads into batches; two threads (one a core of the smallest gateway) turn
batches into segments. Batches are few and used again, so memory is bounded: a slow encoder or link makes
`feed` wait, never grow. A cycle that fits one batch is encoded by its own thread, after the capture was
closed: an empty cycle costs no thread.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from secondsite.base.errors import SecondsiteError
from secondsite.base.units import BLOCK_BYTES_MAX, MIB, SUB_BLOCK_BYTES
from secondsite.gateway.source.subblocks import Bools, SideLog, SubBlockTable
from secondsite.gateway.source.tally import Looked, Tally
from secondsite.journal.compare import RANGE_BYTES, RANGE_SUB_BLOCKS, Comparison, runs
from secondsite.journal.digests import Digests, digest_sub_blocks, values_of
from secondsite.journal.keys import DiskKey
from secondsite.journal.segment import SegmentHead, SegmentWriter, blocks_of
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId, MachineId, SegmentId
from secondsite.model.points import SegmentRef
from secondsite.transfer.errors import TransferCancelled

BATCH_BYTES = 4 * MIB
# Two being encoded, one ready, one being filled.
BATCHES = 4
# Beyond each machine's first batch, for all machines of a process together: ten whose cycles fall together
# would hold 160 MiB. Who gets none goes on with one batch, reading and encoding in turn.
MORE_BATCHES = 3
# Many small pieces: the index of a batch must not outgrow its data.
BATCH_PIECES_MAX = 1024
THREADS = 2
# Rows for zeros in one segment: 64 KiB each, half of what an index may hold.
ZERO_BYTES_MAX = 2048 * BLOCK_BYTES_MAX


class Sink(Protocol):
    """What takes the segments: a `Shipment`, or a store."""

    @property
    def epoch(self) -> int:
        """The epoch they belong to."""

    def add(
        self,
        ref: SegmentRef,
        data: bytes | bytearray | memoryview,
        *,
        wait: bool = False,
        cancel: threading.Event | None = None,
    ) -> None:
        """See `Shipment.add`."""


@dataclass(eq=False)
class DiskTrack:
    """One disk of a cycle: its key, its table and the cycle's side log; what it is compared with, if so."""

    id: DiskId
    size_bytes: int
    key: DiskKey
    table: SubBlockTable | None = None
    log: SideLog | None = None
    comparison: Comparison | None = None
    repair: Extents = field(default_factory=Extents.empty)  # sent whatever the table says (rule 1)

    def must_send(self, first: int, differs: Bools) -> Bools:
        """`differs`, of the sub-blocks from `first` on, and those the target lost."""
        if not len(self.repair):
            return differs
        at = (first + np.arange(len(differs), dtype=np.int64)) * SUB_BLOCK_BYTES
        place = np.searchsorted(self.repair.ends, at, side="right")
        starts = np.append(self.repair.starts, np.iinfo(np.int64).max)
        return differs | (starts[place] <= at)


_more = threading.BoundedSemaphore(MORE_BATCHES)


@dataclass(eq=False)
class _Batch:
    buffer: memoryview
    track: DiskTrack | None = None
    pieces: list[tuple[int, int, int]] = field(default_factory=list)  # offset on the disk, start, length
    zeros: list[tuple[int, int]] = field(default_factory=list)  # offset, length
    filled: int = 0

    def is_near_full(self, offset: int) -> bool:
        """Whether the range that begins at `offset` may not fit whole: comparing it in parts is dearer."""
        begins = not self.pieces or self.pieces[-1][0] // RANGE_BYTES != offset // RANGE_BYTES
        pieces = len(self.pieces) + len(self.zeros) + RANGE_SUB_BLOCKS
        return begins and (self.filled + RANGE_BYTES > BATCH_BYTES or pieces > BATCH_PIECES_MAX)

    def clear(self) -> None:
        self.track, self.filled = None, 0
        self.pieces.clear()
        self.zeros.clear()


class Encoder:
    """Encodes one shipment. One thread feeds; `flush` before the next capture; `close` at the end."""

    def __init__(
        self,
        shipment: Sink,
        *,
        machine: MachineId,
        level: int | None,
        wait: bool,
        cancel: threading.Event,
        threads: int = THREADS,
    ) -> None:
        """wait: block while the cache is full (else CacheFull is raised, for the caller to pause)."""
        self._shipment = shipment
        self._machine = machine
        self._level = level
        self._wait = wait
        self._cancel = cancel
        self._threads = threads
        # bounded: every batch there is, so that putting one back never waits
        self._free: queue.Queue[_Batch] = queue.Queue(maxsize=BATCHES)
        self._made = 0  # batches; all but the first are of `_more`
        # bounded as above; None tells a worker to finish its open segments and wait at the gate
        self._ready: queue.Queue[_Batch | None] = queue.Queue(maxsize=BATCHES + threads)
        self._workers: list[threading.Thread] = []
        self._filling: _Batch | None = None
        self._error: BaseException | None = None
        self._gate = threading.Condition()
        self._finished = 0
        self._flushes = 0
        self._lock = threading.Lock()
        self.read_bytes = 0
        self.sent_bytes = 0  # stored, handed to the shipment
        self.kept_bytes = 0  # guest bytes in the segments
        self.tally = Tally()  # of what was flushed

    def feed(self, track: DiskTrack, offset: int, data: memoryview) -> None:
        """Take bytes of a disk, at most 1 MiB; copied before this returns. Raises what encoding raised."""
        batch = self._batch(track, len(data), offset)
        start = batch.filled
        batch.buffer[start : start + len(data)] = data
        batch.pieces.append((offset, start, len(data)))
        batch.filled += len(data)
        self.read_bytes += len(data)

    def zeros(self, track: DiskTrack, offset: int, length: int) -> None:
        """A range that reads as zeros, of any length; sent where the target may hold something else."""
        for first in range(offset, offset + length, ZERO_BYTES_MAX):
            count = min(ZERO_BYTES_MAX, offset + length - first)
            self._batch(track, 0).zeros.append((first, count))

    def flush(self) -> None:
        """Every byte taken so far is in the shipment when this returns. Raises what encoding raised."""
        self._check()
        if not self._workers:
            self._encode_here()
            return
        self._submit()
        for _ in self._workers:
            self._put(None)
        with self._gate:
            while self._finished < len(self._workers):
                self._gate.wait(1.0)
                self._check()
            self._finished = 0
            self._flushes += 1
            self._gate.notify_all()
        self._check()

    def close(self) -> None:
        """End the threads; what was not flushed is dropped."""
        if self._error is None:
            self._error = TransferCancelled(what=f"changes of machine {self._machine}")
        with self._gate:
            self._gate.notify_all()
        for _ in self._workers:  # wake those that wait for work; where it is full they do not wait
            with contextlib.suppress(queue.Full):
                self._ready.put_nowait(None)
        for worker in self._workers:
            worker.join()
        while self._made > 1:
            self._made -= 1
            _more.release()

    # -- inside ---------------------------------------------------------------------------------

    def ship(self, writer: SegmentWriter) -> None:
        """Hand a full segment over; called by whoever encodes."""
        if writer.is_empty:
            return
        data, ref = writer.finish()
        self._shipment.add(ref, data, wait=self._wait, cancel=self._cancel)
        with self._lock:
            self.sent_bytes += ref.stored_bytes
            self.kept_bytes += ref.data_bytes

    def writer(self, track: DiskTrack) -> SegmentWriter:
        """A new segment of a disk."""
        head = SegmentHead(
            machine=self._machine,
            disk=track.id,
            epoch=self._shipment.epoch,
            id=SegmentId(secrets.token_hex(16)),
            key_id=track.key.id,
            disk_size_bytes=track.size_bytes,
        )
        return SegmentWriter(head, track.key, self._level)

    def _batch(self, track: DiskTrack, length: int, offset: int | None = None) -> _Batch:
        assert length <= BATCH_BYTES
        batch = self._filling
        if batch is not None and (
            batch.track is not track
            or batch.filled + length > BATCH_BYTES
            or len(batch.pieces) + len(batch.zeros) >= BATCH_PIECES_MAX
            or (offset is not None and track.comparison is not None and batch.is_near_full(offset))
        ):
            self._submit()
            batch = None
        if batch is None:
            batch = self._take()
            batch.track = track
            self._filling = batch
        return batch

    def _reserve(self) -> bool:
        """Have a free batch without waiting for one, if there is any to be had."""
        if self._free.empty() and self._made < BATCHES and (not self._made or _more.acquire(blocking=False)):
            self._made += 1
            # not zeroed: a cycle of some KiB must not pay for its pages (6 ms for 16 MiB, measured)
            self._free.put(_Batch(np.empty(BATCH_BYTES, dtype=np.uint8).data))
        return not self._free.empty()

    def _take(self) -> _Batch:
        while True:
            self._check()
            self._reserve()
            try:
                return self._free.get(timeout=0.5)
            except queue.Empty:
                continue

    def _submit(self) -> None:
        if self._filling is None:
            return
        small = self.read_bytes < BATCH_BYTES and self._ready.qsize() < BATCHES - 2 and self._reserve()
        if not self._workers and not small:
            # with a single batch a second worker would only hold another half full segment
            self._workers = [
                threading.Thread(target=self._run, name=f"encode-{i}", daemon=True)
                for i in range(self._threads if self._reserve() else 1)
            ]
            for worker in self._workers:
                worker.start()
        batch, self._filling = self._filling, None
        self._put(batch)

    def _encode_here(self) -> None:
        """A few small batches (a cycle's, one a disk) are not worth starting threads for."""
        if self._filling is not None:
            self._put(self._filling)
            self._filling = None
        work = _Work(self)
        while not self._ready.empty():
            batch = self._ready.get_nowait()
            assert batch is not None
            work.encode(batch)
            self._recycle(batch)
        work.end()

    def _put(self, batch: _Batch | None) -> None:
        while True:
            self._check()
            try:
                self._ready.put(batch, timeout=0.5)
            except queue.Full:
                continue
            return

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._cancel.is_set():
            raise TransferCancelled(what=f"changes of machine {self._machine}")

    def _recycle(self, batch: _Batch) -> None:
        batch.clear()
        self._free.put(batch)

    def _run(self) -> None:
        """A worker's thread."""
        work = _Work(self)
        try:
            while self._error is None:
                try:
                    batch = self._ready.get(timeout=0.2)
                except queue.Empty:
                    continue
                if self._error is not None:
                    return
                if batch is None:
                    work.end()
                    self._wait_at_gate()
                else:
                    work.encode(batch)
                    self._recycle(batch)
        except BaseException as error:  # noqa: BLE001 - the thread's root: raised again where it is fed
            with self._lock:
                if self._error is None or not isinstance(self._error, SecondsiteError):
                    self._error = error
            with self._gate:
                self._gate.notify_all()

    def _wait_at_gate(self) -> None:
        """Each worker takes exactly one None: nobody goes on before all have finished their segments."""
        with self._gate:
            self._finished += 1
            self._gate.notify_all()
            # not `_finished`: a worker that wakes late may find it counting for the next flush already
            flush = self._flushes
            while self._flushes == flush and self._error is None:
                self._gate.wait(1.0)


class _Work:
    """What one encoding thread has open: a segment of one disk."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._track: DiskTrack | None = None
        self._writer: SegmentWriter | None = None
        self._tally = Tally()

    def encode(self, batch: _Batch) -> None:
        track = batch.track
        assert track is not None
        if track is not self._track:
            self.finish()
            self._track = track
        seed = track.key.digest_seed()
        pieces = []
        for offset, start, length in batch.pieces:
            first = offset // SUB_BLOCK_BYTES
            pieces.append((first, digest_sub_blocks(batch.buffer[start : start + length], first, seed)))
        zeros = batch.zeros
        if track.comparison is not None:
            zeros = self._compare(track, pieces, zeros)
        if pieces:
            self._pieces(track, batch, [digests for _, digests in pieces])
        for offset, length in zeros:
            self._zeros(track, offset, length)

    @staticmethod
    def _compare(
        track: DiskTrack, pieces: list[tuple[int, Digests]], zeros: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Let the table learn what the target holds of these; the zeros that it may not hold."""
        assert track.comparison is not None
        assert track.table is not None
        assert track.log is not None
        holes = [(offset // SUB_BLOCK_BYTES, -(-length // SUB_BLOCK_BYTES)) for offset, length in zeros]
        settled = track.comparison.settle(pieces, holes)
        for (first, _), values in zip(pieces, settled.pieces, strict=True):
            track.table.learn(track.log, first, values)
        left = []
        for first, values in settled.holes:
            track.table.learn(track.log, first, values)
            start, end = first * SUB_BLOCK_BYTES, (first + len(values)) * SUB_BLOCK_BYTES
            left.append((start, min(end, track.size_bytes) - start))
        return left

    def _pieces(self, track: DiskTrack, batch: _Batch, digests: list[Digests]) -> None:
        """Encode what the target may not hold. What is alike for all pieces is done once a batch."""
        counts = np.array([len(found) for found in digests])
        values = values_of(np.concatenate(digests))
        before = np.zeros(len(values), dtype=np.uint64)  # unknown
        differs = np.ones(len(values), dtype=np.bool_)
        first = 0
        for (offset, start, length), found in zip(batch.pieces, digests, strict=True):
            last = first + len(found)
            if track.table is not None and track.log is not None:
                differs[first:last] = track.table.changed(
                    track.log, offset // SUB_BLOCK_BYTES, values[first:last], before[first:last]
                )
            data = batch.buffer[start : start + length]
            differs[first:last] = track.must_send(offset // SUB_BLOCK_BYTES, differs[first:last])
            for begin, end in runs(differs[first:last]):
                piece = data[begin * SUB_BLOCK_BYTES : end * SUB_BLOCK_BYTES]
                self._room(len(piece)).add(offset + begin * SUB_BLOCK_BYTES, piece, found[begin:end])
            first = last
        starts = np.array([start for _, start, _ in batch.pieces])
        complete = track.table is None or track.table.complete
        self._tally.look(Looked(batch.buffer, starts, counts, values, before, differs, complete=complete))

    def _zeros(self, track: DiskTrack, offset: int, length: int) -> None:
        first, count = offset // SUB_BLOCK_BYTES, -(-length // SUB_BLOCK_BYTES)
        differs = np.ones(count, dtype=np.bool_)
        if track.table is not None and track.log is not None:
            differs = track.must_send(first, track.table.not_zero(track.log, first, count))
        rows, writer = 0, self._encoder.writer(track)
        for begin, end in runs(differs):
            start = offset + begin * SUB_BLOCK_BYTES
            size = min(end * SUB_BLOCK_BYTES, length) - begin * SUB_BLOCK_BYTES
            needed = blocks_of(start, size)
            if rows + needed > ZERO_BYTES_MAX // BLOCK_BYTES_MAX:
                self._encoder.ship(writer)
                rows, writer = 0, self._encoder.writer(track)
            writer.add_zeros(start, size)
            rows += needed
        self._encoder.ship(writer)

    def finish(self) -> None:
        """Ship what is open."""
        if self._writer is not None:
            self._encoder.ship(self._writer)
            self._tally.packed(self._writer.index)
        self._writer = None

    def end(self) -> None:
        """Everything taken so far is shipped and counted."""
        self.finish()
        self._encoder.tally.take(self._tally)

    def _room(self, length: int) -> SegmentWriter:
        assert self._track is not None
        if self._writer is not None and not self._writer.has_room(length):
            self.finish()
        if self._writer is None:
            self._writer = self._encoder.writer(self._track)
        return self._writer
