"""The upkeep of journals: what a policy says is done and told, and repeated after trouble."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from secondsite.gateway.common.events import EventLog
from secondsite.gateway.target import upkeep as module
from secondsite.gateway.target.retention import Retention
from secondsite.gateway.target.upkeep import Upkeep
from secondsite.journal import merge as merging
from secondsite.journal.chain import Journal
from secondsite.journal.drop import drop_points
from secondsite.journal.keys import encode_wrapped
from secondsite.journal.names import is_of_points, merged_prefix, segments_prefix, wrapped_key_name
from secondsite.journal.promote import OpenBase
from secondsite.journal.store import StoreFull, StoreLocked
from secondsite.journal.store_memory import PowerCut
from secondsite.model.points import Consistency
from secondsite.model.retention import HOUR, Policies, RetentionPolicy
from support.journal_model import DISKS, MACHINE, Replica

POLICY = RetentionPolicy.parse("all:1h,1h:6h")


class Rig:
    """A replica whose points come every ten minutes, and its upkeep."""

    def __init__(self, policy: RetentionPolicy = POLICY, *, bases: bool = True) -> None:
        self.replica = Replica(7)
        self.replica.claim()
        self.events = EventLog(self.replica.clock)
        self.policy, self.bases = policy, bases
        self.verified: set[int] = set()
        self.begin()

    def begin(self) -> None:
        self.upkeep = Upkeep(
            journal=self.replica.journal,
            keys=self.replica.ring,
            policy=lambda: self.policy,
            open_base=self.replica.open_base if self.bases else None,
            verified=lambda: self.verified,
            clock=self.replica.clock,
            events=self.events,
            cancel=threading.Event(),
            pace=lambda count: None,
        )

    def points(self, count: int, *, every: float = 600.0) -> None:
        for _ in range(count):
            self.replica.random_point()
            self.replica.clock.advance(every)

    def settle(self) -> int:
        """All steps there are to do."""
        steps = 0
        while self.upkeep.step():
            steps += 1
            assert steps < 200, "it never settles"
        return steps

    def check(self) -> None:
        """What is listed reads right; what is not is forgotten by the model."""
        listed = {point.number for point in self.replica.journal.points()}
        for number in set(self.replica.points) - listed:
            del self.replica.points[number]
        self.replica.check()

    def codes(self) -> list[str]:
        return [event.code for _, event in self.events.since(0, 1000)]


def test_a_day_of_points_is_thinned_and_read_right() -> None:
    rig = Rig()
    rig.points(24 * 6)
    rig.settle()
    rig.check()
    state = rig.replica.journal.state()
    listed = [point.number for point in rig.replica.journal.points()]
    # an hour or two of all, then one an hour back to six hours, and what the base holds
    assert 6 + 5 <= len(listed) <= 12 + 6
    assert state.promoted == state.floor == listed[0]
    assert state.retired == ()
    assert "retention.merged" in rig.codes()
    assert "promote.done" in rig.codes()
    assert rig.settle() == 0


def test_while_points_come_it_keeps_up() -> None:
    rig = Rig()
    for _ in range(40):
        rig.points(3)
        rig.settle()
        rig.check()
    assert len(rig.replica.journal.points()) < 20
    assert len(list(rig.replica.store.list(segments_prefix(MACHINE)))) < 100


def test_without_bases_everything_stays_in_the_journal() -> None:
    rig = Rig(bases=False)
    rig.points(60)
    rig.settle()
    rig.check()
    state = rig.replica.journal.state()
    assert (state.floor, state.promoted, state.bases) == (0, 0, ())
    assert len(rig.replica.journal.points()) < 20
    assert list(rig.replica.store.list(merged_prefix(MACHINE)))


def test_only_the_latest() -> None:
    rig = Rig(RetentionPolicy.parse("latest"))
    rig.points(5)
    rig.settle()
    rig.check()
    assert len(rig.replica.journal.points()) == 1


def test_a_held_point_stays_and_it_is_said_who_holds_it() -> None:
    rig = Rig()
    rig.points(10)
    held = rig.replica.journal.points()[3].number
    until = (rig.replica.clock.utc() + timedelta(hours=20)).isoformat(timespec="microseconds")
    rig.replica.journal.pin(held, "hold:upgrade", "before the upgrade", until)
    rig.points(60)
    rig.settle()
    rig.check()
    assert held in {point.number for point in rig.replica.journal.points()}
    assert any("hold:upgrade" in event.text for _, event in rig.events.since(0, 1000))
    rig.points(70)  # past its end
    rig.settle()
    rig.check()
    assert held not in {point.number for point in rig.replica.journal.points()}


def test_application_consistent_and_verified_points_are_kept_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.points(12)
    verified = rig.replica.journal.points()[4].number
    rig.verified.add(verified)
    rig.points(24)
    rig.settle()
    assert verified in {point.number for point in rig.replica.journal.points()}
    assert all(point.consistency is Consistency.CRASH for point in rig.replica.journal.points())


def test_a_large_group_is_merged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS_MAX", 7)
    rig = Rig(RetentionPolicy.parse("all:1h,1h:6h"), bases=False)
    rig.points(40, every=120.0)
    rig.points(20)
    rig.settle()
    rig.check()
    sizes = [
        event.data["points_gone"]
        for _, event in rig.events.since(0, 1000)
        if event.code == "retention.merged"
    ]
    assert sizes
    assert max(int(size) for size in sizes) <= 6


@pytest.mark.parametrize("bases", [True, False])
def test_cut_anywhere_it_goes_on(bases: bool) -> None:
    """A power cut at every tenth operation of the whole upkeep; the next process ends it."""
    for cut in range(1, 200, 10):
        rig = Rig(bases=bases)
        rig.points(40)
        rig.replica.faults.cut_at = rig.replica.faults.count + cut
        try:
            rig.settle()
        except PowerCut:
            rig.replica.restart()
            rig.begin()
        rig.replica.faults.cut_at = None
        rig.check()
        rig.settle()
        rig.check()
        rig.upkeep._swept_at = None
        rig.settle()
        assert rig.replica.journal.state().retired == ()
        named = {
            rig.replica.journal.segment_name(s)
            for p in rig.replica.journal.points_after(0)
            for s in p.segments
        }
        found = set(rig.replica.store.list(merged_prefix(MACHINE)))
        assert found <= named


def test_nothing_is_dropped_for_an_hour_after_the_clock_jumped() -> None:
    rig = Rig()
    rig.points(30)
    rig.settle()
    before = [point.number for point in rig.replica.journal.points()]
    rig.replica.clock.advance(365 * 24 * HOUR)
    rig.points(3)
    rig.settle()
    assert [point.number for point in rig.replica.journal.points()][: len(before)] == before
    assert "retention.waiting" in rig.codes()


def test_orphans_of_the_epoch_in_force_go_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORPHAN_POINTS", 5)
    rig = Rig()
    rig.points(3)
    orphan = rig.replica.segment(DISKS[0], rig.replica.journal.head().epoch, [])
    name = rig.replica.journal.segment_name(orphan)
    for _ in range(3):
        rig.settle()
        assert name in set(rig.replica.store.list(segments_prefix(MACHINE)))
        rig.points(2, every=2000.0)
    rig.points(3, every=2000.0)
    rig.settle()
    assert name not in set(rig.replica.store.list(segments_prefix(MACHINE)))
    rig.check()


def test_what_cannot_be_merged_is_told_once_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise merging.NotMergeable("a test says so")

    rig = Rig()
    rig.points(40)
    monkeypatch.setattr(module, "merge", refuse)
    rig.settle()
    told = [event.text for _, event in rig.events.since(0, 1000) if event.code == "retention.not-merged"]
    assert len(told) == len(set(told)) > 0
    rig.check()


def test_what_is_locked_stays_and_goes_when_its_lock_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a bucket with object lock: merged points leave the list at once, their objects later."""
    rig = Rig()
    store = rig.replica.store
    real, locked = store.delete, [True]

    def delete(key: str) -> None:
        if locked[0] and is_of_points(key):
            raise StoreLocked(key=key, store="a bucket", until="tomorrow")
        real(key)

    monkeypatch.setattr(store, "delete", delete)
    rig.points(60)
    rig.settle()
    rig.check()
    assert rig.replica.journal.state().retired
    assert rig.codes().count("retention.locked") == 1
    rig.points(4)
    rig.settle()
    rig.check()
    locked[0] = False
    rig.points(7)
    for _ in range(3):
        rig.settle()
        rig.replica.clock.advance(HOUR + 1)
    rig.points(1)
    rig.settle()
    rig.check()
    assert rig.replica.journal.state().retired == ()


