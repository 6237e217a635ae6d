"""Pages: a long journal reads the same through them, and only where they still stand for what is listed."""

from __future__ import annotations

import os
import random

import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.journal import chain_load, log_pages, page_catalog, page_write, pages
from secondsite.journal.errors import ObjectDamaged
from secondsite.journal.log_pages import decode_log_page, encode_log_page
from secondsite.journal.manifest import record_hash
from secondsite.journal.names import (
    log_name,
    log_pages_prefix,
    log_prefix,
    pages_prefix,
    parse_page_name,
    segments_prefix,
)
from secondsite.journal.page_write import delete_pages, write_log_page, write_page
from secondsite.journal.pages import Page, decode_page
from secondsite.journal.view import open_view
from support.journal_model import DISKS, MACHINE, SUB, Replica
from unit.journal.test_merge_model import Life


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four records, and sixteen."""
    for module in (pages, page_catalog, page_write):
        monkeypatch.setattr(module, "LEVELS", (4, 16))


@pytest.fixture
def replica() -> Replica:
    made = Replica(5)
    made.claim()
    return made


def names(replica: Replica) -> list[str]:
    return list(replica.store.list(pages_prefix(MACHINE)))


def write_all(replica: Replica) -> int:
    without: set[tuple[str, int, int]] = set()
    count = 0
    while write_page(replica.journal, replica.ring, without=without):  # type: ignore[arg-type]
        count += 1
    return count


def used(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> list[Page]:
    """Collects the pages views stand on."""
    found: list[Page] = []
    real = page_catalog.Pages.at

    def at(self: page_catalog.Pages, *args: object) -> Page | None:
        page = real(self, *args)  # type: ignore[arg-type]
        if page is not None:
            found.append(page)
        return page

    monkeypatch.setattr(page_catalog.Pages, "at", at)
    return found


def test_a_long_journal_reads_the_same(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(40):
        replica.random_point()
    replica.resize(DISKS[0], SUB * 20 - 512)
    replica.resize(DISKS[0], SUB * 64)
    for _ in range(20):
        replica.random_point()
    assert write_all(replica) == 2 * (15 + 3)
    found = used(replica, monkeypatch)
    replica.check()
    assert {page.last - page.first + 1 for page in found} == {4, 16}
    assert write_all(replica) == 0


def test_few_segments_are_opened(replica: Replica) -> None:
    for _ in range(64):
        replica.add_point({DISKS[0]: [[(3, 2, "random")]]})
    write_all(replica)
    number = replica.journal.points()[-1].number
    with open_view(replica.journal, number, replica.ring, bases=replica.base_of) as view:
        index = view.disks[DISKS[0]]._index
        assert len(index.readers) <= 4 + 4
        assert not index.readers._open or len(index.readers._open) <= 4


def test_what_retention_touched_has_no_page_any_more(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(40):
        replica.random_point()
    write_all(replica)
    ids = [point.number for point in replica.journal.points()]
    replica.merge(ids[5], ids[9])
    found = used(replica, monkeypatch)
    replica.check()
    inside = range(ids[5] + 1, ids[9] + 1)
    assert found
    assert not [page for page in found if any(page.first <= number <= page.last for number in inside)]
    assert delete_pages(replica.journal) > 0
    replica.promote(ids[20])
    replica.check()
    delete_pages(replica.journal)
    left = [parse_page_name(name) for name in names(replica)]
    assert left
    assert all(place is not None and place[1] > ids[20] for place in left)


@pytest.mark.parametrize("bad", ["damaged", "cut", "swapped", "other disk", "gone"])
def test_a_page_that_cannot_be_used_is_as_if_it_were_not_there(replica: Replica, bad: str) -> None:
    for _ in range(40):
        replica.random_point()
    write_all(replica)
    mine = [name for name in names(replica) if f"/{DISKS[0]}/" in name and parse_page_name(name)[0] == 4]  # type: ignore[index]
    others = [name for name in names(replica) if f"/{DISKS[1]}/" in name and parse_page_name(name)[0] == 4]  # type: ignore[index]
    name = mine[2]
    data = bytearray(replica.store.get(name, size_bytes_max=1 << 20))
    if bad == "damaged":
        data[-40] ^= 1
    elif bad == "cut":
        del data[50:]
    elif bad == "swapped":
        data = bytearray(replica.store.get(mine[4], size_bytes_max=1 << 20))
    elif bad == "other disk":
        data = bytearray(replica.store.get(others[2], size_bytes_max=1 << 20))
    replica.store.delete(name)
    if bad != "gone":
        replica.store.put(name, bytes(data))
    replica.check()


def test_another_points_page_is_not_used(replica: Replica) -> None:
    """The same numbers in a copy of the store that went another way."""
    for _ in range(12):
        replica.random_point()
    write_all(replica)
    saved = {name: replica.store.get(name, size_bytes_max=1 << 20) for name in names(replica)}
    other = Replica(6)
    other.vault, other.keys = replica.vault, replica.keys
    other.open_journal()
    other.claim()
    for _ in range(12):
        other.random_point()
    for name, data in saved.items():
        other.store.put(name, data)
    other.check()


def test_no_page_decodes_by_accident(replica: Replica) -> None:
    for _ in range(8):
        replica.random_point()
    write_all(replica)
    name = next(name for name in names(replica) if f"/{DISKS[0]}/" in name)
    data = replica.store.get(name, size_bytes_max=1 << 20)
    key, chance = replica.keys[DISKS[0]], random.Random(1)
    assert decode_page(data, MACHINE, DISKS[0], key, what=name).points == 3
    for _ in range(300):
        bad = bytearray(data)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del bad[chance.randrange(len(bad)) :]
        if bytes(bad) == data or (bad[:10] == data[:10] and bad[12:] == data[12:]):
            continue
        with pytest.raises(SecondsiteError):
            decode_page(bytes(bad), MACHINE, DISKS[0], key, what=name)
    with pytest.raises(ObjectDamaged):
        decode_page(data, MACHINE, DISKS[1], key, what=name)


class PagedLife(Life):
    """The merge model, with pages made and left behind all the time."""

    def point(self) -> None:
        for _ in range(self.chance.randint(1, 6)):
            super().point()
        if self.chance.random() < 0.5:
            write_all(self.replica)

    def sweep(self) -> None:
        delete_pages(self.replica.journal)
        super().sweep()


LIVES = 8 if os.environ.get("SECONDSITE_MATRIX") == "full" else 3  # ./run crash


@pytest.mark.parametrize("seed", range(LIVES))
def test_among_merges_promotions_and_crashes(seed: int) -> None:
    PagedLife(seed).run()


def test_planted_a_page_is_used_though_a_span_replaced_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_catalog.Pages, "is_replaced", lambda self, first, last: False)

    def all_is_well() -> None:
        for seed in range(12):
            PagedLife(seed).run()

    with pytest.raises((AssertionError, SecondsiteError, KeyError, EOFError)):
        all_is_well()


def test_pages_hold_no_segment_back(replica: Replica) -> None:
    for _ in range(12):
        replica.random_point()
    write_all(replica)
    replica.promote(replica.journal.points()[-1].number)
    assert list(replica.store.list(segments_prefix(MACHINE))) == []
    replica.check()


@pytest.fixture
def small_log_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight records a page."""
    for module in (log_pages, chain_load, page_write):
        monkeypatch.setattr(module, "RECORDS", 8)


