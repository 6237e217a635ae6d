"""The journal against a dictionary of disks: writes, claims, pins, promotions, restarts in any order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from secondsite.journal import merge as merging
from secondsite.journal import promote as promotion
from secondsite.journal.base_sums import differing, read_sums
from secondsite.journal.chain_errors import EpochSuperseded, ParentMismatch, SegmentsMissing
from secondsite.journal.names import parse_segment_name, segments_prefix
from secondsite.journal.sweep import delete_promoted, garbage
from secondsite.model.ids import DiskId
from secondsite.model.points import PointProposal
from support.journal_model import DISKS, SUB, PowerCut, Replica

KEPT_STORED_BYTES_MIN = merging.KEPT_STORED_BYTES_MIN

# at the edges of sub-blocks and blocks, where mistakes live
WRITE = st.tuples(
    st.sampled_from([0, 1, 14, 15, 16, 17, 31, 48, 63, 64]),
    st.sampled_from([1, 2, 15, 16, 17, 33]),
    st.sampled_from(["random", "zero", "text"]),
)
SIZES = [SUB * 20 - 512, SUB * 32, SUB * 64 + 512, SUB * 80 + 1536]
PARTS = st.lists(st.lists(WRITE, min_size=1, max_size=3), max_size=2)


class JournalMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 1 << 16))
    def begin(self, seed: int) -> None:
        # segments of some hundred bytes count as large in half of the runs
        merging.KEPT_STORED_BYTES_MIN = 300 if seed % 2 else KEPT_STORED_BYTES_MIN
        self.replica = Replica(seed)
        self.replica.claim()
        self.last: PointProposal | None = None

    def teardown(self) -> None:
        merging.KEPT_STORED_BYTES_MIN = KEPT_STORED_BYTES_MIN

    @rule(first=PARTS, second=PARTS)
    def point(
        self, first: list[list[tuple[int, int, str]]], second: list[list[tuple[int, int, str]]]
    ) -> None:
        replica = self.replica
        epoch = replica.journal.head().epoch
        refs = [replica.segment(DISKS[0], epoch, part) for part in first]
        refs += [replica.segment(DISKS[1], epoch, part) for part in second]
        self.last = replica.proposal(refs)
        replica.commit(self.last)

    @rule()
    def commit_again_after_a_lost_acknowledgement(self) -> None:
        replica = self.replica
        head = replica.journal.head()
        if self.last is not None and head.point is not None and self.last.epoch == head.epoch:
            again = replica.journal.commit(self.last, clock=replica.clock)
            assert again.number == head.point.number

    @rule()
    def another_claim_ends_the_epoch(self) -> None:
        replica = self.replica
        stale = replica.proposal([])
        replica.claim("gateway-b")
        with pytest.raises(EpochSuperseded):
            replica.journal.commit(stale, clock=replica.clock)
        self.last = None

    @rule()
    def a_segment_that_is_not_there_stops_the_commit(self) -> None:
        replica = self.replica
        before = bytes(replica.now[DISKS[0]])
        ref = replica.segment(DISKS[0], replica.journal.head().epoch, [(1, 1, "random")])
        replica.now[DISKS[0]][:] = before
        replica.store.delete(replica.journal.segment_name(ref))
        with pytest.raises(SegmentsMissing, match=ref.id):
            replica.journal.commit(replica.proposal([ref]), clock=replica.clock)

    @rule(which=st.integers(0, 99))
    def promote(self, which: int) -> None:
        points = self.replica.journal.points()
        if points:
            self.replica.promote(points[which % len(points)].number)

    @rule(which=st.integers(0, 99), count=st.integers(2, 6))
    def merge(self, which: int, count: int) -> None:
        self.replica.merge(*self.neighbours(which, count))

    def neighbours(self, which: int, count: int) -> tuple[int, int]:
        """(a point or what was promoted, the last of at most `count` points after it)."""
        journal = self.replica.journal
        numbers = [journal.state().promoted, *(point.number for point in journal.points())]
        first = which % len(numbers)
        return numbers[first], numbers[min(first + count, len(numbers) - 1)]

    @rule(which=st.integers(0, 99), count=st.integers(2, 6), after=st.integers(1, 14), landed=st.booleans())
    def a_merge_is_cut_off(self, which: int, count: int, after: int, *, landed: bool) -> None:
        replica = self.replica
        start, last = self.neighbours(which, count)
        replica.faults.cut_at, replica.faults.landed = replica.faults.count + after, landed
        try:
            replica.merge(start, last)
        except PowerCut:
            replica.restart()
            listed = {point.number for point in replica.journal.points()}
            for number in [n for n in replica.points if start < n < last and n not in listed]:
                # all of them or none
                assert not {n for n in listed if start < n < last}
                del replica.points[number]
        replica.faults.cut_at = None

    @rule(which=st.integers(0, 99), holder=st.sampled_from(["test-1", "export-2"]))
    def pin(self, which: int, holder: str) -> None:
        points = self.replica.journal.points()
        if points:
            self.replica.pin_and_open(points[which % len(points)].number, holder)

    @rule(holder=st.sampled_from(["test-1", "export-2"]))
    def unpin(self, holder: str) -> None:
        self.replica.unpin(holder)

    @rule(disk=st.sampled_from(DISKS), size=st.sampled_from(SIZES), told=st.booleans())
    def resize(self, disk: DiskId, size: int, *, told: bool) -> None:
        self.replica.resize(disk, size, told=told)
        self.last = None

    @rule(which=st.integers(0, 99), after=st.integers(1, 12), landed=st.booleans())
    def a_promotion_is_cut_off(self, which: int, after: int, *, landed: bool) -> None:
        replica, points = self.replica, self.replica.journal.points()
        if not points:
            return
        replica.faults.cut_at, replica.faults.landed = replica.faults.count + after, landed
        try:
            replica.promote(points[which % len(points)].number)
        except PowerCut:
            replica.restart()
        replica.faults.cut_at = None

    @rule()
    def restart(self) -> None:
        self.replica.restart()

    @invariant()
    def every_point_reads_what_the_source_held(self) -> None:
        if hasattr(self, "replica"):
            self.replica.check()
            self.replica.check_views()

    @invariant()
    def pinned_points_stay(self) -> None:
        if hasattr(self, "replica"):
            numbers = {point.number for point in self.replica.journal.points()}
            assert {pin.number for pin in self.replica.journal.state().pins} <= numbers

    @invariant()
    def garbage_is_never_needed(self) -> None:
        if hasattr(self, "replica"):
            journal = self.replica.journal
            epoch = journal.head().epoch
            for name in garbage(journal):
                parsed = parse_segment_name(name)
                assert parsed is None or parsed[0] < epoch
                self.replica.store.delete(name)


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestJournal = JournalMachine.TestCase


def test_promotion_leaves_the_journal_small() -> None:
    replica = Replica(3)
    replica.claim()
    for _ in range(10):
        replica.random_point()
    last = replica.journal.points()[-1].number
    done = replica.promote(last)
    assert done.floor == last
    assert list(replica.store.list(segments_prefix(replica.journal.machine))) == []
    assert [point.number for point in replica.journal.points()] == [last]
    replica.check()
    replica.random_point()
    replica.check()


def test_a_pin_holds_the_floor_and_its_readers_segments() -> None:
    replica = Replica(4)
    replica.claim()
    numbers = [replica.random_point().number for _ in range(6)]
    replica.promote(numbers[0])
    replica.journal.pin(numbers[2], "test-1", "a test failover")
    before = set(replica.store.list(segments_prefix(replica.journal.machine)))
    done = replica.promote(numbers[4])
    assert done.floor == numbers[2]
    assert done.held_back_by == ("test-1",)
    # what the pinned reader may have open is all still there
    assert set(replica.store.list(segments_prefix(replica.journal.machine))) == before
    replica.check()
    replica.journal.unpin("test-1")
    assert replica.promote(numbers[4]).floor == numbers[4]
    replica.check()


def test_changes_must_be_counted_from_the_newest_point() -> None:
    replica = Replica(5)
    replica.claim()
    first = replica.random_point()
    replica.random_point()
    replica.newest = first.checkpoint
    with pytest.raises(ParentMismatch):
        replica.journal.commit(replica.proposal([]), clock=replica.clock)


def cut_off_at(replica: Replica, step: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion that loses power as it comes to `step`."""

    def cut(*_: object) -> None:
        raise PowerCut(step)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, step, cut)
        with pytest.raises(PowerCut):
            replica.promote(number)
    replica.restart()
    state = replica.journal.state()
    assert state.promoted < state.floor


