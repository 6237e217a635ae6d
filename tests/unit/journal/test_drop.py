"""All points of a machine deleted together: hidden first, then gone; the journal goes on from its claim."""

from __future__ import annotations

import msgspec
import pytest

from secondsite.journal import chain
from secondsite.journal.chain import Journal
from secondsite.journal.chain_errors import ChainBroken, EpochSuperseded, PointUnknown
from secondsite.journal.drop import PointsNeeded, bases_removed, delete_dropped, drop_points
from secondsite.journal.keys import encode_wrapped
from secondsite.journal.names import (
    log_name,
    log_prefix,
    machine_prefix,
    merged_prefix,
    segments_prefix,
    spans_prefix,
    wrapped_key_name,
)
from secondsite.journal.page_write import write_page
from secondsite.journal.scrub import scrub
from secondsite.journal.state import FLAG_DROPPED, HEADER, Dropped, State
from secondsite.journal.sweep import garbage, unnamed
from secondsite.model.ids import DiskId
from secondsite.model.points import Claim
from support.journal_model import DISKS, MACHINE, Replica, Write


def whole() -> dict[DiskId, list[list[Write]]]:
    return {disk: [[(0, 65, "random")]] for disk in DISKS}


def taken_over(points: int = 8) -> tuple[Replica, Claim]:
    """A replica with bases, a span and points, that was failed over."""
    made = Replica(seed=3)
    made.claim()
    for disk in DISKS:
        data = encode_wrapped(made.vault, MACHINE, disk, made.keys[disk])
        made.store.put(wrapped_key_name(MACHINE, made.keys[disk].id), data)
    for _ in range(points):
        made.random_point()
    numbers = sorted(made.points)
    made.promote(numbers[1])
    assert made.merge(numbers[2], numbers[4]) is not None
    made.claim("gateway-b")
    claim = made.journal.head().claim
    assert claim is not None
    return made, claim


def left(replica: Replica) -> set[str]:
    prefix = machine_prefix(MACHINE)
    kinds = {name.removeprefix(prefix).split("/")[0] for name in replica.store.list(prefix)}
    return kinds - {"keys", "state"}


def test_points_are_hidden_at_once_and_then_deleted() -> None:
    made, claim = taken_over()
    dropped = drop_points(made.journal, claim, clock=made.clock)
    assert (dropped.number, dropped.epoch, len(dropped.bases)) == (claim.number, claim.epoch, 2)
    for journal in (made.journal, Journal(made.store, MACHINE, made.vault)):
        assert journal.points() == []
        assert (journal.head().number, journal.head().epoch) == (claim.number, claim.epoch)
        assert journal.head().claim == claim
        with pytest.raises(PointUnknown):
            journal.pin(max(made.points), "late", "it was listed a moment ago")
    assert left(made) == {"log", "segments", "merged", "spans", "bases"}
    dead = set(unnamed(made.journal).dead)
    assert set(made.store.list(segments_prefix(MACHINE))) <= dead, "by the common rule, too"

    assert delete_dropped(made.journal) > 15
    assert left(made) == {"log"}
    assert list(made.store.list(log_prefix(MACHINE))) == [log_name(MACHINE, claim.number)]
    assert delete_dropped(made.journal) == 0
    assert drop_points(made.journal, claim, clock=made.clock) == dropped
    bases_removed(made.journal, lambda base: base.disk == DISKS[0])
    state = made.journal.state().dropped
    assert isinstance(state, Dropped)
    assert [base.disk for base in state.bases] == [DISKS[1]]
    assert scrub(made.journal, made.ring, lambda _: None, clock=made.clock).damaged == []


def test_a_reader_keeps_everything() -> None:
    made, claim = taken_over()
    made.pin_and_open(max(made.points), "export-1")
    with pytest.raises(PointsNeeded, match="export-1"):
        drop_points(made.journal, claim, clock=made.clock)
    assert delete_dropped(made.journal) == 0
    made.check_views()
    made.unpin("export-1")
    drop_points(made.journal, claim, clock=made.clock)


