"""Sums of many promotions become one object; power cut at any operation loses none of them."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from secondsite.journal.base_sums import ROW, differing, put_sums, read_sums
from secondsite.journal.base_sums_merge import WINDOW, merge_sums
from secondsite.journal.errors import ObjectDamaged
from secondsite.journal.names import base_sums_prefix
from secondsite.journal.store_memory import Faults, MemoryStore, PowerCut
from support.journal_model import DISKS, MACHINE, Replica

DISK = DISKS[0]
PREFIX = base_sums_prefix(MACHINE, DISK)
# Numbers in the first window, around its end, and far behind: a disk of 64 TiB.
PLACES = [*range(50), *range(WINDOW - 3, WINDOW + 3), 1 << 30, (1 << 30) + WINDOW]


def filled(store: MemoryStore, objects: int = 20) -> dict[int, tuple[int, int]]:
    """Objects of random rows, and what the newest of each number is."""
    chance = random.Random(3)
    newest: dict[int, tuple[int, int]] = {}
    for number in range(1, objects + 1):
        # one that only this object has
        places = sorted([1000 + number, *chance.sample(PLACES, chance.randrange(0, len(PLACES)))])
        rows = np.empty(len(places), dtype=ROW)
        for row, place in enumerate(places):
            newest[place] = (chance.getrandbits(64), chance.getrandbits(64))
            rows[row] = (place, newest[place])
        put_sums(store, MACHINE, DISK, number * 7, rows)
    return newest


def test_the_newest_of_each_number_stays_and_a_later_one_wins() -> None:
    store = MemoryStore()
    newest = filled(store)
    assert merge_sums(store, MACHINE, DISK, objects_max=20) == 0
    assert merge_sums(store, MACHINE, DISK) == 20
    assert list(store.list(PREFIX)) == [f"{PREFIX}{140:016d}.all"]
    assert read_sums(store, MACHINE, DISK) == newest
    # a promotion done again after a crash puts its own sums once more; the next one is newer
    again, later = np.zeros(1, dtype=ROW), np.zeros(1, dtype=ROW)
    again[0], later[0] = (3, newest[3]), (4, (5, 6))
    put_sums(store, MACHINE, DISK, 140, again)
    put_sums(store, MACHINE, DISK, 141, later)
    assert read_sums(store, MACHINE, DISK) == {**newest, 4: (5, 6)}
    assert merge_sums(store, MACHINE, DISK, objects_max=1) == 3
    assert read_sums(store, MACHINE, DISK) == {**newest, 4: (5, 6)}


def cuts() -> int:
    faults = Faults()
    store = MemoryStore(faults)
    filled(store)
    before = faults.count
    merge_sums(store, MACHINE, DISK)
    return faults.count - before


@pytest.mark.parametrize("landed", [False, True], ids=["lost", "landed"])
@pytest.mark.parametrize("at", range(1, cuts() + 1))
def test_power_cut_at_every_operation(at: int, *, landed: bool) -> None:
    faults = Faults()
    store = MemoryStore(faults)
    newest = filled(store)
    faults.cut_at, faults.landed = faults.count + at, landed
    with pytest.raises(PowerCut):
        merge_sums(store, MACHINE, DISK)
    store = store.restarted()
    assert read_sums(store, MACHINE, DISK) == newest
    merge_sums(store, MACHINE, DISK, objects_max=1)
    assert len(list(store.list(PREFIX))) == 1
    assert read_sums(store, MACHINE, DISK) == newest


def test_a_damaged_object_stays_for_verify_to_name() -> None:
    store = MemoryStore()
    filled(store)
    names = list(store.list(PREFIX))
    data = bytearray(store.get(names[4], size_bytes_max=1 << 20))
    data[-1] ^= 1
    store.delete(names[4])
    store.put(names[4], data)
    with pytest.raises(ObjectDamaged):
        merge_sums(store, MACHINE, DISK)
    assert list(store.list(PREFIX)) == names


def test_a_reader_that_listed_before_reads_them_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    newest = filled(store)
    really = store.get
    merged = threading.Event()

    def get(key: str, *, size_bytes_max: int) -> bytes:
        if not merged.is_set():
            merged.set()
            merge_sums(store, MACHINE, DISK)
        return really(key, size_bytes_max=size_bytes_max)

    monkeypatch.setattr(store, "get", get)
    assert read_sums(store, MACHINE, DISK) == newest


def test_promotions_keep_few_objects_and_the_base_still_fits_them() -> None:
    replica = Replica(5)
    replica.claim()
    most = 0
    for _ in range(40):
        replica.promote(replica.random_point().number)
        most = max(most, len(list(replica.store.list(PREFIX))))
    assert most == 16
    replica.check()
    for disk in DISKS:
        sums = read_sums(replica.store, MACHINE, disk)
        base = replica.bases[disk]
        assert set(sums) == set(range(-(-base.size_bytes // 65536)))
        assert list(differing(base, sums, replica.keys[disk].digest_seed())) == []