def test_garbage_spares_what_a_promotion_that_was_cut_off_still_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new claim makes the old epoch's segments garbage, unless points below the floor name them."""
    replica = Replica(6)
    replica.claim()
    numbers = [replica.random_point().number for _ in range(5)]
    cut_off_at(replica, "_write_bases", numbers[3], monkeypatch)
    replica.claim("gateway-b")
    for name in garbage(replica.journal):
        replica.store.delete(name)
    replica.check()
    replica.promote(numbers[3])
    replica.check()


def test_garbage_spares_what_a_pinned_reader_has_open() -> None:
    replica = Replica(7)
    replica.claim()
    numbers = [replica.random_point().number for _ in range(5)]
    replica.pin_and_open(numbers[2], "test-1")
    assert replica.promote(numbers[2]).floor == numbers[2]
    replica.claim("gateway-b")
    orphan = replica.segment(DISKS[0], 1, [(1, 1, "random")])
    assert garbage(replica.journal) == [replica.journal.segment_name(orphan)]
    replica.check_views()


def test_deleting_after_a_promotion_was_cut_off_keeps_the_chains_anchor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The chain is read from the last promoted record on, which then lies below the floor."""
    replica = Replica(11)
    replica.claim()
    numbers = [replica.random_point().number for _ in range(5)]
    replica.promote(numbers[0])
    cut_off_at(replica, "_write_bases", numbers[3], monkeypatch)
    delete_promoted(replica.journal, clock=replica.clock)
    replica.restart()
    replica.check()
    replica.promote(numbers[3])
    replica.check()


def test_sums_follow_a_disk_that_grew_though_the_promotion_was_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old end's last 64 KiB were shorter: their sum is made again, also by the repeated promotion."""
    replica = Replica(8)
    replica.claim()
    first = replica.add_point({DISKS[0]: [[(60, 10, "random")]]}).number
    replica.promote(first)
    grown = replica.resize(DISKS[0], SUB * 100, told=False).number
    cut_off_at(replica, "put_sums", grown, monkeypatch)
    replica.promote(grown)
    replica.check()
    sums = read_sums(replica.store, replica.journal.machine, DISKS[0])
    assert list(differing(replica.bases[DISKS[0]], sums, replica.keys[DISKS[0]].digest_seed())) == []
