"""A promotion that meets damage goes on where a later point has what was lost, and writes nothing wrong."""

from __future__ import annotations

import pytest

from secondsite.base.errors import SecondsiteError
from secondsite.journal.promote import promote
from secondsite.journal.promote_past import point_past_damage
from support.journal_model import DISKS
from support.scrub_model import Scrubbed

VDA, VDB = DISKS


@pytest.fixture
def replica() -> Scrubbed:
    made = Scrubbed(5)
    made.claim()
    made.add_point({VDA: [[(0, 60, "random")]], VDB: [[(0, 60, "random")]]})
    made.promote(made.journal.points()[0].number)
    return made


def stuck(replica: Scrubbed, number: int) -> None:
    """A promotion to a point that needs what is damaged: it cannot end, and says why."""
    with pytest.raises(SecondsiteError):
        replica.promote(number)
    assert replica.journal.state().floor == number > replica.journal.state().promoted


def past(replica: Scrubbed, number: int) -> None:
    journal, clock = replica.journal, replica.clock
    promote(journal, number, replica.ring, replica.open_base, clock=clock, past_damage=True)


@pytest.mark.parametrize("gone", [True, False])
def test_it_goes_on_past_the_points_that_lack_it(replica: Scrubbed, gone: bool) -> None:
    hurt = replica.add_point({VDA: [[(8, 4, "random")]]})
    lacking = replica.add_point({VDA: [[(30, 2, "random")]], VDB: [[(3, 1, "random")]]})
    name = replica.journal.segment_name(hurt.segments[0])
    if gone:
        replica.remove(name)
    else:
        replica.flip(name, 300)
    stuck(replica, hurt.number)
    assert point_past_damage(replica.journal, replica.ring) is None
    # a segment that is gone may have held anything: all of the disk has to come again
    again = replica.add_point({VDA: [[(0, 65, "random")]] if gone else [[(7, 6, "random")]]})
    after = replica.add_point({VDB: [[(1, 1, "random")]]})
    assert point_past_damage(replica.journal, replica.ring) == again.number
    past(replica, again.number)
    assert replica.journal.state().promoted == again.number
    del replica.points[hurt.number], replica.points[lacking.number]
    replica.check()
    report = replica.scrub()
    assert report.proved == [again.number, after.number]
    assert not report.damaged


def test_later_damage_elsewhere_is_not_passed_over(replica: Scrubbed) -> None:
    hurt = replica.add_point({VDA: [[(8, 4, "random")]]})
    replica.flip(replica.journal.segment_name(hurt.segments[0]), 300)
    stuck(replica, hurt.number)
    again = replica.add_point({VDA: [[(8, 4, "random"), (40, 2, "random")]]})
    replica.flip(replica.journal.segment_name(again.segments[0]), 300)
    assert point_past_damage(replica.journal, replica.ring) is None
    healed = replica.add_point({VDA: [[(0, 64, "random")]]})
    assert point_past_damage(replica.journal, replica.ring) == healed.number


def test_a_pin_is_not_passed_over(replica: Scrubbed) -> None:
    hurt = replica.add_point({VDA: [[(8, 4, "random")]]})
    pinned = replica.add_point({VDB: [[(8, 4, "random")]]})
    replica.flip(replica.journal.segment_name(hurt.segments[0]), 300)
    stuck(replica, hurt.number)
    replica.journal.pin(pinned.number, "somebody", "a test")
    again = replica.add_point({VDA: [[(8, 4, "random")]]})
    with pytest.raises(SecondsiteError):
        promote(
            replica.journal,
            again.number,
            replica.ring,
            replica.open_base,
            clock=replica.clock,
            past_damage=True,
        )
    assert replica.journal.state().floor == hurt.number
