"""When an item missed its objective: exact where a look proves it, unknown where nobody looked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database, open_database
from secondsite.server.events.history import Histories
from secondsite.server.events.intervals import Interval, Look, Rpo, days, follow, joined

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def told(*looks: tuple[float, float | None]) -> list[tuple[str, float, float]]:
    """The intervals that looks (second, age; objective 300 s) make, as (state, since, until) in seconds."""
    found: list[Interval] = []
    last: Interval | None = None
    for second, age in looks:
        ended, last = follow(last, Look(at(second), age, 300.0))
        found += [ended] if ended else []
    found += [last] if last else []
    return [
        (one.state.value, (one.since - NOON).total_seconds(), (one.until - NOON).total_seconds())
        for one in found
    ]


CASES: dict[str, tuple[list[tuple[float, float | None]], list[tuple[str, float, float]]]] = {
    "met all the time": ([(0, 5), (30, 35), (60, 5)], [("Met", 0, 60)]),
    "missed from the crossing on": ([(0, 290), (30, 320)], [("Met", 0, 10), ("Missed", 10, 30)]),
    "missed until it is seen to be met": (
        [(0, 290), (30, 320), (60, 5), (90, 35)],
        [("Met", 0, 10), ("Missed", 10, 60), ("Met", 60, 90)],
    ),
    "the age alone proves since when": ([(0, 900)], [("Missed", -600, 0)]),
    "nobody looked: unknown": ([(0, 5), (600, 5)], [("Met", 0, 0), ("Met", 600, 600)]),
    "nobody looked, and the age proves it": ([(0, 310), (600, 910)], [("Missed", -10, 600)]),
    "nobody looked, and a point came": (
        [(0, 310), (600, 320)],
        [("Missed", -10, 0), ("Missed", 580, 600)],
    ),
    "no point: unknown": ([(0, 5), (30, None), (60, 5)], [("Met", 0, 0), ("Met", 60, 60)]),
    "reports that overtook each other": ([(0, 5), (-30, 5), (30, 5)], [("Met", 0, 30)]),
    "the clock was put back": (
        [(0, 5), (-3600, 5), (-3570, 5)],
        [("Met", 0, 0), ("Met", -3600, -3570)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_looks(case: str) -> None:
    looks, intervals = CASES[case]
    assert told(*looks) == intervals


@given(st.lists(st.tuples(st.integers(-400, 4000), st.none() | st.integers(0, 900)), max_size=30))
def test_days_account_for_every_second(looks: list[tuple[int, int | None]]) -> None:
    last, found = None, []
    for second, age in looks:
        ended, last = follow(last, Look(at(second * 60), age and float(age), 300.0))
        found += [ended] if ended else []
    found += [last] if last else []
    assert all(one.since <= one.until for one in found)
    first, end = at(-86_400), at(5 * 86_400)
    counted = days(found, first=first, end=end)
    total = sum(day.met_seconds + day.missed_seconds + day.unknown_seconds for day in counted)
    assert total == pytest.approx((end - first).total_seconds())
    missed = sum((one.until - one.since).total_seconds() for one in joined(found, Rpo.MISSED))
    assert sum(day.missed_seconds for day in counted) == pytest.approx(missed)


def test_hours_of_days() -> None:
    missed = [Interval(Rpo.MISSED, at(-61 * 60), at(1)), Interval(Rpo.MISSED, at(60), at(120))]
    met = [Interval(Rpo.MET, at(-70 * 60), at(3600))]
    [day] = days([*missed, *met], first=at(-70 * 60), end=at(7200))
    assert (day.missed_seconds, day.met_seconds, day.unknown_seconds) == (61 * 60 + 61, 130 * 60 - 3721, 3600)
    assert day.hours_missed == 3  # those beginning at 10, 11 and 12
    over_midnight = [Interval(Rpo.MISSED, NOON + timedelta(hours=11), NOON + timedelta(hours=13))]
    first, second = days(over_midnight, first=NOON, end=NOON + timedelta(days=1))
    assert (first.missed_seconds, first.hours_missed) == (3600, 1)
    assert (second.missed_seconds, second.hours_missed) == (3600, 1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOON)


def _watch(histories: Histories, clock: FakeClock, ages: list[float]) -> None:
    for age in ages:
        histories.observe("i1", clock.utc(), age, 300.0)
        clock.advance(30)


def test_it_outlives_restarts_and_tells_what_it_does_not_know(database_url: str, clock: FakeClock) -> None:
    database = open_database(database_url, clock)
    first = Histories(database)
    _watch(first, clock, [5.0] * 10)
    first.flush()
    _watch(first, clock, [5.0])  # killed before this was written
    second = Histories(database)
    _watch(second, clock, [5.0] * 10)  # begun at once: carries on
    second.flush()
    assert _rows(database) == 1
    assert second.rpo("i1", days_back=30).days[0].unknown_seconds == 0
    clock.advance(3600)  # no server at all for an hour
    third = Histories(database)
    _watch(third, clock, [10.0, 40.0, 310.0])
    third.flush()
    [day] = third.rpo("i1", days_back=30).days
    assert day.unknown_seconds == 3600 + 30
    assert day.missed_seconds == pytest.approx(10)
    assert day.hours_missed == 1
    [missed] = Histories(database).rpo("i1", days_back=30).missed
    assert missed.until - missed.since == timedelta(seconds=10)
    assert third.rpo("nothing", days_back=30).days == ()
    database.close()


def _rows(database: Database) -> int:
    with database.read() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM rpo_intervals").scalar_one())


def test_two_servers_that_see_every_other_report(database_url: str, clock: FakeClock) -> None:
    database = open_database(database_url, clock)
    servers = [Histories(database), Histories(database)]
    for turn in range(20):
        servers[turn % 2].observe("i1", clock.utc(), 5.0 if turn < 10 else 400.0 + 30 * turn, 300.0)
        clock.advance(30)
        if turn % 5 == 0:
            for server in servers:
                server.flush()
    for server in servers:
        server.flush()
    [day] = servers[0].rpo("i1", days_back=1).days
    assert day.unknown_seconds == 0
    assert day.missed_seconds >= 9 * 30
    database.close()


def test_health_is_kept_when_it_changes(database: Database, clock: FakeClock) -> None:
    histories = Histories(database)
    for health in ("Normal", "Normal", "Critical", "Normal", "Normal"):
        histories.observe_health("i1", clock.utc(), health, "a.b" if health == "Critical" else "")
        clock.advance(30)
    histories.flush()
    again = Histories(database)
    again.observe_health("i1", clock.utc(), "Normal")  # after a restart: the same as before
    again.flush()
    found = again.health("i1", before=None, limit=10)
    assert [(one.health, one.code) for one in found] == [("Normal", ""), ("Critical", "a.b"), ("Normal", "")]
    assert again.health("i1", before=found[1].at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), limit=10) == found[2:]


def test_many_items_are_bounded_and_written_together(database_url: str, clock: FakeClock) -> None:
    database = open_database(database_url, clock)
    histories = Histories(database)
    for number in range(1200):
        histories.observe(f"i{number}", clock.utc(), 5.0, 300.0)
        histories.observe_health(f"i{number}", clock.utc(), "Normal")
    assert histories.flush() == 2400
    assert histories.flush() == 0
    assert _rows(database) == 1200
    clock.advance(3 * 3600)
    histories.flush()
    assert not histories._open
    clock.advance(91 * 86_400)
    histories.tidy()
    assert _rows(database) == 0
    database.close()
