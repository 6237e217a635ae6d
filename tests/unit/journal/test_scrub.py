"""Planted damage of every kind: found, named, and costing exactly the points it must."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.base.errors import Outcome
from secondsite.journal import chain_load, log_pages, page_write, scrub_disk, scrub_log
from secondsite.journal import scrub as scrub_module
from secondsite.journal.chain import Journal
from secondsite.journal.digests import digest_sub_blocks
from secondsite.journal.errors import WrongKey
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.names import (
    base_sums_prefix,
    log_name,
    segments_prefix,
    state_prefix,
    wrapped_key_name,
)
from secondsite.journal.page_write import write_log_page
from secondsite.journal.scrub import Damage, Position, ScrubCancelled, Trusted, scrub
from secondsite.journal.scrub_types import Meter
from secondsite.journal.segment import SegmentWriter
from secondsite.journal.segment_head import SegmentHead
from secondsite.journal.store import StoreUnavailable
from secondsite.model.extents import Extents
from secondsite.model.ids import SegmentId
from support.journal_model import DISKS, MACHINE, SIZE, SUB
from support.scrub_model import Scrubbed

VDA, VDB = DISKS


@pytest.fixture
def replica() -> Scrubbed:
    """Points 2 to 7: the base is at 2, and a segment of vda at 4 is overwritten in two steps, at 5 and 7."""
    made = Scrubbed(9)
    made.claim()
    made.add_point({VDA: [[(0, 60, "random")]], VDB: [[(0, 40, "random")]]})
    made.promote(2)
    made.add_point({VDB: [[(5, 4, "text")]]})  # 3
    made.add_point({VDA: [[(16, 16, "random")]]})  # 4: one block of 64 KiB
    made.add_point({VDA: [[(16, 8, "text")]]})  # 5
    made.add_point({VDB: [[(7, 2, "zero")]]})  # 6
    made.add_point({VDA: [[(20, 14, "random")]]})  # 7
    return made


def segment(replica: Scrubbed, number: int) -> str:
    return replica.journal.segment_name(replica.journal.point(number).segments[0])


def only(replica: Scrubbed) -> Damage:
    report = replica.scrub()
    assert report.outcome is Outcome.DAMAGED
    assert len(report.damaged) == 1, report.damaged
    return report.damaged[0]


def test_a_sound_journal_proves_every_point(replica: Scrubbed) -> None:
    report = replica.scrub()
    assert report.damaged == []
    assert report.proved == [2, 3, 4, 5, 6, 7]
    assert report.reread == [7]  # point 2 is all in the base, which was read
    assert report.outcome is Outcome.OK
    assert report.bytes > 2 * SIZE


# -- segments ---------------------------------------------------------------------------------------


def test_a_block_costs_its_points_until_it_is_overwritten(replica: Scrubbed) -> None:
    replica.flip(segment(replica, 4), 1000)
    damage = only(replica)
    assert (damage.kind, damage.object) == ("segment", segment(replica, 4))
    assert damage.points == {4, 5, 6}
    assert damage.ranges == {VDA: Extents.of([(16 * SUB, 32 * SUB)])}
    assert not replica.scrub().missing
    assert replica.scrub().proved == [2, 3, 7]


def test_what_is_left_of_a_block_at_the_newest_point_is_missing(replica: Scrubbed) -> None:
    replica.flip(segment(replica, 7), 1000)
    report = replica.scrub()
    assert report.lost == [7]
    # the segment's second block, and what the first one lacks
    assert report.missing[VDA].total_bytes in {12 * SUB, 2 * SUB}


def test_every_byte_of_a_header_and_footer_is_watched(replica: Scrubbed) -> None:
    name = segment(replica, 5)
    size = len(replica.store._objects[name])
    sound = replica.store._objects[name]
    rng = random.Random(1)
    places = [
        *range(0, 192, 5),
        *range(size - 128, size, 3),
        *(rng.randrange(192, size - 128) for _ in range(30)),
    ]
    for place in places:
        replica.flip(name, place, 1 << rng.randrange(8))
        report = replica.scrub(points=[])
        damage = next(d for d in report.damaged if d.object == name)
        for number in replica.listed():
            readable = replica.readable(replica.store, number)
            assert readable == (number not in damage.points), f"byte {place}: {damage}"
        replica.store._objects[name] = sound
    assert replica.scrub().damaged == []


def lengthened(replica: Scrubbed) -> None:
    replica.lengthen(segment(replica, 4), b"more")


def removed(replica: Scrubbed) -> None:
    replica.remove(segment(replica, 4))


def cut(replica: Scrubbed) -> None:
    replica.truncate(segment(replica, 4), 5000)


def emptied(replica: Scrubbed) -> None:
    replica.truncate(segment(replica, 4), 0)


def of_another_disk(replica: Scrubbed) -> None:
    replica.replace(segment(replica, 4), by=segment(replica, 3))


def of_another_point(replica: Scrubbed) -> None:
    replica.replace(segment(replica, 4), by=segment(replica, 5))


@pytest.mark.parametrize(
    ("harm", "points"),
    [
        (lengthened, set()),  # a view reads as many bytes as the point names
        (removed, {4, 5, 6, 7}),
        (cut, {4, 5, 6, 7}),
        (emptied, {4, 5, 6, 7}),
        (of_another_disk, {4, 5, 6, 7}),
        (of_another_point, {4, 5, 6, 7}),
    ],
)
def test_an_object_that_is_not_the_one(
    replica: Scrubbed, harm: Callable[[Scrubbed], None], points: set[int]
) -> None:
    harm(replica)
    damage = only(replica)
    assert (damage.object, damage.points) == (segment(replica, 4), points)
    for number in replica.listed():
        assert replica.readable(replica.store, number) == (number not in points)


def test_swapped_segments_are_two_damages(replica: Scrubbed) -> None:
    replica.swap(segment(replica, 4), segment(replica, 7))
    report = replica.scrub()
    costs = {damage.object: damage.points for damage in report.damaged}
    assert costs == {segment(replica, 4): {4, 5, 6, 7}, segment(replica, 7): {7}}


def test_another_version_of_a_segment_is_not_the_one(replica: Scrubbed) -> None:
    """Sealed with the right keys under the right name and id, but with other content: the hash tells."""
    ref = replica.journal.point(4).segments[0]
    before = bytes(replica.now[VDA])
    head = SegmentHead(MACHINE, VDA, 1, ref.id, replica.keys[VDA].id, SIZE)
    other, _ = replica.write(head, [(16, 16, "random")])
    replica.now[VDA][:] = before
    replica.store._objects[segment(replica, 4)] = bytes(other)
    report = replica.scrub()
    damage = next(damage for damage in report.damaged if damage.object == segment(replica, 4))
    # it opens, and reads other bytes
    assert damage.points == {4, 5, 6}
    for number in replica.listed():
        assert replica.readable(replica.store, number) == (number in report.proved)


def test_a_segment_as_long_as_the_one_whose_place_it_takes(replica: Scrubbed) -> None:
    """Everything about it opens: it is what its header says, and not what the point says."""
    lengths: dict[int, int] = {}
    while True:
        point = replica.add_point({VDA: [[(40, 4, "random")]]})
        length = point.segments[0].stored_bytes
        if length in lengths:
            break
        lengths[length] = point.number
    other = lengths[length]
    replica.replace(segment(replica, other), by=segment(replica, point.number))
    damage = only(replica)
    assert damage.object == segment(replica, other)
    for number in replica.listed():
        assert replica.readable(replica.store, number) == (number not in damage.points)
    assert other in damage.points


# -- log, state, keys -------------------------------------------------------------------------------


def test_every_byte_of_a_record_is_watched(replica: Scrubbed) -> None:
    name = log_name(MACHINE, 5)
    sound = replica.store._objects[name]
    for place in range(0, len(sound), 7):
        replica.flip(name, place, 1 << place % 8)
        report = replica.scrub()
        assert [damage.object for damage in report.damaged] == [name], place
        assert report.lost == [5, 6, 7]
        assert report.head is None
        replica.store._objects[name] = sound


def test_a_record_that_is_gone_or_another_ones(replica: Scrubbed) -> None:
    sound = replica.store._objects[log_name(MACHINE, 4)]
    replica.remove(log_name(MACHINE, 4))
    assert only(replica).points == {4, 5, 6, 7}
    replica.store._create(log_name(MACHINE, 4), replica.store._objects[log_name(MACHINE, 3)])
    assert only(replica).points == {4, 5, 6, 7}
    replica.store._objects[log_name(MACHINE, 4)] = sound
    assert replica.scrub().damaged == []


def test_a_log_that_lost_its_end_or_was_written_anew_is_noticed(replica: Scrubbed) -> None:
    trusted = replica.scrub().head
    assert trusted is not None
    assert trusted.number == 7
    sound = replica.store._objects[log_name(MACHINE, 7)]
    replica.remove(log_name(MACHINE, 7))
    assert replica.scrub().damaged == []
    [damage] = replica.scrub(trusted=trusted).damaged
    assert (damage.kind, damage.points) == ("log", {7})
    replica.store._create(log_name(MACHINE, 7), sound)
    wrong = Trusted(7, "0" * 64)
    report = replica.scrub(trusted=wrong)
    assert report.lost == [2, 3, 4, 5, 6, 7]
    assert report.head is None


def test_a_state_that_went_back_is_noticed(replica: Scrubbed) -> None:
    trusted = replica.scrub().head
    assert trusted is not None
    newest = max(replica.store.list(state_prefix(MACHINE)))
    generation = int(newest[-16:])
    later = Trusted(trusted.number, trusted.hash, generation + 40)
    report = replica.scrub(trusted=later)
    assert [damage.kind for damage in report.damaged] == ["state"]
    assert report.lost == [2, 3, 4, 5, 6, 7]


def test_the_newest_state_costs_everything_and_older_ones_nothing(replica: Scrubbed) -> None:
    names = sorted(replica.store.list(state_prefix(MACHINE)))
    sound = replica.store._objects[names[-1]]
    for place in range(0, len(sound), 23):
        replica.flip(names[-1], place)
        damage = only(replica)
        assert (damage.kind, damage.points) == ("state", {2, 3, 4, 5, 6, 7})
        replica.store._objects[names[-1]] = sound
    replica.flip(names[0], 200)
    assert only(replica).points == set()


def test_every_byte_of_a_wrapped_key_is_watched(replica: Scrubbed) -> None:
    name = wrapped_key_name(MACHINE, replica.keys[VDA].id)
    sound = replica.store._objects[name]
    for place in range(0, len(sound), 11):
        replica.flip(name, place)
        report = replica.scrub()
        assert {damage.object for damage in report.damaged} == {name}
        # what the base holds can be read without it, but not be proved
        assert report.lost == [4, 5, 6, 7]
        assert report.unproved == [2, 3]
        replica.store._objects[name] = sound


def test_another_vaults_key_is_not_damage(replica: Scrubbed) -> None:
    replica.vault = VaultKey.create()
    with pytest.raises(WrongKey):
        replica.scrub()


# -- bases ------------------------------------------------------------------------------------------


def test_a_byte_of_a_base_costs_what_reads_it_from_there(replica: Scrubbed) -> None:
    replica.bases[VDA]._data[18 * SUB] ^= 1  # overwritten at 4 and after
    replica.bases[VDB]._data[20 * SUB] ^= 1
    report = replica.scrub()
    costs = {disk: damage for damage in report.damaged for disk in damage.ranges}
    assert costs[VDA].points == {2, 3}
    assert costs[VDB].points == {2, 3, 4, 5, 6, 7}
    assert report.missing == {VDB: Extents.of([(16 * SUB, 32 * SUB)])}


def test_sums_that_are_wrong_cost_nothing_where_the_content_proves_itself(replica: Scrubbed) -> None:
    [name] = replica.store.list(base_sums_prefix(MACHINE, VDA))
    sound = replica.store._objects[name]
    for place in (0, 9, 20, 40, 70, 90):
        replica.flip(name, place)
        damage = only(replica)
        assert (damage.kind, damage.object, damage.points) == ("base-sums", name, set())
        replica.store._objects[name] = sound
    # those of another disk: whole in themselves
    [other] = replica.store.list(base_sums_prefix(MACHINE, VDB))
    replica.replace(name, by=other)
    damage = only(replica)
    assert (damage.kind, damage.points) == ("base-sums", set())


def test_sums_and_base_replaced_together_do_not_pass(replica: Scrubbed) -> None:
    for name in list(replica.store.list(base_sums_prefix(MACHINE, VDA))):
        replica.remove(name)
    replica.bases[VDA]._data[40 * SUB] ^= 1
    report = replica.scrub()
    assert [damage.kind for damage in report.damaged] == ["content"]
    assert report.lost == [2, 3, 4, 5, 6, 7]


def test_a_base_that_is_another_costs_every_point(replica: Scrubbed) -> None:
    replica.bases[VDA]._identity = "0" * 32
    report = replica.scrub()
    assert report.lost == [2, 3, 4, 5, 6, 7]
    assert not report.missing  # sending would not help


def test_without_fingerprints_points_are_sound_but_not_proved() -> None:
    replica = Scrubbed(2, fingerprints=False)
    replica.claim()
    replica.random_point()
    replica.promote(2)
    replica.random_point()
    report = replica.scrub()
    assert (report.damaged, report.proved, report.unproved) == ([], [], [2, 3])


def test_many_digests_lie_in_a_file(replica: Scrubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_disk, "IN_MEMORY_BYTES_MAX", 64)
    assert replica.scrub().proved == [2, 3, 4, 5, 6, 7]


# -- running ----------------------------------------------------------------------------------------


def start(replica: Scrubbed, **options: object) -> list[Position]:
    seen: list[Position] = []
    scrub(
        Journal(replica.store, MACHINE, replica.vault),
        KeyRing(replica.store, MACHINE, replica.vault),
        replica.base_of_store,
        **{"clock": replica.clock, "progress": seen.append, **options},  # type: ignore[arg-type]
    )
    return seen


def test_the_position_grows_to_the_total(replica: Scrubbed) -> None:
    seen = start(replica)
    assert [position.done_bytes for position in seen] == sorted(position.done_bytes for position in seen)
    assert all(position.done_bytes <= position.total_bytes for position in seen)
    assert {"reading the log", "reading the base of vda", "reading point 7 whole"} <= {p.doing for p in seen}


def test_it_keeps_the_pace(replica: Scrubbed) -> None:
    clock = FakeClock()
    seen = start(replica, clock=clock, bytes_per_second=10_000.0)
    assert clock.monotonic() == pytest.approx(seen[-1].done_bytes / 10_000, rel=0.01)


def test_it_stops_when_asked_and_lets_go_of_its_pins(replica: Scrubbed) -> None:
    cancel = threading.Event()
    with pytest.raises(ScrubCancelled):
        scrub(
            Journal(replica.store, MACHINE, replica.vault),
            KeyRing(replica.store, MACHINE, replica.vault),
            replica.base_of_store,
            clock=replica.clock,
            cancel=cancel,
            progress=lambda position: cancel.set() if position.doing == "reading point 5" else None,
        )
    assert not replica.journal.state().pins


def test_a_store_that_is_gone_is_no_damage(replica: Scrubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(10):
        replica.random_point()
    read, gone = replica.store.read, [2]

    def fail(key: str, start: int, length: int) -> bytes:
        if key.startswith(segments_prefix(MACHINE)):
            gone[0] -= 1
            if gone[0] < 0:
                raise StoreUnavailable(store="memory://", key=key, why="injected")
        return read(key, start, length)

    monkeypatch.setattr(replica.store, "read", fail)
    with pytest.raises(StoreUnavailable):
        replica.scrub()


def test_one_object_that_cannot_be_read_is(replica: Scrubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    read = replica.store.read

    def fail(key: str, start: int, length: int) -> bytes:
        if key == segment(replica, 4):
            raise StoreUnavailable(store="memory://", key=key, why="Input/output error")
        return read(key, start, length)

    name = segment(replica, 4)
    monkeypatch.setattr(replica.store, "read", lambda k, s, n: fail(k, s, n) if k == name else read(k, s, n))
    damage = only(replica)
    assert (damage.object, damage.points) == (name, {4, 5, 6, 7})


def test_points_come_and_go_while_it_runs() -> None:
    """Commits, merges and promotions beside it: it neither fails nor sees damage, and lets go of all."""
    replica = Scrubbed(4)
    replica.claim()
    for _ in range(8):
        replica.random_point()
    replica.promote(2)
    done = threading.Event()
    failed: list[str] = []

    def verify() -> None:
        try:
            while not done.is_set():
                report = scrub(
                    Journal(replica.store, MACHINE, replica.vault),
                    KeyRing(replica.store, MACHINE, replica.vault),
                    replica.base_of_store,
                    clock=SystemClock(),
                )
                failed.extend(f"{damage}" for damage in report.damaged)
        except Exception as error:  # noqa: BLE001 - the thread's root: told by the test
            failed.append(repr(error))

    thread = threading.Thread(target=verify)
    thread.start()
    for _ in range(12):
        replica.random_point()
        points = replica.journal.points()
        if len(points) > 5:
            replica.merge(points[2].number, points[5].number)
        replica.promote(points[1].number)
    done.set()
    thread.join()
    assert failed == []
    replica.promote(replica.journal.points()[-1].number)
    assert len(replica.journal.points()) == 1


@pytest.mark.parametrize("bounded", [True, False])
def test_what_is_committed_after_the_pin_is_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    """No pin holds it: merged and deleted meanwhile it would look lost, as it does without the bound."""
    replica = Scrubbed(6)
    replica.claim()
    for _ in range(4):
        replica.random_point()
    pinned = replica.journal.points()[-1].number

    def reading(
        journal: Journal, meter: Meter, trusted: Trusted | None, *, last: int | None
    ) -> scrub_log.Log:
        for _ in range(5):
            replica.random_point()
        log = scrub_log.read_log(journal, meter, trusted, last=last if bounded else None)
        points = replica.journal.points()
        replica.merge(points[-4].number, points[-1].number)
        return log

    monkeypatch.setattr(scrub_module, "read_log", reading)
    report = scrub(
        Journal(replica.store, MACHINE, replica.vault),
        KeyRing(replica.store, MACHINE, replica.vault),
        replica.base_of_store,
        clock=SystemClock(),
    )
    assert (report.damaged == []) is bounded
    assert (max(report.points) == pinned) is bounded


def test_digests_of_other_data_are_noticed(replica: Scrubbed) -> None:
    """A source that digested one thing and sealed another: seals and checksums fit, the content does not."""
    key = replica.keys[VDA]
    head = SegmentHead(MACHINE, VDA, 1, SegmentId("ab" * 16), key.id, SIZE)
    writer = SegmentWriter(head, key)
    data, other = bytes([1]) * 8192, bytes([1]) * 4096 + bytes([2]) * 4096
    digests = digest_sub_blocks(memoryview(data), 30, key.digest_seed())
    writer.add(30 * SUB, memoryview(other), digests)
    replica.now[VDA][30 * SUB : 32 * SUB] = data
    made, ref = writer.finish()
    replica.store.put(replica.journal.segment_name(ref), bytes(made))
    point = replica.commit(replica.proposal([ref]))
    damage = only(replica)
    assert (damage.points, "digests" in damage.why) == ({point.number}, True)
    assert not replica.readable(replica.store, point.number)


def test_a_record_that_a_page_of_the_log_holds_too_costs_no_point(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chain_load, log_pages, page_write):
        monkeypatch.setattr(module, "RECORDS", 8)
    replica = Scrubbed(6)
    replica.claim()
    for number in range(20):
        replica.add_point({VDA: [[(number, 2, "random")]]})
    while write_log_page(replica.journal, without=set()) is not None:
        pass
    replica.flip(log_name(MACHINE, 4), 200)
    report = replica.scrub()
    assert [(damage.kind, damage.points) for damage in report.damaged] == [("record", set())]
    assert report.proved == list(range(2, 22))
    assert report.head is not None
    # where no page has it, it does
    replica.flip(log_name(MACHINE, 20), 200)
    assert replica.scrub().lost == list(range(4, 22))


def test_pins_are_renewed_while_a_slow_one_lasts(replica: Scrubbed) -> None:
    clock = FakeClock()
    ends: dict[str, set[str]] = {}

    def look(_: Position) -> None:
        now = clock.utc().isoformat(timespec="microseconds")
        pins = {pin.holder: pin for pin in replica.journal.state().pins}
        assert pins["scrub"].until is not None
        assert pins["scrub"].until > now, "it no longer counts"
        ends.setdefault("scrub", set()).add(pins["scrub"].until)
        assert pins["scrub"].base_number == 2

    # ten days for what is some hundred KiB
    size = replica.scrub().bytes
    start(replica, clock=clock, bytes_per_second=size / (10 * 86400.0), progress=look)
    assert clock.monotonic() > 9 * 86400
    assert len(ends["scrub"]) >= 4


def test_a_clock_that_jumps_ends_no_pin_of_a_living_scrub(replica: Scrubbed) -> None:
    """The upkeep of the same gateway goes on, with a time of day ten years ahead."""
    for _ in range(4):
        replica.random_point()
    listed = [point.number for point in replica.journal.points()]
    looked: list[set[str]] = []

    def look(_: Position) -> None:
        later = (replica.clock.utc() + timedelta(days=3650)).isoformat(timespec="microseconds")
        counted = replica.journal.state().pins_at(later)
        looked.append({pin.holder for pin in counted})
        if len(looked) == 1:
            ahead = FakeClock(replica.clock.utc() + timedelta(days=3650))
            assert promotable(replica.journal, ahead) == listed[0]

    start(replica, progress=look)
    assert all("scrub" in holders for holders in looked)
    assert looked
    assert not replica.journal.state().pins


def promotable(journal: Journal, clock: FakeClock) -> int:
    """Up to where promotion may go: the oldest pin that counts."""
    now = clock.utc().isoformat(timespec="microseconds")
    return min((pin.number for pin in journal.state().pins_at(now)), default=journal.head().number)


def test_a_store_that_cannot_be_written_is_verified_all_the_same(
    replica: Scrubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(key: str, data: bytes) -> None:
        raise StoreUnavailable(store="memory://", key=key, why="Read-only file system")

    monkeypatch.setattr(replica.store, "put", refuse)
    told: list[StoreUnavailable] = []
    with pytest.raises(StoreUnavailable):
        replica.scrub()
    start(replica, on_unpinned=told.append, points=[2, 7])
    assert len(told) == 1
