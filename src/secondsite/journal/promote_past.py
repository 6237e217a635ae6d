"""Past a damage: where a promotion may go on when what it has to write cannot be read.

A promotion that was begun has taken the points below its floor from the list, and nothing else goes on before
it ends. When blocks it needs are damaged it cannot end, until a later point has them written again (by the
guest, or by repair): every point in between lacks them as well, so nothing readable is passed over.
"""

from __future__ import annotations

import numpy as np

from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import DiskIndex, open_disk_index, open_segment
from secondsite.journal.keys import KeyRing
from secondsite.journal.scrub_segment import UNUSABLE
from secondsite.journal.state import State
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState, Point


def point_past_damage(journal: Journal, keys: KeyRing) -> int | None:
    """The oldest point of which everything since the bases can be read, from the floor on; None: none is.

    Reads what the floor would write; then of each later point what the one before lacked, and its own.
    """
    state = journal.state()
    lost: dict[DiskId, Extents] | None = None
    for point in journal.points():
        if point.number <= state.promoted:
            continue
        found: dict[DiskId, Extents] = {}
        for disk in point.disks:
            where = None if lost is None else lost.get(disk.id, Extents.empty())
            found[disk.id] = _lost(journal, point, disk, state, keys=keys, before=where)
        if not any(len(where) for where in found.values()):
            return point.number
        lost = found
    return None


def _lost(
    journal: Journal, point: Point, disk: DiskState, state: State, *, keys: KeyRing, before: Extents | None
) -> Extents:
    """What cannot be read of a disk; before: what could not at the point before (None: look at all)."""
    try:
        where = None
        if before is not None:
            where = before.union(_written(journal, point, disk, keys))
        return _bad_pieces(open_disk_index(journal, disk.id, state, point.number, keys), where)
    except UNUSABLE:
        return Extents.whole(disk.size_bytes)


def _written(journal: Journal, point: Point, disk: DiskState, keys: KeyRing) -> Extents:
    where = Extents.empty()
    for ref in point.segments:
        if ref.disk == disk.id:
            index = open_segment(journal, ref, keys, disk).index
            starts = index["offset"].astype(np.int64)
            where = where.union(Extents.from_arrays(starts, starts + index["length"].astype(np.int64)))
    return where


def _bad_pieces(index: DiskIndex, where: Extents | None) -> Extents:
    layer = index.layer
    bad: list[tuple[int, int]] = []
    opened: tuple[int, bool] = (-1, True)
    rows = zip(layer.starts.tolist(), layer.ends.tolist(), layer.blocks.tolist(), strict=True)
    for start, end, block in rows:
        if index.zeros[block] or (where is not None and not len(where.intersect(Extents.of([(start, end)])))):
            continue
        if opened[0] != block:
            opened = (block, _opens(index, block))
        if not opened[1]:
            bad.append((start, end))
    return Extents.of(bad)


def _opens(index: DiskIndex, block: int) -> bool:
    try:
        index.read_block(block)
    except UNUSABLE:
        return False
    return True
