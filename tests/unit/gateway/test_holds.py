"""Holds: a point stays until its end, bad requests change nothing, and a hold is no reader."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.messages.gateway import HoldRequest, PointHold
from secondsite.gateway.target.holds import Holds, HoldUnknown, holders
from secondsite.gateway.target.upkeep import Upkeep
from secondsite.journal.episodes import EpisodeRecord, keep_episode
from secondsite.journal.names import merged_prefix, segments_prefix
from secondsite.model.retention import RetentionPolicy
from support.journal_model import MACHINE, Replica


class Rig:
    """A journal of the model with holds and an upkeep that keeps the latest point only."""

    def __init__(self, *, bases: bool, policy: str = "latest") -> None:
        self.replica = Replica(5)
        self.replica.claim()
        self.events = EventLog(self.replica.clock)
        self.looks = 0
        self.served: list[str] = []
        self.holds = Holds(
            lambda machine: self.replica.journal,
            clock=self.replica.clock,
            events=self.events,
            served=lambda machine: self.served,
            released=self.look,
        )
        self.upkeep = Upkeep(
            journal=self.replica.journal,
            keys=self.replica.ring,
            policy=lambda: RetentionPolicy.parse(policy),
            open_base=self.replica.open_base if bases else None,
            verified=lambda: (),
            clock=self.replica.clock,
            events=self.events,
            cancel=threading.Event(),
            pace=lambda count: None,
        )

    def look(self) -> None:
        self.looks += 1

    def points(self, count: int) -> None:
        for _ in range(count):
            self.replica.random_point()
            self.replica.clock.advance(5)

    def settle(self) -> None:
        for _ in range(100):
            if not self.upkeep.step():
                return
        pytest.fail("it never settles")

    def listed(self) -> list[int]:
        return [point.number for point in self.replica.journal.points()]

    def check(self) -> None:
        for number in set(self.replica.points) - set(self.listed()):
            del self.replica.points[number]
        self.replica.check()

    def hold(self, point: str, *, until: str = "12h", name: str | None = None, reason: str = "why") -> int:
        request = HoldRequest(point=point, reason=reason, until=until, name=name)
        return self.holds.hold(MACHINE, request).number

    def told(self) -> list[tuple[str, str]]:
        return [(event.code, event.text) for _, event in self.events.since(0, 1000)]


@pytest.mark.parametrize("bases", [True, False])
def test_a_held_point_stays_until_it_is_released(bases: bool) -> None:
    rig = Rig(bases=bases)
    rig.points(5)
    held = rig.hold("4", name="upgrade", reason="before the upgrade")
    assert held == 4
    rig.points(5)
    rig.settle()
    assert held in rig.listed()
    assert len(rig.listed()) == 2
    rig.check()
    assert rig.looks == 0
    released = rig.holds.release(MACHINE, "upgrade")
    assert [(one.number, one.hold.reason) for one in released] == [(4, "before the upgrade")]
    assert rig.looks == 1
    rig.settle()
    assert len(rig.listed()) == 1
    rig.check()
    assert (
        "point.held",
        "point 4 of web is held until 2026-01-01 12:00:25Z: before the upgrade",
    ) in rig.told()
    assert ("point.released", "point 4 of web is no longer held (before the upgrade)") in rig.told()


def test_past_its_end_it_no_longer_counts_and_makes_room_in_the_list() -> None:
    rig = Rig(bases=True)
    rig.points(3)
    rig.hold("2", until="10s")
    end = (rig.replica.clock.utc() + timedelta(hours=2)).isoformat()
    rig.hold("3", until=end)
    assert {n: [h.holder for h in held] for n, held in _holders(rig).items()} == {
        2: ["hold:2"],
        3: ["hold:3"],
    }
    rig.points(3)
    assert list(_holders(rig)) == [3]
    rig.settle()
    assert 2 not in rig.listed()
    assert 3 in rig.listed()
    rig.hold("latest")
    assert {pin.holder for pin in rig.replica.journal.state().pins} == {"hold:3", f"hold:{rig.listed()[-1]}"}
    with pytest.raises(HoldUnknown, match="there are 3 "):
        rig.holds.release(MACHINE, "2")


def _holders(rig: Rig) -> dict[int, tuple[PointHold, ...]]:
    return holders(rig.replica.journal.state(), rig.replica.clock)


@pytest.mark.parametrize(
    "wrong",
    [
        {"until": "yesterday"},
        {"until": "2025-12-31T00:00:00"},
        {"until": "0s"},
        {"until": "20000d"},
        {"until": "999999999d"},
        {"until": "9999-12-31"},
        {"until": "2026-13-01"},
        {"reason": "  "},
        {"name": "17"},
        {"name": "a b"},
        {"name": "../x"},
        {"name": "x" * 64},
        {"point": "99"},
        {"point": "1999-01-01T00:00:00"},
        {"point": "newest"},
        {"point": "2", "name": "taken"},
    ],
    ids=str,
)
def test_what_is_wrong_changes_nothing(wrong: dict[str, str]) -> None:
    rig = Rig(bases=True)
    rig.points(3)
    rig.hold("3", name="taken")
    before = rig.replica.journal.state()
    fields = {"point": "3", "reason": "why", "until": "1h", **wrong}
    with pytest.raises(SecondsiteError):
        rig.holds.hold(MACHINE, HoldRequest(**fields))
    assert rig.replica.journal.state() == before


def test_the_same_hold_again_changes_its_end_and_release_by_number_takes_all_of_a_point() -> None:
    rig = Rig(bases=True)
    rig.points(3)
    rig.hold("3", name="a", until="1h")
    rig.hold("3", name="a", until="2h", reason="longer")
    rig.hold("3")
    rig.hold("2", name="b")
    (first, _second, _third) = rig.replica.journal.state().pins
    assert (first.holder, first.reason, first.until) == (
        "hold:a",
        "longer",
        "2026-01-01T02:00:15.000000+00:00",
    )
    rig.replica.journal.pin(3, "user-1", "exported by command")
    assert len(rig.holds.release(MACHINE, "3")) == 2
    assert {pin.holder for pin in rig.replica.journal.state().pins} == {"hold:b", "user-1"}
    with pytest.raises(HoldUnknown):  # what an export holds is not a person's to release
        rig.holds.release(MACHINE, "user-1")


def test_a_day_is_a_time_too_and_zones_are_minded() -> None:
    rig = Rig(bases=True)
    rig.points(2)
    request = HoldRequest(point="latest", reason="r", until="2026-02-01", name="day")
    assert rig.holds.hold(MACHINE, request).hold.until == "2026-02-01T00:00:00.000000+00:00"
    request = HoldRequest(point="latest", reason="r", until="2026-02-01T01:00:00+05:00", name="zone")
    assert rig.holds.hold(MACHINE, request).hold.until == "2026-01-31T20:00:00.000000+00:00"
    with pytest.raises(InvalidInput, match="it is past"):
        rig.holds.hold(MACHINE, HoldRequest(point="latest", reason="r", until="2026-01-01T01:00:00+05:00"))


@pytest.mark.parametrize("bases", [True, False])
def test_a_hold_is_no_reader_what_merging_replaces_is_deleted_at_once(bases: bool) -> None:
    """A hold of a month must not keep a month of replaced segments."""
    rig = Rig(bases=bases)
    rig.points(4)
    rig.hold("latest", name="long", until="30d")
    held = rig.listed()[-1]
    rig.points(8)
    rig.settle()
    state = rig.replica.journal.state()
    assert state.retired == ()
    named = {
        rig.replica.journal.segment_name(s)
        for point in rig.replica.journal.points_after(state.promoted)
        for s in point.segments
    }
    there = {
        *rig.replica.store.list(segments_prefix(MACHINE)),
        *rig.replica.store.list(merged_prefix(MACHINE)),
    }
    assert there == named
    rig.check()
    # an export of the held point is a reader of its own
    rig.replica.pin_and_open(held, "user-1")
    rig.holds.release(MACHINE, "long")
    rig.points(3)
    rig.settle()
    rig.replica.check_views()


def test_what_a_lost_gateway_served_is_let_go_and_nothing_else() -> None:
    rig = Rig(bases=True)
    rig.points(3)
    rig.hold("2", name="a")
    rig.served = ["export:user-1"]
    for holder in ("export:user-1", "export:user-2", "export:test-3", "scrub:4"):
        rig.replica.journal.pin(3, holder, "served")
    assert [one.hold.holder for one in rig.holds.release_lost(MACHINE)] == ["export:user-2", "export:test-3"]
    assert {pin.holder for pin in rig.replica.journal.state().pins} == {"hold:a", "export:user-1", "scrub:4"}
    assert rig.looks == 1
    assert rig.holds.release_lost(MACHINE) == []
    assert rig.looks == 1


def test_the_last_clean_point_is_held_by_its_name() -> None:
    rig = Rig(bases=False)
    rig.points(4)
    first, clean, doubtful, newest = rig.listed()
    assert rig.hold("last-clean", name="all-clean") == newest, "nothing is in doubt"
    record = EpisodeRecord(
        machine=MACHINE,
        first=doubtful,
        number=newest,
        clean=clean,
        clean_at=None,
        found_at="2026-11-21T00:00:00+00:00",
        reason="scrambled",
        critical=True,
        scrambled_bytes=1,
    )
    assert keep_episode(rig.replica.journal, record)
    assert rig.hold("last-clean") == clean
    assert first != clean
