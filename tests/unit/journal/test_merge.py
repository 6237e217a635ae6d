"""Merging, one situation at a time, and bugs planted in it that the model must notice."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.journal import merge as merging
from secondsite.journal import sweep
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import ChainBroken, PointUnknown
from secondsite.journal.disk_index import DiskIndex
from secondsite.journal.merge import NotMergeable, merge
from secondsite.journal.merged_index import Layer
from secondsite.journal.names import log_name, segments_prefix, span_name
from secondsite.journal.state import State
from secondsite.journal.sweep import delete_retired, garbage
from support.journal_model import DISKS, MACHINE, SUB, Replica
from unit.journal.test_merge_model import Life


@pytest.fixture
def replica() -> Replica:
    made = Replica(5)
    made.claim()
    return made


def numbers(replica: Replica) -> list[int]:
    return [point.number for point in replica.journal.points()]


def test_ten_points_become_one(replica: Replica) -> None:
    for _ in range(12):
        replica.random_point()
    objects = len(list(replica.store.list(segments_prefix(MACHINE))))
    first, last = numbers(replica)[0], numbers(replica)[10]
    done = replica.merge(first, last)
    assert done is not None
    assert done.points == 9
    assert numbers(replica) == [first, last, last + 1]
    assert len(list(replica.store.list(segments_prefix(MACHINE)))) < objects
    replica.check()
    replica.open_journal()  # read afresh
    replica.check()
    assert replica.journal.head().number == last + 1


def test_spans_merge_again(replica: Replica) -> None:
    for _ in range(12):
        replica.random_point()
    ids = numbers(replica)
    replica.merge(ids[0], ids[4])
    replica.merge(ids[4], ids[8])
    replica.merge(ids[0], ids[9])
    assert numbers(replica) == [ids[0], ids[9], *ids[10:]]
    replica.open_journal()
    replica.check()
    assert garbage(replica.journal) == []


def test_the_next_points_go_on_after_a_span(replica: Replica) -> None:
    for _ in range(5):
        replica.random_point()
    ids = numbers(replica)
    replica.merge(ids[0], ids[-1])
    replica.random_point()
    replica.open_journal()
    replica.random_point()
    replica.check()
    replica.promote(ids[-1])
    replica.check()
    replica.promote(numbers(replica)[-1])
    replica.check()


def test_shrunk_and_grown_inside(replica: Replica) -> None:
    """What a shrink took away does not come back, though no point that is left shows the small size."""
    replica.random_point()
    replica.add_point({DISKS[0]: [[(0, 64, "random")]]})
    replica.resize(DISKS[0], SUB * 16)
    replica.resize(DISKS[0], SUB * 48, told=False)
    ids = numbers(replica)
    assert replica.merge(ids[1], ids[-1]) is not None
    replica.check()


def test_an_end_inside_four_kib_is_left_alone_where_it_cannot_be_put_together(replica: Replica) -> None:
    replica.add_point({DISKS[0]: [[(0, 64, "random")]]})
    replica.resize(DISKS[0], SUB * 16 - 512)
    replica.resize(DISKS[0], SUB * 48, told=False)
    ids = numbers(replica)
    with pytest.raises(NotMergeable):
        merge(replica.journal, ids[0], ids[-1], replica.ring, clock=replica.clock)
    assert replica.journal.state().merging == ""
    assert numbers(replica) == ids
    replica.check()
    assert garbage(replica.journal) == []


def an_end_inside_four_kib(replica: Replica) -> list[int]:
    """A disk ends inside a sub-block, is written up to there, and grows; returns the points' numbers."""
    replica.add_point({DISKS[0]: [[(0, 64, "random")]]})
    replica.resize(DISKS[0], SUB * 16 - 512)
    replica.add_point({DISKS[0]: [[(14, 2, "random")]]})
    replica.resize(DISKS[0], SUB * 48, told=False)
    return numbers(replica)


def test_an_end_inside_four_kib_is_put_together(replica: Replica) -> None:
    ids = an_end_inside_four_kib(replica)
    assert replica.merge(ids[0], ids[-1]) is not None
    replica.check()