def test_what_comes_late_after_all_points_were_deleted_goes_as_well() -> None:
    rig = Rig()
    rig.points(3)
    journal = rig.replica.journal
    rig.replica.claim("gateway-b")
    claim = journal.head().claim
    assert claim is not None
    drop_points(journal, claim, clock=rig.replica.clock)
    assert not rig.upkeep.step()
    segments = segments_prefix(MACHINE)
    assert list(journal.store.list(segments)) == []
    rig.replica.segment(DISKS[0], claim.epoch - 1, [(1, 3, "random")])
    rig.replica.segment(DISKS[0], claim.epoch, [(1, 3, "random")])
    rig.upkeep.step()
    assert len(list(journal.store.list(segments))) == 2, "looked at now and then"
    rig.replica.clock.advance(module.SWEEP_SECONDS)
    rig.upkeep.step()
    [kept] = journal.store.list(segments)
    assert f"/{claim.epoch:08d}/" in kept, "what the epoch in force may commit yet stays"


def test_the_thread_does_it_for_every_machine_and_tells_of_trouble() -> None:
    replica = Replica(3)
    for key, disk in ((replica.keys[disk], disk) for disk in DISKS):
        replica.store.put(
            wrapped_key_name(MACHINE, key.id), encode_wrapped(replica.vault, MACHINE, disk, key)
        )
    replica.claim()
    for _ in range(3):
        replica.random_point()
    events = EventLog(replica.clock)
    failing = threading.Event()
    failing.set()

    def open_base(journal: Journal) -> OpenBase:
        def opened(*args: object) -> object:
            if failing.is_set():
                raise StoreFull(store="bases", key="vda")
            return replica.open_base(*args)  # type: ignore[arg-type]

        return opened  # type: ignore[return-value]

    retention = Retention(
        replica.store,
        Policies(RetentionPolicy.parse("latest")),
        vault=replica.vault,
        open_base=open_base,
        clock=replica.clock,
        events=events,
    )
    retention.start()
    wait_for(lambda: any(event.code == "retention.failed" for _, event in events.since(0, 1000)))
    failing.clear()
    wait_for(lambda: len(replica.journal.points()) == 1)
    retention.close()
    assert replica.read(replica.journal.points()[0].number) == replica.points[max(replica.points)]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("it never happened")