def records_of(replica: Replica, numbers: range) -> list[bytes]:
    return [replica.store.get(log_name(MACHINE, n), size_bytes_max=1 << 24) for n in numbers]


def write_log(replica: Replica) -> int:
    without: set[int] = set()
    count = 0
    while write_log_page(replica.journal, without=without):
        count += 1
    return count


def log_gets(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reads the chain anew; returns the log's records it asked the store for."""
    asked: list[str] = []
    real = replica.store.get

    def get(key: str, *, size_bytes_max: int) -> bytes:
        asked.append(key)
        return real(key, size_bytes_max=size_bytes_max)

    with monkeypatch.context() as patched:
        patched.setattr(replica.store, "get", get)
        replica.open_journal()
        replica.journal.points()
    return [name for name in asked if name.startswith(log_prefix(MACHINE))]


@pytest.mark.usefixtures("small_log_pages")
def test_a_long_log_is_read_in_few_requests(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        replica.random_point()
        if number == 30:
            replica.claim("gateway-b")
    assert write_log(replica) == 7
    assert len(log_gets(replica, monkeypatch)) == 62 - 56
    head = replica.journal.head()
    assert (head.epoch, head.claim is not None) == (2, True)
    replica.check()
    replica.random_point()
    replica.check()


@pytest.mark.usefixtures("small_log_pages")
def test_a_log_page_is_not_used_once_retention_touched_its_records(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(40):
        replica.random_point()
    write_log(replica)
    ids = [point.number for point in replica.journal.points()]
    replica.merge(ids[9], ids[12])
    replica.open_journal()
    replica.check()
    replica.promote(ids[20])
    replica.open_journal()
    replica.check()
    assert delete_pages(replica.journal) > 0
    replica.check()


@pytest.mark.usefixtures("small_log_pages")
@pytest.mark.parametrize("bad", ["damaged", "swapped", "not sealed", "cut"])
def test_a_log_page_that_cannot_be_used_is_as_if_it_were_not_there(replica: Replica, bad: str) -> None:
    for _ in range(40):
        replica.random_point()
    write_log(replica)
    pages_there = list(replica.store.list(log_pages_prefix(MACHINE)))
    data = bytearray(replica.store.get(pages_there[1], size_bytes_max=1 << 24))
    if bad == "damaged":
        data[-30] ^= 1
    elif bad == "swapped":
        data = bytearray(replica.store.get(pages_there[2], size_bytes_max=1 << 24))
    elif bad == "cut":
        del data[100:]
    else:
        first = int(pages_there[1].rpartition("/")[2])
        records = records_of(replica, range(first, first + 8))
        made = encode_log_page(first, records, None)
        assert made is not None
        data = bytearray(made)
    replica.store.delete(pages_there[1])
    replica.store.put(pages_there[1], bytes(data))
    replica.open_journal()
    replica.check()


@pytest.mark.usefixtures("small_log_pages")
def test_records_that_are_not_the_journals_become_no_page(replica: Replica) -> None:
    for _ in range(10):
        replica.random_point()
    name = log_name(MACHINE, 4)
    other = replica.store.get(log_name(MACHINE, 5), size_bytes_max=1 << 24)
    replica.store.delete(name)
    replica.store.put(name, other)
    assert write_log(replica) == 0


def test_a_log_page_decodes_only_as_it_was_written(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pages, "RECORDS", 4)
    for _ in range(4):
        replica.random_point()
    key = replica.journal.log_key
    records = records_of(replica, range(1, 5))
    data = encode_log_page(1, records, key)
    assert data is not None
    assert [found for found, _ in decode_log_page(data, 1, key, what="a page")] == [
        record_hash(r) for r in records
    ]
    chance = random.Random(2)
    for _ in range(300):
        bad = bytearray(data)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del bad[chance.randrange(len(bad)) :]
        with pytest.raises(SecondsiteError):
            decode_log_page(bytes(bad), 1, key, what="a page")
