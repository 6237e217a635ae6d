"""A random journal, randomly damaged: what a scrub calls good reads right, what it calls lost does not."""

from __future__ import annotations

import random

import pytest

from secondsite.journal import page_catalog, page_write, pages
from secondsite.journal.page_write import write_page
from secondsite.journal.scrub import ScrubReport
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId
from support.journal_model import DISKS, SUB
from support.scrub_model import Scrubbed

SIZES = [SUB * 20, SUB * 32, SUB * 64 + 512, SUB * 80]


def lived(seed: int, steps: int = 14) -> Scrubbed:
    """A journal with bases, spans and resizes, by a seed."""
    chance = random.Random(seed)
    replica = Scrubbed(seed)
    replica.claim()
    replica.random_point()
    for _ in range(steps):
        what = chance.choices(["point", "promote", "merge", "resize", "claim"], [8, 2, 2, 1, 0.5])[0]
        points = replica.journal.points()
        if what == "point":
            replica.random_point()
        elif what == "promote":
            replica.promote(chance.choice(points[:4]).number)
        elif what == "merge" and len(points) > 2:
            first = chance.randrange(len(points) - 2)
            replica.merge(points[first].number, points[min(len(points) - 1, first + 3)].number)
        elif what == "resize":
            replica.resize(chance.choice(DISKS), chance.choice(SIZES))
        elif what == "claim":
            replica.claim("gateway-b")
            replica.add_point({DISKS[0]: [[(0, 3, "random")]]})
    return replica


@pytest.mark.parametrize("tens", range(4))
def test_an_undamaged_journal_has_nothing_to_report(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        replica = lived(seed)
        listed = replica.listed()
        report = replica.scrub(points=listed)
        assert report.damaged == [], f"seed {seed}: {report.damaged}"
        assert report.points == listed
        assert report.lost == []
        assert sorted(report.proved + report.unproved) == listed
        assert not report.missing
        again = replica.scrub(trusted=report.head)
        assert again.damaged == []
        assert not [pin for pin in replica.journal.state().pins if pin.holder.startswith("scrub")]


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of four records and of sixteen, of the log of four."""
    for module in (pages, page_catalog, page_write):
        monkeypatch.setattr(module, "LEVELS", (4, 16))


def write_pages(replica: Scrubbed) -> None:
    without: set[tuple[DiskId, int, int]] = set()
    while write_page(replica.journal, replica.ring, without=without) is not None:
        pass


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize("tens", range(4))
def test_pages_tell_what_a_lost_segment_held(tens: int) -> None:
    seen = 0
    for seed in range(10 * tens, 10 * tens + 10):
        replica = lived(seed, steps=20)
        write_pages(replica)
        chance = random.Random(seed)
        names = [replica.journal.segment_name(s) for p in replica.journal.points_after(0) for s in p.segments]
        names = [name for name in names if name in replica.store._keys]
        if not names:
            continue
        harmed = [replica.harm(chance, name) for name in chance.sample(names, min(len(names), 2))]
        report = replica.scrub()
        check(replica, report, replica.listed(), f"seed {seed}: {harmed}")
        seen += any(replica.objects("pages"))
    assert seen > 2


@pytest.mark.usefixtures("paged")
def test_a_lost_segment_in_a_page_lacks_only_what_was_read_from_it() -> None:
    replica = Scrubbed(1)
    replica.claim()
    for number in range(9):
        replica.add_point({DISKS[0]: [[(4 * number, 3, "random")]]})
    write_pages(replica)
    replica.remove(replica.journal.segment_name(replica.journal.point(5).segments[0]))
    report = replica.scrub()
    # records 1 to 4 are a page, and 5 to 8: views of 5 to 7 open segment by segment
    assert report.lost == [5, 6, 7, 8, 9, 10]
    assert report.missing == {DISKS[0]: Extents.of([(12 * SUB, 15 * SUB)])}
    replica.add_point({DISKS[0]: [[(12, 3, "random")]]})
    again = replica.scrub()
    assert again.lost == [5, 6, 7, 8, 9, 10]
    assert not again.missing
    assert replica.readable(replica.store, 11)


@pytest.mark.parametrize("tens", range(8))
def test_what_is_good_reads_right_and_what_is_lost_does_not(tens: int) -> None:
    found = 0
    for seed in range(10 * tens, 10 * tens + 10):
        replica = lived(seed)
        chance = random.Random(seed)
        listed = replica.listed()
        harmed = []
        for _ in range(chance.randint(1, 3)):
            part = chance.choice(["segments", "segments", "merged", "log", "spans", "keys", "state", "base"])
            if part == "base" and replica.bases and any(replica.journal.state().bases):
                harmed.append(harm_base(replica, chance))
            elif replica.objects(part):
                harmed.append(replica.harm(chance, chance.choice(replica.objects(part))))
        check(replica, replica.scrub(), listed, f"seed {seed}: {harmed}")
        found += 1
    assert found == 10


def harm_base(replica: Scrubbed, chance: random.Random) -> str:
    disk = chance.choice([base.disk for base in replica.journal.state().bases])
    base = replica.bases[disk]
    position = chance.randrange(len(base._data))
    base._data[position] ^= 1 << chance.randrange(8)
    return f"byte {position} of the base of {disk}"


def check(replica: Scrubbed, report: ScrubReport, listed: list[int], told: str) -> None:
    told = f"{told}; {report}"
    store = replica.store
    broken = [int(d.object[-16:]) for d in report.damaged if d.kind in {"record", "log"} and d.points]
    broken += [min(d.points) for d in report.damaged if d.kind == "span" and d.points]
    if broken:
        store = replica.cut_log(min(broken))
    states = any(d.kind == "state" and d.points for d in report.damaged)
    # a base is judged with the disk's key: without it, what is read is told to be unproved
    blind = any(d.kind in {"key", "base-sums"} for d in report.damaged)
    for number in listed:
        if blind and number in report.unproved:
            continue
        if number in report.points and number not in report.lost:
            assert replica.readable(store, number), f"point {number} is called good: {told}"
        else:
            assert states or not replica.readable(store, number), f"point {number} is called lost: {told}"
