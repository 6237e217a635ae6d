"""Promotion: what the journal holds up to a point is written into the bases, and leaves the journal.

The order, each step safe to repeat after a crash (rule 6):

1. the state's floor rises to the point (never above a pinned one): points below leave the list;
2. the bases are written: a view of the floor or younger reads everything that is written now from its
   segments, so nobody reads a block while it changes;
3. the bases are synced, their sums are put into the store;
4. the state says that the bases hold the floor;
5. segments of the floor and below go, except those a pinned reader may still use, then the records below;
   of sums that have become many, one object is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.journal.base_sums import put_sums, sum_base
from secondsite.journal.base_sums_merge import merge_sums
from secondsite.journal.bases import BaseImage
from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import DiskIndex, open_disk_index
from secondsite.journal.errors import FormatUnknown, ObjectDamaged
from secondsite.journal.keys import KeyRing
from secondsite.journal.manifest import RECORD_BYTES_MAX, record_hash
from secondsite.journal.names import log_name
from secondsite.journal.state import BaseState, Retired, State
from secondsite.journal.store import StoreFull
from secondsite.journal.sweep import delete_promoted, delete_retired
from secondsite.journal.view import check_base
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId
from secondsite.model.points import Point

AFTER_FLOOR = mark("promote.after-floor")
AFTER_WRITES = mark("promote.after-writes")
AFTER_SUMS = mark("promote.after-sums")
AFTER_PROMOTED = mark("promote.after-promoted")

# Opens a disk's base for writing, or makes it: (disk, its size, what the state knows of its base).
OpenBase = Callable[[DiskId, int, BaseState | None], BaseImage]


@dataclass
class Promoted:
    """What a promotion did."""

    floor: int
    written_bytes: int = 0
    zeroed_bytes: int = 0
    segments_deleted: int = 0
    held_back_by: tuple[str, ...] = field(default=())  # holders of pins below the point asked for


def promote(
    journal: Journal,
    up_to: int,
    keys: KeyRing,
    open_base: OpenBase,
    *,
    clock: Clock,
    past_damage: bool = False,
) -> Promoted:
    """Bring the bases up to point `up_to`, or as far as pins allow. Repeat it after any failure.

    past_damage: a promotion that was cut off and cannot end, since what it has to write is damaged, is passed
    over: `up_to` is `point_past_damage`, which writes all of it again. Not done while a pin forbids it.

    Raises:
        PointUnknown: there is no such point. BaseMismatch, BaseFailed, ObjectDamaged: nothing is lost.
    """
    state = journal.state()
    if state.floor > state.promoted:
        # a promotion was cut off between the floor and the end: its work comes first
        held = [pin for pin in state.pins_at(_now(clock)) if pin.number < up_to]
        if not past_damage or held:
            _write_bases(journal, state, keys, open_base, Promoted(state.floor))
            state = journal.state()
    now = _now(clock)
    pins = [pin for pin in state.pins_at(now) if pin.number < up_to]
    allowed = min([up_to, *(pin.number for pin in pins)])
    done = Promoted(max(allowed, state.floor), held_back_by=tuple(pin.holder for pin in pins))
    if allowed > state.promoted:
        state = _raise_floor(journal, allowed, open_base, now)
        crash_point(AFTER_FLOOR)
        _write_bases(journal, state, keys, open_base, done)
    done.segments_deleted = delete_promoted(journal, clock=clock) + delete_retired(journal, clock=clock)
    for base in journal.state().bases:
        with contextlib.suppress(ObjectDamaged, FormatUnknown, StoreFull):  # verify names what is damaged
            merge_sums(journal.store, journal.machine, base.disk)
    return done


def _now(clock: Clock) -> str:
    return clock.utc().isoformat(timespec="microseconds")


def _raise_floor(journal: Journal, number: int, open_base: OpenBase, now: str) -> State:
    """Step 1. Bases are made and registered with it, empty and synced: a view may stand on them at once."""
    point = journal.point(number)
    data = journal.store.get(log_name(journal.machine, number), size_bytes_max=RECORD_BYTES_MAX)
    before = journal.state()
    made: list[BaseState] = []
    for disk in point.disks:
        known = before.base(disk.id)
        if known is None:
            base = open_base(disk.id, disk.size_bytes, None)
            try:
                base.sync()
                made.append(
                    BaseState(
                        disk=disk.id,
                        locator=base.locator,
                        identity=base.identity,
                        size_bytes=base.size_bytes,
                        format=base.format,
                    )
                )
            finally:
                base.close()

    def change(state: State) -> State:
        # a pin made since we looked holds the floor back: the caller comes again
        if any(pin.number < number for pin in state.pins_at(now)) or number <= max(state.floor, state.begins):
            return state
        fresh = tuple(base for base in made if state.base(base.disk) is None)
        return msgspec.structs.replace(
            state, floor=number, floor_hash=record_hash(data), bases=(*state.bases, *fresh)
        )

    return journal.update_state(change)


def _write_bases(journal: Journal, state: State, keys: KeyRing, open_base: OpenBase, done: Promoted) -> None:
    """Steps 2 to 4, from what the state says the bases hold to the floor."""
    if state.floor <= state.promoted:
        return
    point = journal.point(state.floor)
    for disk in point.disks:
        base = open_base(disk.id, disk.size_bytes, state.base(disk.id))
        try:
            check_base(journal.machine, state, disk.id, base)
            changed = _resize(base, disk.size_bytes, state.base(disk.id))
            index = open_disk_index(journal, disk.id, state, state.floor, keys)
            _write_disk(base, index, done)
            base.sync()
            crash_point(AFTER_WRITES)
            changed = changed.union(index.layer.extents())
            sums = sum_base(base, changed, keys.get(disk.key_id).digest_seed())
            put_sums(journal.store, journal.machine, disk.id, state.floor, sums)
        finally:
            base.close()
    crash_point(AFTER_SUMS)
    journal.update_state(lambda current: _promoted(current, point))
    crash_point(AFTER_PROMOTED)


def _resize(base: BaseImage, size_bytes: int, known: BaseState | None) -> Extents:
    """Give the base the disk's size (nobody reads an older one any more); returns the old end's 64 KiB.

    The old size is the state's: a promotion cut off after it resized the base still owes the sum there.
    """
    before = known.size_bytes if known else base.size_bytes
    if base.size_bytes != size_bytes:
        base.resize(size_bytes)
    if before == size_bytes:
        return Extents.empty()
    end = min(before, size_bytes)
    return Extents.of([(max(0, end - 1), end)])


def _promoted(state: State, point: Point) -> State:
    if point.number > state.floor:
        return state  # all points were deleted meanwhile
    sizes = {disk.id: disk.size_bytes for disk in point.disks}
    bases = tuple(
        msgspec.structs.replace(base, size_bytes=sizes.get(base.disk, base.size_bytes))
        for base in state.bases
    )
    gone = [span for span in state.spans if span.last <= point.number]
    retired = [
        Retired(first=span.first, last=span.last, span=span.id, generation=state.generation + 1)
        for span in gone
    ]
    return msgspec.structs.replace(
        state,
        promoted=max(state.promoted, point.number),
        bases=bases,
        spans=tuple(span for span in state.spans if span not in gone),
        retired=(*state.retired, *retired),
    )


def _write_disk(base: BaseImage, index: DiskIndex, done: Promoted) -> None:
    """Write every piece of the merged index, in ascending order; neighbouring zeros are one hole."""
    layer = index.layer
    hole = (0, 0)
    held: tuple[int, bytes] = (-1, b"")
    rows = zip(layer.starts.tolist(), layer.ends.tolist(), layer.blocks.tolist(), strict=True)
    for start, end, block in rows:
        if index.zeros[block]:
            if hole[1] != start:
                _punch(base, hole, done)
                hole = (start, start)
            hole = (hole[0], end)
            continue
        if held[0] != block:
            held = (block, index.read_block(block))
        first = int(index.offsets[block])
        base.write(start, memoryview(held[1])[start - first : end - first])
        done.written_bytes += end - start
    _punch(base, hole, done)


def _punch(base: BaseImage, hole: tuple[int, int], done: Promoted) -> None:
    if hole[1] > hole[0]:
        base.zero(hole[0], hole[1] - hole[0])
        done.zeroed_bytes += hole[1] - hole[0]
