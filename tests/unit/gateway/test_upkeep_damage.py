"""The upkeep of a journal with damage in it: what can be done is done, and nothing wrong is written."""

from __future__ import annotations

import threading

import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.gateway.target.upkeep import Upkeep
from secondsite.model.retention import RetentionPolicy
from support.control import Events
from support.journal_model import DISKS
from support.scrub_model import Scrubbed

VDA, VDB = DISKS


class Rig:
    """A journal whose base holds its first point; or without bases."""

    def __init__(self, policy: str, *, bases: bool = True) -> None:
        self.replica = Scrubbed(11)
        self.events = Events()
        self.replica.claim()
        self.replica.add_point({VDA: [[(0, 60, "random")]], VDB: [[(0, 60, "random")]]})
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
        self.run()

    def run(self) -> None:
        while self.upkeep.step():
            pass

    def point(self, first: int, count: int, after: float) -> int:
        """A point of vda, committed `after` seconds after the one before."""
        self.replica.clock.advance(after)
        return self.replica.add_point({VDA: [[(first, count, "random")]]}).number

    def forget_gone(self) -> None:
        listed = {point.number for point in self.replica.journal.points()}
        for number in set(self.replica.points) - listed:
            del self.replica.points[number]


def test_a_promotion_that_met_damage_goes_on_once_it_was_written_again() -> None:
    rig = Rig("all:1h")
    hurt = rig.point(8, 4, 600)
    lacking = rig.point(30, 2, 600)
    ref = rig.replica.journal.point(hurt).segments[0]
    rig.replica.flip(rig.replica.journal.segment_name(ref), 300)
    rig.point(40, 2, 3000)
    with pytest.raises(SecondsiteError):  # the point is due to be promoted
        rig.run()
    assert rig.replica.journal.state().floor > rig.replica.journal.state().promoted
    again = rig.point(6, 8, 60)
    rig.run()
    assert rig.replica.journal.state().promoted == again > lacking
    rig.forget_gone()
    rig.replica.check()
    assert rig.replica.scrub().proved == [again]
    assert any("written again" in event.text for event in rig.events.all)


def test_damage_in_one_group_keeps_no_other_from_being_merged() -> None:
    rig = Rig("all:1h,1h:1d", bases=False)
    numbers = [rig.point(4 * (number % 12), 3, 900) for number in range(16)]
    ref = rig.replica.journal.point(numbers[2]).segments[0]
    rig.replica.flip(rig.replica.journal.segment_name(ref), 300)
    rig.run()
    listed = [point.number for point in rig.replica.journal.points()]
    assert "retention.merged" in rig.events.codes()
    assert len(listed) < len(numbers)
    rig.forget_gone()
    report = rig.replica.scrub()
    for number in listed:
        assert rig.replica.readable(rig.replica.store, number) == (number not in report.lost)
    assert numbers[2] in report.lost or numbers[2] not in listed
