"""What a source sends again because the target asked, and what it does not listen to."""

from __future__ import annotations

import random

import pytest

from secondsite.gateway.source.mending import Mending, of_disk
from secondsite.gateway.target.repair import bounded
from secondsite.model.extents import Extents
from secondsite.model.ids import DiskId
from secondsite.model.points import Consistency
from secondsite.transfer.protocols import CommittedPoint, Repair
from support.control import Events
from support.machines import SHOP

VDA = DiskId("vda")


def point(checkpoint: str, *ranges: int, version: int = 1) -> CommittedPoint:
    return CommittedPoint(
        number=3,
        epoch=1,
        nonce="0" * 32,
        checkpoint=checkpoint,
        parent_checkpoint=None,
        asked_at="",
        given_at="",
        committed_at="",
        consistency=Consistency.CRASH,
        disks=(),
        repair=Repair(version=version, ranges={VDA: ranges}) if ranges else None,
    )


@pytest.fixture
def mending() -> Mending:
    return Mending(SHOP, "shop", Events())


def test_what_is_asked_for_goes_with_the_next_cycle_and_once(mending: Mending) -> None:
    mending.committed(point("c1", 4096, 8192))
    assert mending.next() == {VDA: Extents.of([(4096, 8192)])}
    # a cycle that failed leaves it as it was
    ranges = mending.next()
    mending.captured("c2", ranges)
    # on its way: what was captured before is still answered with the question
    mending.committed(point("c1", 4096, 8192))
    assert mending.next() == {}
    mending.committed(point("c2"))
    assert mending.next() == {}


def test_what_was_given_up_is_sent_again(mending: Mending) -> None:
    mending.committed(point("c1", 4096, 8192))
    mending.captured("c2", mending.next())
    mending.given_up()
    assert mending.next() == {VDA: Extents.of([(4096, 8192)])}
    mending.captured("c3", mending.next())
    # another process of ours, or a new plan: the head says what is missing now
    mending.asked(point("c1", 8192, 16384))
    assert mending.next() == {VDA: Extents.of([(8192, 16384)])}
    mending.asked(None)
    assert mending.next() == {}


def test_a_target_of_the_future_is_not_misunderstood(mending: Mending) -> None:
    mending.committed(point("c1", 4096, 8192, version=2))
    assert mending.next() == {}


def test_ranges_fit_the_disk_as_it_is_now() -> None:
    ranges = {VDA: Extents.of([(5000, 6000), (90_000, 200_000)])}
    assert of_disk(ranges, VDA, 100_000) == Extents.of([(4096, 8192), (86_016, 100_000)])
    assert of_disk(ranges, DiskId("vdb"), 100_000) == Extents.empty()


def test_many_ranges_become_few_that_hold_them_all() -> None:
    chance = random.Random(2)
    where = Extents.of((at * 4096, at * 4096 + 4096) for at in chance.sample(range(10_000), 3000))
    few = bounded(where, 100)
    assert len(few) == 100
    assert where.subtract(few) == Extents.empty()
    assert bounded(where, 10_000) == where
    # the widest gaps are the ones that stay
    gaps = sorted(few.starts[1:] - few.ends[:-1])
    assert gaps[0] >= sorted(where.starts[1:] - where.ends[:-1])[-99]
