"""Retention policies: what is kept, what is merged, what leaves."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.base.errors import InvalidInput
from secondsite.model.points import Consistency
from secondsite.model.retention import (
    DAY,
    HOUR,
    PointFacts,
    RetentionPolicy,
    Window,
    decide,
)

START = 1_750_000_000.0


def every(seconds: float, count: int, *, start: float = START) -> list[PointFacts]:
    return [PointFacts(number + 2, start + number * seconds) for number in range(count)]


def test_the_default_keeps_what_it_says() -> None:
    points = every(60.0, 8 * 24 * 60)  # one a minute for eight days
    decision = decide(points, RetentionPolicy.default())
    at = {point.number: point.at for point in points}
    newest = points[-1].at
    kept = [newest - at[number] for number in decision.kept]
    recent = [age for age in kept if age <= 2 * HOUR]
    assert len(recent) == 121
    day = sorted(age for age in kept if 3 * HOUR < age <= DAY)
    assert len(day) in {21, 22}
    assert all(abs((b - a) - HOUR) < 1 for a, b in itertools.pairwise(day))
    week = sorted(age for age in kept if DAY + 2 * HOUR < age <= 7 * DAY)
    assert len(week) in {71, 72}
    assert all(abs((b - a) - 2 * HOUR) < 1 for a, b in itertools.pairwise(week))
    assert max(kept) < 7 * DAY + 2 * HOUR
    assert decision.floor == decision.kept[0]


def test_only_the_latest() -> None:
    points = every(5.0, 10)
    decision = decide(points, RetentionPolicy.additional_points(0))
    assert (decision.kept, decision.floor, decision.groups) == ((11,), 11, ())


def test_additional_points_are_kept_and_no_fewer() -> None:
    points = every(300.0, 12 * 24)
    decision = decide(points, RetentionPolicy.additional_points(4))
    # the latest, four more, and the bucket that is not past yet
    assert 5 <= len(decision.kept) <= 6


def test_a_half_filled_bucket_is_left_alone() -> None:
    """Else each new point would merge the hour again."""
    policy = RetentionPolicy(
        windows=(Window(reach_seconds=HOUR), Window(reach_seconds=DAY, every_seconds=HOUR))
    )
    start = START // HOUR * HOUR
    for minutes in range(60, 121):
        points = every(60.0, minutes + 1, start=start)
        groups = decide(points, policy).groups
        assert not groups, minutes
    decision = decide(every(60.0, 60 + 61, start=start), policy)
    assert decision.floor is not None


def test_pinned_points_stay_and_are_named() -> None:
    points = every(5.0, 20)
    decision = decide(points, RetentionPolicy.additional_points(0), pinned={7, 21})
    assert decision.kept == (7, 21)
    assert decision.waiting == (7,)
    assert decision.floor == 7
    (group,) = decision.groups
    assert (group.after, group.last, group.dropped) == (7, 21, tuple(range(8, 21)))


def test_application_consistent_and_verified_points_are_preferred() -> None:
    policy = RetentionPolicy(windows=(Window(reach_seconds=DAY, every_seconds=HOUR),))
    start = START // HOUR * HOUR
    points = every(300.0, 40, start=start)
    points[5] = PointFacts(points[5].number, points[5].at, Consistency.APPLICATION)
    decision = decide(points, policy, preferred={points[3].number, points[15].number})
    assert points[5].number in decision.kept
    assert points[15].number in decision.kept
    assert points[3].number not in decision.kept


def test_a_clock_that_jumped_back_makes_no_point_younger() -> None:
    points = every(60.0, 100)
    points += [PointFacts(p.number + 100, p.at - 30 * DAY) for p in every(60.0, 100)]
    decision = decide(points, RetentionPolicy(windows=(Window(reach_seconds=HOUR),)))
    assert decision.kept[-100:] == tuple(point.number for point in points[100:])
    assert len(decision.kept) >= 160


def test_a_machine_that_stands_still_keeps_what_it_has() -> None:
    points = every(60.0, 60)
    policy = RetentionPolicy(windows=(Window(reach_seconds=2 * HOUR),))
    assert decide(points, policy).floor is None
    assert decide(points, policy, now=START + 90 * DAY).floor is None


def test_after_a_long_gap_nothing_goes_for_an_hour() -> None:
    """A clock that jumped a year ahead, or a link that was cut, costs no point at once."""
    policy = RetentionPolicy(windows=(Window(reach_seconds=2 * HOUR),))
    before = every(60.0, 60)
    after = [PointFacts(p.number + 60, p.at + 365 * DAY) for p in every(60.0, 61)]
    for count in range(1, 60):
        decision = decide(before + after[:count], policy)
        assert decision.settling
        assert (decision.groups, decision.floor) == ((), None)
    decision = decide(before + after, policy)
    assert not decision.settling
    assert decision.floor == after[0].number


def test_points_that_are_always_far_apart_are_not_waited_for() -> None:
    points = every(2 * HOUR, 40)
    decision = decide(points, RetentionPolicy.parse("all:1d"))
    assert not decision.settling
    assert decision.floor is not None


def test_points_of_a_clock_that_was_ahead_make_the_others_no_older() -> None:
    policy = RetentionPolicy(windows=(Window(reach_seconds=2 * HOUR),))
    points = every(60.0, 120)
    points += [PointFacts(p.number + 120, p.at + 365 * DAY) for p in every(60.0, 90)]
    assert decide(points, policy).floor is not None
    assert decide(points, policy, now=START + 2 * HOUR).floor is None


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("all:2h,1h:1d,2h:7d", "every point for 2 h, one every 1 h for 1 d, one every 2 h for 7 d"),
        ("latest", "only the latest point"),
        ("latest+4", "one every 1 h for 4 h"),
        ("latest+4/30min", "one every 30 min for 2 h"),
        ("all:", None),
        ("2h", None),
        ("all:2h,1h", None),
        ("latest+x", None),
        ("all:0s", None),
        ("all:4000d", None),
        (",".join(f"{n}s:{n + 1}d" for n in range(1, 18)), None),
    ],
)
def test_written_by_people(text: str, described: str | None) -> None:
    if described is None:
        with pytest.raises(InvalidInput):
            RetentionPolicy.parse(text)
    else:
        assert RetentionPolicy.parse(text).describe() == described


@pytest.mark.parametrize(
    "windows",
    [
        (Window(reach_seconds=DAY), Window(reach_seconds=HOUR, every_seconds=60)),
        (Window(reach_seconds=HOUR, every_seconds=HOUR), Window(reach_seconds=DAY, every_seconds=60)),
    ],
)
def test_windows_that_contradict_each_other_are_refused(windows: tuple[Window, ...]) -> None:
    with pytest.raises(InvalidInput):
        RetentionPolicy(windows=windows)


def test_described_for_people() -> None:
    expected = "every point for 2 h, one every 1 h for 1 d, one every 2 h for 7 d"
    assert RetentionPolicy.default().describe() == expected
    assert RetentionPolicy.additional_points(0).describe() == "only the latest point"


@given(
    gaps=st.lists(st.floats(0, 3500), min_size=1, max_size=60),
    pins=st.sets(st.integers(2, 70), max_size=4),
    seed=st.integers(0, 99),
)
def test_carried_out_again_and_again_it_settles(gaps: list[float], pins: set[int], seed: int) -> None:
    """Applying a decision leaves nothing to do; groups are disjoint and never hold a kept or pinned point."""
    chance = random.Random(seed)
    at, points = START, list[PointFacts]()
    for number, gap in enumerate([*gaps, *[300.0] * 13]):
        at += gap
        kind = chance.choice([Consistency.CRASH, Consistency.APPLICATION])
        points.append(PointFacts(number + 2, at, kind))
    policy = RetentionPolicy(
        windows=(
            Window(reach_seconds=HOUR),
            Window(reach_seconds=6 * HOUR, every_seconds=HOUR),
            Window(reach_seconds=DAY, every_seconds=4 * HOUR),
        )
    )
    held = pins & {point.number for point in points}
    decision = decide(points, policy, pinned=held)
    assert held <= set(decision.kept)
    assert points[-1].number in decision.kept
    dropped = [number for group in decision.groups for number in group.dropped]
    assert len(dropped) == len(set(dropped))
    assert not set(dropped) & set(decision.kept)
    floor = decision.floor or points[0].number
    assert set(decision.kept) | set(dropped) | {p.number for p in points if p.number < floor} == {
        point.number for point in points
    }
    again = decide([point for point in points if point.number in decision.kept], policy, pinned=held)
    assert (again.groups, again.floor, again.kept) == ((), None, decision.kept)
