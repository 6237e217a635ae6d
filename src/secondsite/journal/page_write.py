"""Making pages, one at a time, and deleting those that stand for nothing any more."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.journal.chain import Journal
from secondsite.journal.disk_index import DiskIndex, disk_points, merge_index
from secondsite.journal.keys import KeyRing
from secondsite.journal.log_pages import RECORDS, encode_log_page
from secondsite.journal.manifest import RECORD_BYTES_MAX, decode_record, record_hash
from secondsite.journal.names import (
    log_name,
    log_page_name,
    log_pages_prefix,
    page_name,
    pages_prefix,
    parse_page_name,
)
from secondsite.journal.page_catalog import Pages
from secondsite.journal.pages import LEVELS, PIECES_MAX, Page, aligned, encode_page
from secondsite.journal.state import State
from secondsite.journal.store import ObjectExists
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState, Point

AFTER_PAGE = mark("page.after-put")


@dataclass(frozen=True)
class _Stretch:
    """Records a page may stand for."""

    disk: DiskId
    size: int
    first: int
    points: tuple[Point, ...]  # listed, in order

    @property
    def last(self) -> int:
        return self.first + self.size - 1


def write_page(journal: Journal, keys: KeyRing, *, without: set[tuple[DiskId, int, int]]) -> str | None:
    """Make one page that is missing, the small ones first. Returns its name, None when there is none to make.

    without: (disk, size, first record) of pages that cannot be made; added to here.
    """
    for stretch, pages in _missing(journal, keys):
        place = (stretch.disk, stretch.size, stretch.first)
        if place in without:
            continue
        name = _write(journal, keys, stretch, pages)
        if name is not None:
            return name
        without.add(place)
    return None


def _missing(journal: Journal, keys: KeyRing) -> Iterator[tuple[_Stretch, Pages]]:
    head, state = journal.head(), journal.state()
    if head.point is None:
        return
    begin = max(state.begins, state.floor)
    points = journal.points_after(begin)
    catalogs = {disk.id: Pages(journal, disk.id, keys) for disk in head.point.disks}
    for size in LEVELS:
        by_stretch = itertools.groupby(points, key=lambda point: aligned(point.number, size)[0])
        for first, inside in by_stretch:
            if first <= begin or first + size - 1 > head.number:
                continue
            found = tuple(inside)
            for disk, pages in catalogs.items():
                stretch = _Stretch(disk, size, first, found)
                if (size, first) not in pages and not pages.is_replaced(first, stretch.last):
                    yield stretch, pages


def _write(journal: Journal, keys: KeyRing, stretch: _Stretch, pages: Pages) -> str | None:
    disk = stretch.disk
    found = list(disk_points(stretch.points, disk))
    if len(found) < 2 or len({state.key_id for _, state in found}) != 1:
        return None
    size_bytes = found[0][1].size_bytes
    try:
        index = merge_index(journal, disk, stretch.points, size_bytes, keys, pages=pages, clip=False)
    except SecondsiteError as error:
        if error.retryable:
            raise
        return None  # a damaged segment; scrubbing says so
    if len(index.layer) > PIECES_MAX:
        return None
    page = _page(journal, index, found, (stretch.first, stretch.last))
    if page is None:
        return None
    name = page_name(journal.machine, disk, stretch.size, stretch.first, len(found))
    with contextlib.suppress(ObjectExists):
        journal.store.put(name, encode_page(page, journal.machine, disk, keys.get(page.key_id)))
    crash_point(AFTER_PAGE)
    return name


def _page(
    journal: Journal, index: DiskIndex, found: list[tuple[Point, DiskState]], place: tuple[int, int]
) -> Page | None:
    """None: its segments are sealed with several keys, and a page names one."""
    blocks = index.layer.blocks
    owners = index.segments[blocks]
    used, numbers = np.unique(owners[owners >= 0], return_inverse=True)
    renumbered = np.full(len(owners), -1, dtype=np.int32)
    renumbered[owners >= 0] = numbers
    refs = tuple(index.readers.ref(number) for number in used.tolist())
    keys = {ref.sealed_by(found[0][1]) for ref in refs} or {found[0][1].key_id}
    if len(keys) != 1:
        return None
    return Page(
        first=place[0],
        last=place[1],
        hash=journal.record_hash(found[-1][0].number),
        points=len(found),
        key_id=keys.pop(),
        first_size_bytes=found[0][1].size_bytes,
        last_size_bytes=found[-1][1].size_bytes,
        segments=refs,
        starts=index.layer.starts,
        ends=index.layer.ends,
        offsets=index.offsets[blocks],
        owners=renumbered,
        positions=index.positions[blocks],
        zeros=index.zeros[blocks],
    )


def write_log_page(journal: Journal, *, without: set[int]) -> str | None:
    """Make one page of the log that is missing. Returns its name, None when there is none to make.

    without: first numbers of pages that cannot be made; added to here.
    """
    head, state = journal.head(), journal.state()
    begin = max(state.begins, state.floor)
    there = set(journal.store.list(log_pages_prefix(journal.machine)))
    for first in range(begin // RECORDS * RECORDS + 1, head.number - RECORDS + 2, RECORDS):
        name, last = log_page_name(journal.machine, first), first + RECORDS - 1
        replaced = any(span.first <= last and first <= span.last for span in state.spans)
        if first <= begin or name in there or first in without or replaced:
            continue
        records = [
            journal.store.get(log_name(journal.machine, number), size_bytes_max=RECORD_BYTES_MAX)
            for number in range(first, first + RECORDS)
        ]
        data = encode_log_page(first, records, journal.log_key) if _is_chain(journal, records) else None
        if data is not None:
            with contextlib.suppress(ObjectExists):
                journal.store.put(name, data)
            crash_point(AFTER_PAGE)
            return name
        without.add(first)
    return None


def _is_chain(journal: Journal, records: Sequence[bytes]) -> bool:
    """Whether these are what the journal holds: each names the one before, up to a point it knows by hash.

    What a page says is not checked again by those who read it.
    """
    listed = {point.number for point in journal.points_after(0)}
    before, known = "", False
    for data in reversed(records):
        record, found = decode_record(data, journal.log_key), record_hash(data)
        if before and found != before:
            return False
        if not known and record.number in listed:
            if journal.record_hash(record.number) != found:
                return False
            known = True
        before = record.previous_hash
    return known


def delete_pages(journal: Journal) -> int:
    """Those of records that were promoted or merged away. Returns how many."""
    state = journal.state()
    deleted = 0
    for name in list(journal.store.list(log_pages_prefix(journal.machine))):
        number = name.rpartition("/")[2]
        if number.isdigit() and _is_gone(state, int(number), RECORDS):
            journal.store.delete(name)
            deleted += 1
    for name in list(journal.store.list(pages_prefix(journal.machine))):
        place = parse_page_name(name)
        if place is None:
            continue
        size, first, _ = place
        if _is_gone(state, first, size):
            journal.store.delete(name)
            deleted += 1
    return deleted


def _is_gone(state: State, first: int, size: int) -> bool:
    last = first + size - 1
    return first <= state.begins or any(s.first <= last and first <= s.last for s in state.spans)