def test_the_journal_goes_on_after_the_claim() -> None:
    """As for whoever protects the machine here anew: points, a merge from the beginning, a promotion."""
    made, claim = taken_over()
    drop_points(made.journal, claim, clock=made.clock)
    delete_dropped(made.journal)
    made.claim("gateway-a")
    made.points.clear()
    made.bases.clear()
    made.newest = None
    for disk in DISKS:
        made.now[disk][:] = bytes(len(made.now[disk]))
    epoch = made.journal.head().epoch
    made.commit(made.proposal([made.segment(d, epoch, w) for d, (w,) in whole().items()], whole=True))
    for _ in range(5):
        made.random_point()
    made.check()
    numbers = sorted(made.points)
    assert made.merge(0, numbers[2]) is not None, "from the beginning"
    made.check()
    assert made.journal.state().spans[0].first == claim.number + 1
    made.open_journal()
    made.check()
    made.promote(numbers[3])
    for name in garbage(made.journal):
        made.store.delete(name)
    delete_dropped(made.journal)
    made.open_journal()
    made.check()
    while write_page(made.journal, made.ring, without=set()) is not None:
        pass
    made.check()
    assert list(made.store.list(merged_prefix(MACHINE))) == []
    assert list(made.store.list(spans_prefix(MACHINE))) == []


def test_a_writer_that_stalled_commits_nothing_where_records_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is free again once the records went: what it writes must not pass for a point."""
    made = Replica(seed=3)
    made.claim()
    made.random_point()
    proposal = made.proposal([])
    number = made.journal.head().number + 1

    def meanwhile(mark: str) -> None:
        if mark != chain.BEFORE_MANIFEST:
            return
        monkeypatch.setattr(chain, "crash_point", lambda _: None)
        other = Replica(seed=4)
        other.store, other.vault, other.newest = made.store, made.vault, made.newest
        other.open_journal()
        other.checkpoint = 10
        other.random_point()
        other.claim("gateway-b")
        claim = other.journal.head().claim
        assert claim is not None
        drop_points(other.journal, claim, clock=other.clock)
        delete_dropped(other.journal)
        assert log_name(MACHINE, number) not in other.store.list(log_prefix(MACHINE))

    monkeypatch.setattr(chain, "crash_point", meanwhile)
    with pytest.raises(EpochSuperseded):
        made.journal.commit(proposal, clock=made.clock)
    assert log_name(MACHINE, number) not in made.store.list(log_prefix(MACHINE))
    assert made.journal.points() == []


def test_another_claim_at_its_place_is_refused() -> None:
    made, claim = taken_over()
    drop_points(made.journal, claim, clock=made.clock)
    delete_dropped(made.journal)

    def other(state: State) -> State:
        assert isinstance(state.dropped, Dropped)
        return msgspec.structs.replace(state, dropped=msgspec.structs.replace(state.dropped, hash="00" * 32))

    made.journal.update_state(other)
    with pytest.raises(ChainBroken, match="not the claim"):
        Journal(made.store, MACHINE, made.vault).points()
    made.store.delete(log_name(MACHINE, claim.number))
    with pytest.raises(ChainBroken, match="begins with is missing"):
        Journal(made.store, MACHINE, made.vault).points()


def test_older_programs_refuse_such_a_state() -> None:
    made, claim = taken_over()
    names = f"{machine_prefix(MACHINE)}state/"
    before = made.store.get(max(made.store.list(names)), size_bytes_max=1 << 20)
    assert not HEADER.unpack_from(before)[2] & FLAG_DROPPED
    drop_points(made.journal, claim, clock=made.clock)
    after = made.store.get(max(made.store.list(names)), size_bytes_max=1 << 20)
    assert HEADER.unpack_from(after)[2] & FLAG_DROPPED
