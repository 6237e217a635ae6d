"""Merging among everything else that happens to a journal, by seeds: every listed point reads what it held.

Weighted so that merges meet shrunk and grown disks, pins, views left open, promotions, claims and crashes; a
state machine that picks evenly finds a third of the planted bugs this one finds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from secondsite.journal import merge as merging
from secondsite.journal.names import log_prefix, merged_prefix, segments_prefix, spans_prefix
from secondsite.journal.sweep import delete_retired, garbage
from support.journal_model import DISKS, MACHINE, SUB, PowerCut, Replica

SIZES = [SUB * 20 - 512, SUB * 32, SUB * 64 + 512, SUB * 80 + 1536]
STEPS = 70
OPERATIONS = {
    "point": 10,
    "merge": 6,
    "cut": 2,
    "resize": 3,
    "promote": 1,
    "pin": 2,
    "unpin": 1,
    "claim": 1,
    "sweep": 1,
    "restart": 1,
}


@pytest.fixture(autouse=True)
def small_segments_count_as_large() -> Iterator[None]:
    before = merging.KEPT_STORED_BYTES_MIN
    yield
    merging.KEPT_STORED_BYTES_MIN = before


class Life:
    """One journal's life, chosen by a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        merging.KEPT_STORED_BYTES_MIN = self.chance.choice([300, 300, 4 << 20])
        self.replica = Replica(seed)
        self.replica.claim()
        self.merges = 0

    def run(self) -> None:
        for _ in range(STEPS):
            (name,) = self.chance.choices(list(OPERATIONS), list(OPERATIONS.values()))
            getattr(self, name)()
            self.replica.check_views()
        self.replica.check()
        self.check_nothing_is_left()

    def check_nothing_is_left(self) -> None:
        """With no reader, and all promoted, only what the newest point names is in the store."""
        replica = self.replica
        for holder in ("test-1", "export-2"):
            replica.unpin(holder)
        replica.random_point()
        replica.promote(replica.journal.points()[-1].number)
        replica.claim("gateway-c")
        merging.abandon(replica.journal)
        for name in garbage(replica.journal):
            replica.store.delete(name)
        assert list(replica.store.list(merged_prefix(MACHINE))) == []
        assert list(replica.store.list(spans_prefix(MACHINE))) == []
        assert len(list(replica.store.list(segments_prefix(MACHINE)))) == 0
        assert len(list(replica.store.list(log_prefix(MACHINE)))) == 2

    def point(self) -> None:
        self.replica.random_point()

    def resize(self) -> None:
        self.replica.resize(
            self.chance.choice(DISKS), self.chance.choice(SIZES), told=self.chance.random() < 0.7
        )

    def neighbours(self) -> tuple[int, int]:
        journal = self.replica.journal
        numbers = [journal.state().promoted, *(point.number for point in journal.points())]
        first = self.chance.randrange(len(numbers))
        return numbers[first], numbers[min(first + self.chance.randint(2, 6), len(numbers) - 1)]

    def merge(self) -> None:
        if self.replica.merge(*self.neighbours()) is not None:
            self.merges += 1
            self.replica.check()

    def cut(self) -> None:
        replica, (start, last) = self.replica, self.neighbours()
        replica.faults.cut_at = replica.faults.count + self.chance.randint(1, 16)
        replica.faults.landed = self.chance.random() < 0.5
        try:
            replica.merge(start, last)
        except PowerCut:
            replica.restart()
            listed = {point.number for point in replica.journal.points()}
            inside = {number for number in replica.points if start < number < last}
            assert not inside & listed or inside <= listed | set(range(replica.journal.state().floor))
            for number in inside - listed:
                del replica.points[number]
        replica.faults.cut_at = None
        replica.check()

    def promote(self) -> None:
        points = self.replica.journal.points()
        if points:
            self.replica.promote(points[self.chance.randrange(min(4, len(points)))].number)
            self.replica.check()

    def pin(self) -> None:
        points = self.replica.journal.points()
        if points:
            number = self.chance.choice(points).number
            self.replica.pin_and_open(number, self.chance.choice(["test-1", "export-2"]))

    def unpin(self) -> None:
        self.replica.unpin(self.chance.choice(["test-1", "export-2"]))

    def claim(self) -> None:
        self.replica.claim("gateway-b")

    def sweep(self) -> None:
        replica = self.replica
        delete_retired(replica.journal, clock=replica.clock)
        for name in garbage(replica.journal):
            replica.store.delete(name)
        replica.check()

    def restart(self) -> None:
        self.replica.restart()
        self.replica.check()


@pytest.mark.parametrize("tens", range(4 if os.environ.get("SECONDSITE_MATRIX") == "full" else 2))
def test_every_listed_point_reads_what_it_held(tens: int) -> None:
    merges = 0
    for seed in range(8 * tens, 8 * tens + 8):
        life = Life(seed)
        life.run()
        merges += life.merges
    assert merges > 16
