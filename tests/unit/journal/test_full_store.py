"""A full volume: points wait, and what frees room still has room (rule 17). A real tmpfs of 24 MiB."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing
from secondsite.journal.merge import merge
from secondsite.journal.names import log_name, merged_name, segment_name
from secondsite.journal.store import StoreFull
from secondsite.journal.store_local import STAGING, LocalStore
from secondsite.journal.sweep import delete_retired
from secondsite.model.ids import DiskId, SegmentId
from support.journal_model import DISKS, MACHINE, Replica

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "volume"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(store: LocalStore, *, merged: bool = False) -> int:
    """Segments until there is no room for any; returns how many."""
    count = 0
    while True:
        segment, disk = SegmentId(os.urandom(16).hex()), DiskId("vda")
        name = segment_name(MACHINE, 1, disk, segment)
        if merged:
            name = merged_name(MACHINE, "span", disk, segment)
        try:
            store.put(name, os.urandom(256 << 10))
        except StoreFull:
            return count
        count += 1


def test_segments_leave_room_for_what_frees_it(volume: Path) -> None:
    store = LocalStore(volume / "store")
    assert fill(store) > 80
    staged = store.stage(segment_name(MACHINE, 1, DiskId("vda"), SegmentId("f" * 32)))
    with pytest.raises(StoreFull):
        staged.append(bytes(512 << 10))
    store.put(log_name(MACHINE, 7), bytes(64 << 10))
    assert 2 <= fill(store, merged=True) <= 6
    store.put(log_name(MACHINE, 8), bytes(4 << 10))
    store.close()


def test_a_full_journal_can_be_merged_and_then_takes_points_again(volume: Path) -> None:
    """Points that rewrite the same blocks: merged, they take a fraction."""
    replica = Replica(4)
    replica.claim()
    for _ in range(12):
        replica.add_point({DISKS[0]: [[(0, 60, "random")]]})
    store = LocalStore(volume / "store")
    for name in replica.store.list(""):
        store.put(name, replica.store.get(name, size_bytes_max=1 << 24))
    journal, ring = Journal(store, MACHINE, replica.vault), KeyRing(store, MACHINE, replica.vault)
    for key in replica.keys.values():
        ring.add(key)
    fill(store)
    numbers = [point.number for point in journal.points()]
    merge(journal, numbers[0], numbers[-1], ring, clock=FakeClock())
    delete_retired(journal, clock=FakeClock())
    assert fill(store) >= 8


def test_uploads_nobody_went_on_with_are_removed_after_a_week(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    old, young, held = (segment_name(MACHINE, 1, DiskId("vda"), SegmentId(c * 32)) for c in "abc")
    for name in (old, young):
        staged = store.stage(name)
        staged.append(b"half")
        staged.close()
    living = store.stage(held)
    living.append(b"half")
    week = 8 * 86400
    for part in (tmp_path / "store" / STAGING).glob("*.part"):
        os.utime(part, (part.stat().st_atime - week, part.stat().st_mtime - week))
    again = store.stage(young)
    again.append(b"more")
    again.close()
    LocalStore(tmp_path / "store")
    assert store.stage(young).offset == 8
    assert living.offset == 4
    living.append(b"and more")
    living.publish()
    assert store.stage(old).offset == 0
