"""Merging: neighbouring points become one, whose segments hold what all of them changed, the newest winning.

The order, each step safe to repeat or to abandon after a crash:

1. the state names the span that is being written: what lies under its id is not garbage;
2. its segments are written, then its object, which names them;
3. the state takes the span in: from now on only its last point is listed. Refused when somebody pinned a
   point in between, or another merge began; then the state is as it was and what was written is garbage;
4. what no reader uses any more is deleted (`delete_retired`): pins older than step 3 keep it.

A segment that is large and mostly alive stays as it is and is only named by the span: so the cost follows
what changed, also where a journal without a base carries the whole disk.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.units import BLOCK_BYTES_MAX, MIB, SUB_BLOCK_BYTES
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import PointUnknown
from secondsite.journal.disk_index import DiskIndex, disk_points, merge_index
from secondsite.journal.format import PROPOSAL_BYTES_MAX, REF_BYTES
from secondsite.journal.keys import KeyRing
from secondsite.journal.manifest import encode_span, record_hash
from secondsite.journal.merged_index import Layer
from secondsite.journal.names import merged_name, span_id, span_name
from secondsite.journal.segment import SegmentHead, SegmentReader, SegmentWriter
from secondsite.journal.state import Dropped, Retired, SpanRef, State
from secondsite.journal.store import ObjectExists
from secondsite.model.ids import DiskId, SegmentId
from secondsite.model.points import ZERO_HASH, DiskState, Point, SegmentRef, Span

AFTER_INTENT = mark("merge.after-intent")
AFTER_SEGMENT = mark("merge.after-segment")
AFTER_SPAN = mark("merge.after-span")
AFTER_TAKEN_IN = mark("merge.after-taken-in")

# Smaller segments are always written together: a store pays for objects.
KEPT_STORED_BYTES_MIN = 4 * MIB
# Of a kept segment at least half is alive; below that the room it wastes costs more than writing it again.
KEPT_ALIVE = 0.5
# What arrives as many small points is compressed already; nothing is compressed again but cut blocks.
LEVEL = 1


class NotMergeable(Exception):
    """Why these points stay as they are; nothing was changed."""


class Cancelled(Exception):
    """The caller wanted to stop; nothing was changed."""


@dataclass(frozen=True)
class _Job:
    """What every disk of a merge is merged with."""

    journal: Journal
    span: str
    keys: KeyRing
    done: Merged
    cancel: threading.Event | None
    on_bytes: Callable[[int], None] | None


@dataclass
class Merged:
    """What a merge did."""

    first: int
    last: int
    points: int = 0  # that are no longer listed
    read_bytes: int = 0  # of guest data
    written_bytes: int = 0  # stored
    kept_segments: int = 0  # named by the span as they are
    written_segments: int = 0


def merge(
    journal: Journal,
    after: int,
    last: int,
    keys: KeyRing,
    *,
    clock: Clock,
    cancel: threading.Event | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Merged:
    """Make one point of those after point `after` up to point `last`, which stays.

    after: a listed point, what the bases hold, or 0 for the beginning. on_bytes: told of each block's length,
    to keep a pace.

    Raises:
        NotMergeable: a pin, a promotion or another merge is in the way, or there is nothing to merge.
        Cancelled. ObjectDamaged and what the store raises: nothing was changed, repeat it.
    """
    state = journal.state()
    dropped = state.dropped
    if isinstance(dropped, Dropped):
        after = max(after, dropped.number)  # that is the beginning
    points, hashes = _range(journal, state, after, last)
    first = after + 1
    span = span_id(first, last, secrets.token_hex(4))
    journal.update_state(lambda now: _intend(now, span, after, last, clock))
    crash_point(AFTER_INTENT)
    done = Merged(first, last, points=len(points) - 1)
    job = _Job(journal, span, keys, done, cancel, on_bytes)
    try:
        segments: list[SegmentRef] = []
        for disk, size_before in _disks(journal, state, points, after):
            segments += _DiskMerger(job, disk, points).run(size_before)
        made = Span(
            machine=journal.machine,
            id=span,
            first=first,
            last=last,
            segments=tuple(segments),
            points=len(points),
            arrived_bytes=_arrived(journal, state, points),
            made_at=_now(clock),
        )
        _put_span(journal, made, hashes, clock)
    except (NotMergeable, Cancelled):
        journal.update_state(lambda now: _give_up(now, span))
        raise
    crash_point(AFTER_TAKEN_IN)
    return done


def _arrived(journal: Journal, state: State, points: Sequence[Point]) -> int:
    """What the points were as they came; 0 when a span among them does not know."""
    ids = {span.last: span.id for span in state.spans}
    total = 0
    for point in points:
        if point.number not in ids:
            total += point.sent_bytes
            continue
        span = journal.read_span(ids[point.number])
        if span is None or not span.arrived_bytes:
            return 0
        total += span.arrived_bytes
    return total


def _put_span(journal: Journal, span: Span, hashes: tuple[str, str], clock: Clock) -> None:
    """Steps 2 (its end) and 3."""
    data = encode_span(span, journal.log_key)
    journal.store.put(span_name(journal.machine, span.id), data)
    crash_point(AFTER_SPAN)
    ref = SpanRef(
        id=span.id,
        first=span.first,
        last=span.last,
        previous_hash=hashes[0],
        hash=hashes[1],
        object_hash=record_hash(data),
    )
    journal.update_state(lambda now: _take_in(now, ref, clock))


def abandon(journal: Journal) -> None:
    """Forget a merge that was cut off: what it wrote is garbage from now on. A living one gives up later."""
    journal.update_state(lambda now: msgspec.structs.replace(now, merging="") if now.merging else now)


def _give_up(state: State, span: str) -> State:
    return msgspec.structs.replace(state, merging="") if state.merging == span else state


def _now(clock: Clock) -> str:
    return clock.utc().isoformat(timespec="microseconds")


def _range(journal: Journal, state: State, after: int, last: int) -> tuple[list[Point], tuple[str, str]]:
    """The points to merge, and the hashes of the record before them and of the last one."""
    if after < max(state.begins, state.floor):
        raise NotMergeable(f"point {after} is being promoted")
    try:
        hashes = (_hash_before(journal, state, after), journal.record_hash(last))
    except PointUnknown:
        raise NotMergeable(f"there is no point {after}, or no point {last}") from None
    points = [point for point in journal.points_after(after) if point.number <= last]
    if len(points) < 2 or points[-1].number != last:
        raise NotMergeable(f"between {after} and {last} there is nothing to merge")
    count = sum(len(point.segments) for point in points)
    if count * REF_BYTES > PROPOSAL_BYTES_MAX:  # they may all be full, and then none of them goes
        raise NotMergeable(f"one record cannot name the {count} segments of points {after} to {last}")
    return points, hashes


def _hash_before(journal: Journal, state: State, after: int) -> str:
    if isinstance(state.dropped, Dropped) and state.dropped.number == after:
        return state.dropped.hash
    return journal.record_hash(after) if after else ZERO_HASH


def _in_the_way(state: State, after: int, last: int, clock: Clock) -> str | None:
    if after < max(state.begins, state.floor):
        return f"point {after} is being promoted"
    held = next((pin for pin in state.pins_at(_now(clock)) if after < pin.number < last), None)
    if held is not None:
        return f"point {held.number} is pinned by {held.holder}"
    if any(span.first <= after < span.last or span.first <= last < span.last for span in state.spans):
        return "another merge was faster"
    return None


def _intend(state: State, span: str, after: int, last: int, clock: Clock) -> State:
    why = _in_the_way(state, after, last, clock)
    if why is not None:
        raise NotMergeable(why)
    return msgspec.structs.replace(state, merging=span)


def _take_in(state: State, ref: SpanRef, clock: Clock) -> State:
    why = _in_the_way(state, ref.first - 1, ref.last, clock)
    if why is None and state.merging != ref.id:
        why = "another merge began"
    if why is not None:
        raise NotMergeable(why)
    replaced = [span for span in state.spans if ref.first <= span.first and span.last <= ref.last]
    retired = [
        Retired(first=span.first, last=span.last, span=span.id, generation=state.generation + 1)
        for span in replaced
    ]
    at = ref.first
    for span in [*replaced, None]:
        end = span.first - 1 if span else ref.last
        if at <= end:
            retired.append(Retired(first=at, last=end, generation=state.generation + 1))
        at = span.last + 1 if span else at
    spans = [span for span in state.spans if span not in replaced]
    return msgspec.structs.replace(
        state,
        merging="",
        spans=tuple(sorted([*spans, ref], key=lambda span: span.first)),
        retired=(*state.retired, *retired),
    )


def _disks(journal: Journal, state: State, points: Sequence[Point], after: int) -> list[tuple[DiskId, int]]:
    """Every disk any of the points has, with its size before the first of them."""
    before = [point for point in journal.points_after(state.promoted) if point.number <= after]
    found: dict[DiskId, int] = {}
    for point in points:
        for disk in point.disks:
            if disk.id not in found:
                base = state.base(disk.id)
                sizes = [had.size_bytes for _, had in disk_points(reversed(before), disk.id)]
                found[disk.id] = sizes[0] if sizes else base.size_bytes if base else 0
    return list(found.items())


class _DiskMerger:
    """Writes the segments of one disk."""

    def __init__(self, job: _Job, disk: DiskId, points: Sequence[Point]) -> None:
        self._journal, self._span, self._done, self._disk = job.journal, job.span, job.done, disk
        self._keys, self._cancel, self._on_bytes = job.keys, job.cancel, job.on_bytes
        self._points = points
        found = list(disk_points(points, disk))
        self._state: DiskState = found[-1][1]
        self._epoch = found[-1][0].epoch
        sealed = [
            ref.sealed_by(state) for point, state in found for ref in point.segments if ref.disk == disk
        ]
        self._key = job.keys.get(sealed[-1] if sealed else self._state.key_id)  # the newest
        self._written: list[SegmentRef] = []
        self._writer: SegmentWriter | None = None

    def run(self, size_before: int) -> list[SegmentRef]:
        """The span's segments of the disk, in writing order."""
        index = merge_index(self._journal, self._disk, self._points, size_before, self._keys)
        layer, odd = _whole_sub_blocks(index, self._state.size_bytes)
        kept = self._kept(index, layer)
        self._done.kept_segments += len(kept)
        in_kept = np.isin(index.segments, list(kept))
        rows = zip(layer.starts.tolist(), layer.ends.tolist(), layer.blocks.tolist(), strict=True)
        for start, end, block in rows:
            if self._cancel is not None and self._cancel.is_set():
                raise Cancelled
            if block >= 0 and in_kept[block]:
                continue
            self._copy(index, start, end, block, odd)
            if self._on_bytes is not None:
                self._on_bytes(end - start)
        self._finish()
        # what was written is alive and nothing else: it may come last
        return [index.readers.ref(number) for number in sorted(kept)] + self._written

    def _kept(self, index: DiskIndex, layer: Layer) -> set[int]:
        """Segments that stay as they are, by their place in the index."""
        lengths = layer.ends - layer.starts
        owned = layer.blocks >= 0
        owners = index.segments[layer.blocks[owned]]
        alive = np.zeros(len(index.readers), dtype=np.int64)
        np.add.at(alive, owners[owners >= 0], lengths[owned][owners >= 0])
        kept = set()
        for number in range(len(index.readers)):
            ref = index.readers.ref(number)
            if ref.stored_bytes < KEPT_STORED_BYTES_MIN or alive[number] < KEPT_ALIVE * ref.data_bytes:
                continue
            reader = index.readers[number]
            rows = reader.index
            end = int((rows["offset"] + rows["length"]).max()) if len(rows) else 0
            if (
                reader.head.key_id == self._key.id
                # beyond the end it would come back when the disk grows again
                and end <= self._state.size_bytes
            ):
                kept.add(number)
        return kept

    def _copy(self, index: DiskIndex, start: int, end: int, block: int, odd: dict[int, bytes]) -> None:
        """One piece into the segment at hand."""
        if block < 0:
            data = odd[start]
            self._room(len(data)).add(start, memoryview(data))
        elif index.zeros[block]:
            while start < end:
                writer = self._room(0)
                stop = min(end, (start // BLOCK_BYTES_MAX + writer.blocks_left) * BLOCK_BYTES_MAX)
                writer.add_zeros(start, stop - start)
                start = stop
        else:
            self._copy_block(index, start, end, block)
        self._done.read_bytes += end - start

    def _copy_block(self, index: DiskIndex, start: int, end: int, block: int) -> None:
        reader: SegmentReader = index.readers[int(index.segments[block])]
        number, offset = int(index.positions[block]), int(index.offsets[block])
        same_key = reader.head.key_id == self._key.id
        if same_key and start == offset and end - start == int(reader.index["length"][number]):
            self._room(end - start).add_packed(reader.read_packed(number), reader.block_digests(number))
            return
        data = memoryview(reader.read_block(number))[start - offset : end - offset]
        self._room(end - start).add(start, data)

    def _room(self, length: int) -> SegmentWriter:
        """The segment at hand with room for `length` bytes and a block; a full one is put first."""
        writer = self._writer
        if writer is not None and writer.has_room(length) and writer.blocks_left > 1:
            return writer
        self._finish()
        head = SegmentHead(
            self._journal.machine,
            self._disk,
            self._epoch,
            SegmentId(secrets.token_hex(16)),
            self._key.id,
            self._state.size_bytes,
        )
        self._writer = SegmentWriter(head, self._key, LEVEL)
        return self._writer

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None or writer.is_empty:
            return
        data, ref = writer.finish()
        ref = msgspec.structs.replace(ref, merged=self._span)
        name = merged_name(self._journal.machine, self._span, self._disk, ref.id)
        with contextlib.suppress(ObjectExists):  # a random id: only our own put, answered too late
            self._journal.store.put(name, data)
        crash_point(AFTER_SEGMENT)
        self._written.append(ref)
        self._done.written_segments += 1
        self._done.written_bytes += ref.stored_bytes


def _whole_sub_blocks(index: DiskIndex, size_bytes: int) -> tuple[Layer, dict[int, bytes]]:
    """The layer, cut at sub-blocks only, and the content of sub-blocks that had to be put together.

    Pieces begin and end in the middle of a sub-block only where a disk once ended. What follows such an end
    in the same sub-block reads as zeros until it is written.
    """
    layer = index.layer
    ends = layer.ends[(layer.ends % SUB_BLOCK_BYTES != 0) & (layer.ends != size_bytes)]
    starts = layer.starts[layer.starts % SUB_BLOCK_BYTES != 0]
    numbers = np.unique(np.concatenate((ends, starts)) // SUB_BLOCK_BYTES)
    odd = {}
    for number in numbers.tolist():
        start = number * SUB_BLOCK_BYTES
        odd[start] = _put_together(index, start, min(start + SUB_BLOCK_BYTES, size_bytes))
    begin = numbers.astype(np.int64) * SUB_BLOCK_BYTES
    cover = Layer(
        begin,
        np.minimum(begin + SUB_BLOCK_BYTES, size_bytes),
        np.full(len(begin), -1, dtype=np.int64),
    )
    return layer.under(cover), odd


def _put_together(index: DiskIndex, start: int, end: int) -> bytes:
    layer = index.layer
    first = int(np.searchsorted(layer.ends, start, side="right"))
    content, at = bytearray(end - start), start
    while first < len(layer) and layer.starts[first] < end:
        piece_start, piece_end = max(int(layer.starts[first]), start), min(int(layer.ends[first]), end)
        block = int(layer.blocks[first])
        if at == start and piece_start > start:
            # what comes before lies in an older point or the base
            raise NotMergeable(f"the disk ended inside the 4 KiB at {start}")
        if not index.zeros[block]:
            offset = int(index.offsets[block])
            content[piece_start - start : piece_end - start] = index.read_block(block)[
                piece_start - offset : piece_end - offset
            ]
        at = piece_end
        first += 1
    return bytes(content)
