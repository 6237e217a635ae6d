"""Which pages of a disk there are, and whether one stands for some points of a list."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from secondsite.journal.chain import Journal
from secondsite.journal.errors import FormatUnknown, KeyMissing, ObjectDamaged
from secondsite.journal.keys import KeyRing
from secondsite.journal.names import page_name, pages_prefix, parse_page_name
from secondsite.journal.pages import LEVELS, PAGE_BYTES_MAX, Page, aligned, decode_page, page_key
from secondsite.journal.store import ObjectMissing
from secondsite.model.ids import DiskId
from secondsite.model.points import DiskState, Point

# A page that cannot be used is as if it were not there: what it says is in the segments too.
_UNUSABLE = (FormatUnknown, KeyMissing, ObjectDamaged, ObjectMissing)


class Pages:
    """The pages of one disk, listed once."""

    def __init__(self, journal: Journal, disk: DiskId, keys: KeyRing) -> None:
        self._journal, self._disk, self._keys = journal, disk, keys
        names = journal.store.list(pages_prefix(journal.machine, disk))
        parsed = [found for found in map(parse_page_name, names) if found is not None]
        self._known = {(size, first): points for size, first, points in parsed}
        self._spans = journal.state().spans

    def __contains__(self, place: tuple[int, int]) -> bool:
        """Whether there is a page of (size, first record)."""
        return place in self._known

    def is_replaced(self, first: int, last: int) -> bool:
        """Whether a span stands for any of these records."""
        return any(span.first <= last and first <= span.last for span in self._spans)

    def at(self, found: Sequence[tuple[Point, DiskState]], at: int) -> Page | None:
        """The largest page that stands for exactly the points from place `at` on, if there is one.

        found: listed points that have the disk, in order.
        """
        number = found[at][0].number
        for size in reversed(LEVELS):
            first, last = aligned(number, size)
            points = self._known.get((size, first))
            if points is None or (at and found[at - 1][0].number >= first):
                continue
            end = bisect_right(found, last, lo=at, key=lambda pair: pair[0].number)
            if points != end - at or self.is_replaced(first, last):
                continue
            page = self._load(size, first, points)
            if page is not None and page.hash == self._journal.record_hash(found[end - 1][0].number):
                return page
        return None

    def _load(self, size: int, first: int, points: int) -> Page | None:
        name = page_name(self._journal.machine, self._disk, size, first, points)
        try:
            data = self._journal.store.get(name, size_bytes_max=PAGE_BYTES_MAX)
            key = self._keys.get(page_key(data, name))
            page = decode_page(data, self._journal.machine, self._disk, key, what=name)
        except _UNUSABLE:
            return None
        fits = (page.first, page.last, page.points) == (*aligned(first, size), points)
        return page if fits else None
