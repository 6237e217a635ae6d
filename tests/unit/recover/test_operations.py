"""Test failovers asked for by an id, as servers do: once, whatever is asked again; and the newest points."""

from __future__ import annotations

import pytest

from secondsite.gateway.messages.testfailover import CleanUp, StartTestFailover, TestFailoverState
from secondsite.gateway.recovery.testfailover import (
    NoTestFailover,
    OperationTaken,
    TestFailoverCalledOff,
    TestFailoverRunning,
)
from secondsite.model.ids import MachineId
from support.machines import SHOP
from support.recovery_site import Site


def test_asked_again_with_its_id_it_is_the_same_test_whatever_became_of_it(site: Site) -> None:
    asked = StartTestFailover(point="latest", network="isolated", operation="ab" * 16)
    plan = site.recovery.check_test_failover(SHOP, asked)
    assert (plan.point.number, plan.name) == (site.replica.newest, "shop-test")
    assert site.fabric.recovered() == []
    told: list[str] = []
    site.recovery.on_test = lambda: told.append("changed")
    assert site.recovery.start_test_failover(SHOP, asked).id == "ab" * 16
    site.recovery.start_test_failover(SHOP, asked)
    done = site.finish(site.recovery.start_test_failover(SHOP, asked))
    assert done.state is TestFailoverState.COMPLETED
    assert len(site.fabric.recovered()) == 1
    assert [one.id for one in site.recovery.test_failovers(standing=SHOP)] == ["ab" * 16]
    with pytest.raises(TestFailoverRunning):
        site.recovery.check_test_failover(SHOP, asked)
    other = CleanUp(notes="another", operation="cd" * 16)
    with pytest.raises(NoTestFailover):
        site.recovery.clean_up(SHOP, other)
    mine = CleanUp(notes="fine", operation="ab" * 16)
    gone = site.finish(site.recovery.clean_up(SHOP, mine))
    assert gone.state is TestFailoverState.CLEANUP_COMPLETED
    assert site.recovery.clean_up(SHOP, CleanUp(notes="else", operation="ab" * 16)) == gone
    assert site.recovery.start_test_failover(SHOP, asked) == gone, "not booted again"
    assert site.recovery.test_failovers(standing=SHOP) == []
    site.wait(lambda: len(told) == 4, "word of two beginnings and two ends")
    with pytest.raises(OperationTaken):
        site.recovery.start_test_failover(MachineId("0" * 8), asked)


def test_called_off_before_its_request_arrives_it_never_begins(site: Site) -> None:
    with pytest.raises(NoTestFailover):
        site.recovery.clean_up(SHOP, CleanUp(notes="", operation="ab" * 16))
    with pytest.raises(TestFailoverCalledOff):
        site.recovery.start_test_failover(
            SHOP, StartTestFailover(point="latest", network="none", operation="ab" * 16)
        )
    assert site.recovery.test_failovers() == []
    assert site.start().state is TestFailoverState.COMPLETED


def test_the_newest_points_can_be_asked_for(site: Site) -> None:
    numbers = sorted(site.replica.contents)
    assert [one.number for one in site.recovery.points(SHOP, newest=2)] == numbers[-2:]
    older = site.recovery.points(SHOP, newest=5, below=numbers[-1])
    assert [one.number for one in older] == numbers[:-1]