def test_planted_cuts_stay(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the putting together no reader takes the segment."""
    monkeypatch.setattr(merging, "_whole_sub_blocks", cuts_stay)
    ids = an_end_inside_four_kib(replica)
    replica.merge(ids[0], ids[-1])
    with pytest.raises(SecondsiteError):
        replica.check()


def test_a_pin_is_in_the_way(replica: Replica) -> None:
    for _ in range(5):
        replica.random_point()
    ids = numbers(replica)
    replica.pin_and_open(ids[2], "test-1")
    assert replica.merge(ids[0], ids[4]) is None
    assert replica.merge(ids[0], ids[2]) is not None
    replica.check_views()
    replica.check()


def test_a_pin_that_comes_too_late_is_refused(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the list and the pin the point was merged away."""
    for _ in range(5):
        replica.random_point()
    ids = numbers(replica)
    other = Journal(replica.store, MACHINE, replica.vault)
    real = other.point

    def point(number: int) -> object:
        found = real(number)
        replica.merge(ids[0], ids[4])
        return found

    monkeypatch.setattr(other, "point", point)
    with pytest.raises(PointUnknown):
        other.pin(ids[2], "late", "a race")
    assert replica.journal.state().pins == ()


def test_of_two_merges_the_one_that_began_last_wins(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(6):
        replica.random_point()
    ids = numbers(replica)
    other = Journal(replica.store, MACHINE, replica.vault)
    real = merging._put_span
    began: list[bool] = []

    def put_span(*args: object) -> None:
        if not began:
            began.append(True)
            merge(other, ids[0], ids[4], replica.ring, clock=replica.clock)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(merging, "_put_span", put_span)
    with pytest.raises(NotMergeable):
        merge(replica.journal, ids[0], ids[3], replica.ring, clock=replica.clock)
    for number in ids[1:4]:
        del replica.points[number]
    replica.check()
    for name in garbage(replica.journal):
        replica.store.delete(name)
    replica.check()


def test_what_a_pinned_reader_uses_is_no_garbage(replica: Replica) -> None:
    """Segments of a dead epoch that only a replaced span or point names."""
    for _ in range(6):
        replica.random_point()
    ids = numbers(replica)
    replica.merge(ids[0], ids[2])
    replica.pin_and_open(ids[4], "test-1")
    replica.claim("gateway-b")
    replica.random_point()
    assert replica.merge(ids[0], ids[4]) is not None
    for name in garbage(replica.journal):
        replica.store.delete(name)
    replica.check_views()
    replica.unpin("test-1")
    delete_retired(replica.journal, clock=replica.clock)
    assert replica.journal.state().retired == ()
    replica.check()


def test_another_process_sees_it_at_its_next_look(replica: Replica) -> None:
    other = Journal(replica.store, MACHINE, replica.vault)
    for _ in range(6):
        replica.random_point()
    assert len(other.points()) == 6
    ids = numbers(replica)
    replica.merge(ids[0], ids[5])
    assert [point.number for point in other.points()] == [ids[0], ids[5]]
    with pytest.raises(PointUnknown):
        other.point(ids[3])


@pytest.mark.parametrize("what", ["span", "record"])
def test_what_is_gone_is_said(replica: Replica, what: str) -> None:
    for _ in range(4):
        replica.random_point()
    ids = numbers(replica)
    replica.merge(ids[0], ids[3])
    (span,) = replica.journal.state().spans
    replica.store.delete(span_name(MACHINE, span.id) if what == "span" else log_name(MACHINE, ids[3]))
    replica.open_journal()
    with pytest.raises(SecondsiteError) as told:
        replica.journal.points()
    assert told.value.code in {"store.object-missing", "journal.chain-broken"}


def test_another_span_in_its_place_is_noticed(replica: Replica) -> None:
    for _ in range(6):
        replica.random_point()
    ids = numbers(replica)
    replica.merge(ids[0], ids[3])
    older = replica.store.get(span_name(MACHINE, replica.journal.state().spans[0].id), size_bytes_max=1 << 20)
    replica.merge(ids[0], ids[5])
    name = span_name(MACHINE, replica.journal.state().spans[0].id)
    replica.store.delete(name)
    replica.store.put(name, older)
    replica.open_journal()
    with pytest.raises(ChainBroken):
        replica.journal.points()


def nobody_is_in_the_way(state: State, after: int, last: int, clock: object) -> None:
    return None


def cuts_stay(index: DiskIndex, size_bytes: int) -> tuple[Layer, dict[int, bytes]]:
    return index.layer, {}


def nothing_is_named(journal: Journal, held: object) -> set[str]:
    return set()


def nothing_is_kept(self: object, *args: object) -> set[int]:
    return set()


def everything_is_kept(self: merging._DiskMerger, index: DiskIndex, layer: Layer) -> set[int]:
    return set(range(len(index.readers)))


def no_pins(self: State, now: str) -> tuple[()]:
    return ()


PLANTED: dict[str, tuple[object, str, Callable[..., object]]] = {
    "pins do not hold a merge back": (merging, "_in_the_way", nobody_is_in_the_way),
    "segments another span names are deleted": (sweep, "_named", nothing_is_named),
    "segments that would come back are kept": (merging._DiskMerger, "_kept", everything_is_kept),
    "readers do not hold deletion back": (State, "pins_at", no_pins),
}


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model test must notice each within its seeds."""
    where, name, wrong = PLANTED[bug]
    monkeypatch.setattr(where, name, wrong)

    def all_is_well() -> None:
        for seed in range(12):
            Life(seed).run()

    with pytest.raises((AssertionError, SecondsiteError, KeyError, NotMergeable, EOFError, IndexError)):
        all_is_well()


def test_the_model_is_content_without_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterpart: also when nothing is ever kept as it is."""
    monkeypatch.setattr(merging._DiskMerger, "_kept", nothing_is_kept)
    Life(3).run()


def test_pins_of_older_states_have_no_generation(replica: Replica) -> None:
    """A state of an earlier version: its pins hold everything that is replaced from now on."""
    for _ in range(5):
        replica.random_point()
    ids = numbers(replica)
    replica.pin_and_open(ids[4], "test-1")
    replica.journal.update_state(
        lambda now: msgspec.structs.replace(
            now, pins=tuple(msgspec.structs.replace(pin, generation=0) for pin in now.pins)
        )
    )
    replica.merge(ids[0], ids[4])
    replica.check_views()
    assert replica.journal.state().retired
