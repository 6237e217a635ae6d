"""Many objects of a base's sums become one, with the newest sum of each 64 KiB.

A promotion adds an object; years of them would be many. The one that replaces them is named by the newest it
holds with ``.all`` after it: it sorts behind that and before all younger ones, so that readers, for whom
later rows win, read the same while both are there. It is whole before the first of the others goes.
"""

from __future__ import annotations

from collections.abc import Iterator

import blake3
import numpy as np

from secondsite.journal.base_sums import ROW, Sums, read_rows, sums_head
from secondsite.journal.errors import damaged
from secondsite.journal.names import base_sums_prefix
from secondsite.journal.store import ObjectExists, ObjectStore, StagedObject
from secondsite.model.ids import DiskId, MachineId

OBJECTS_MAX = 16
WINDOW = 64 * 1024  # numbers that are looked at together: 4 GiB of the disk
SUFFIX = ".all"


def merge_sums(
    store: ObjectStore, machine: MachineId, disk: DiskId, *, objects_max: int = OBJECTS_MAX
) -> int:
    """When there are more than `objects_max` objects, make them one; returns how many went.

    For whoever promotes the disk: nobody else may add sums meanwhile. Memory is bounded by the number of
    objects, not by the disk. Raises ObjectDamaged for a damaged one, and leaves all of them then.
    """
    names = list(store.list(base_sums_prefix(machine, disk)))
    if len(names) <= objects_max:
        return 0
    newest = names[-1]
    # cut off after it was whole, only the deleting is left
    whole = newest if newest.endswith(SUFFIX) else newest + SUFFIX
    if whole != newest:
        _write(store, names, whole)
    for name in names:
        if name != whole:
            store.delete(name)
    return len(names) - (whole == newest)


def _write(store: ObjectStore, names: list[str], whole: str) -> None:
    # the head holds the number of rows and is hashed before them, so they are read three times, seldom
    head = sums_head(sum(len(rows) for rows in _newest(store, names)))
    hasher = blake3.blake3(head)
    for rows in _newest(store, names):
        hasher.update(rows.tobytes())
    staged = _stage(store, whole)
    if staged is None:
        return
    try:
        staged.append(head + hasher.digest())
        for rows in _newest(store, names):
            staged.append(rows.tobytes())
        staged.publish()
    except ObjectExists:
        return
    finally:
        staged.close()


def _stage(store: ObjectStore, name: str) -> StagedObject | None:
    """Begun from nothing: what a crash left may be damaged. None: it is there already."""
    try:
        staged = store.stage(name)
        if staged.offset:
            staged.discard()
            staged.close()
            staged = store.stage(name)
    except ObjectExists:
        return None
    return staged


def _newest(store: ObjectStore, names: list[str]) -> Iterator[Sums]:
    """The newest row of each number, ascending, a window at a time."""
    sources = [_Source(store, name) for name in names]
    while (first := min((s.first for s in sources if s.first is not None), default=None)) is not None:
        start = first // WINDOW * WINDOW
        rows = np.zeros(WINDOW, dtype=ROW)
        known = np.zeros(WINDOW, dtype=np.bool_)
        for source in sources:
            for part in source.take(start + WINDOW):
                at = part["number"].astype(np.int64) - start
                rows[at], known[at] = part, True
        yield rows[known]


class _Source:
    """The rows of one object, read as far as they are needed."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._name = name
        self._parts = read_rows(store, name)
        self._part: Sums = np.empty(0, dtype=ROW)
        self._last = -1
        self._fill()

    @property
    def first(self) -> int | None:
        """The number of the next row; None at the end."""
        return int(self._part["number"][0]) if len(self._part) else None

    def take(self, end: int) -> Iterator[Sums]:
        """The rows with numbers below `end`."""
        while len(self._part):
            count = int(np.searchsorted(self._part["number"], end))
            if count:
                yield self._part[:count]
            self._part = self._part[count:]
            if len(self._part):
                return
            self._fill()

    def _fill(self) -> None:
        self._part = next(self._parts, np.empty(0, dtype=ROW))
        numbers = self._part["number"].astype(np.int64)
        if len(numbers):
            if numbers[0] <= self._last or (np.diff(numbers) <= 0).any():
                raise damaged(self._name, "its rows are not in order")
            self._last = int(numbers[-1])
