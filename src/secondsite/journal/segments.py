"""Opening segments of a journal, few at a time, and what stands in for one that cannot be used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import overload

import numpy as np

from secondsite.journal.chain import Journal
from secondsite.journal.errors import WrongKey, damaged
from secondsite.journal.format import INDEX_DTYPE
from secondsite.journal.keys import DiskKey, KeyRing
from secondsite.journal.segment import SegmentReader
from secondsite.journal.segment_head import SegmentHead
from secondsite.journal.segment_read import BlockIndex, Read
from secondsite.model.ids import KeyId
from secondsite.model.points import DiskState, SegmentRef

# An opened segment holds its index: 56 bytes a block, 230 kB at most.
READERS_MAX = 256


def open_segment(journal: Journal, ref: SegmentRef, keys: KeyRing, state: DiskState) -> SegmentReader:
    """A reader of a segment of the journal. Raises ObjectDamaged also when another segment has its name."""
    return open_with(journal, ref, keys.get(ref.sealed_by(state)))


def open_with(journal: Journal, ref: SegmentRef, key: DiskKey) -> SegmentReader:
    """As `open_segment`, with the key at hand."""
    name, store = journal.segment_name(ref), journal.store

    def read(start: int, length: int) -> bytes:
        try:
            return store.read(name, start, length)
        except EOFError:
            raise damaged(name, "it is shorter than its point says") from None

    return read_segment(journal, ref, key, read)


def read_segment(journal: Journal, ref: SegmentRef, key: DiskKey, read: Read) -> SegmentReader:
    """A reader of what should be the segment `ref`; see `open_segment`."""
    name = journal.segment_name(ref)
    try:
        reader = SegmentReader(read, ref.stored_bytes, key)
    except WrongKey as error:
        # the key is the one the point names: it is the object that is another
        raise damaged(name, f"it is sealed with the key {error.fields['needed']}") from None
    head = reader.head
    # seals bind blocks to what the header says: it must be what the point says
    if (head.machine, head.disk, head.id) != (journal.machine, ref.disk, ref.id):
        raise damaged(name, f"it is segment {head.id} of disk {head.disk} of machine {head.machine}")
    return reader


class LostSegment(SegmentReader):
    """In the place of a segment that cannot be used: it has no blocks to give."""

    def __init__(self, journal: Journal, ref: SegmentRef, size_bytes: int) -> None:
        self.size = ref.stored_bytes
        # no key is this one: merging never keeps it as it is
        self.head = SegmentHead(journal.machine, ref.disk, ref.epoch, ref.id, KeyId(""), size_bytes)

    @property
    def index(self) -> BlockIndex:
        """No rows."""
        return np.empty(0, dtype=INDEX_DTYPE)


class Readers(Sequence[SegmentReader]):
    """Segments by number, opened when asked for; the least recently used are let go. Thread-safe."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: list[tuple[SegmentRef, DiskKey]] = []
        self._lost: dict[int, LostSegment] = {}
        self._open: OrderedDict[int, SegmentReader] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, ref: SegmentRef, key: DiskKey) -> int:
        """Know one more; returns its number."""
        self._known.append((ref, key))
        return len(self._known) - 1

    def lose(self, number: int, size_bytes: int) -> None:
        """One of them cannot be used."""
        ref, _ = self._known[number]
        self._lost[number] = LostSegment(self._journal, ref, size_bytes)

    def ref(self, number: int) -> SegmentRef:
        """As a manifest, a span or a page names it."""
        return self._known[number][0]

    def __len__(self) -> int:
        return len(self._known)

    @overload
    def __getitem__(self, number: int) -> SegmentReader: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[SegmentReader]: ...
    def __getitem__(self, number: int | slice) -> SegmentReader | Sequence[SegmentReader]:
        """The opened segment. Raises what opening raises."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        lost = self._lost.get(number)
        if lost is not None:
            return lost
        with self._lock:
            found = self._open.get(number)
            if found is not None:
                self._open.move_to_end(number)
                return found
        ref, key = self._known[number]
        reader = open_with(self._journal, ref, key)
        with self._lock:
            self._open[number] = reader
            while len(self._open) > READERS_MAX:
                self._open.popitem(last=False)
        return reader
