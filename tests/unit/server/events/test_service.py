"""Events: kept with their transaction, numbered in the order of commits, found, bounded."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from secondsite.base.clock import FakeClock, SystemClock
from secondsite.model.events import Severity
from secondsite.server.database.engine import Database, open_database
from secondsite.server.events.service import Events, NewEvent, Search, StoredEvent

INFO, WARNING, CRITICAL = Severity
ALL = Search()


def _emit(
    events: Events, database: Database, code: str, *, item: str = "", gateway: str = "", machine: str = ""
) -> int:
    event = NewEvent("north", WARNING, code, "it is so", item, gateway, machine)
    return database.run(lambda connection: events.write(connection, [event]))


def test_an_event_stands_and_falls_with_its_transaction(database: Database) -> None:
    events = Events(database)

    def work(connection: object) -> None:
        events.emit(connection, "north", CRITICAL, "a.b", "gone")  # type: ignore[arg-type]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.run(work)
    assert events.newest(ALL, before=None, limit=10) == []
    number = _emit(events, database, "a.b", item="i", gateway="g", machine="m")
    assert number == 1
    [found] = events.newest(ALL, before=None, limit=10)
    assert found == StoredEvent("north", WARNING, "a.b", "it is so", "i", "g", "m", number=1, at=found.at)


def test_search(database: Database) -> None:
    events = Events(database)
    told = SystemClock().utc()
    rows = [
        NewEvent("north", INFO, "ship.link-back", "back"),
        NewEvent("north", CRITICAL, "store.unfit", "full", gateway="gateway-a", told_at=told),
        NewEvent("south", WARNING, "ship.link-trouble", "away\nand\0gone", machine="m1", item="i1"),
        NewEvent("", WARNING, "server.was-down", "down"),
        NewEvent("north", WARNING, "ship%trouble", "an odd one"),
    ]
    assert database.run(lambda connection: events.write(connection, rows)) == 5

    def numbers(**search: object) -> list[int]:
        return [found.number for found in events.after(Search(**search), 0, limit=10)]  # type: ignore[arg-type]

    assert numbers() == [1, 2, 3, 4, 5]
    assert numbers(vaults={"north"}) == [1, 2, 5]
    assert numbers(vaults=set()) == []
    assert numbers(at_least=WARNING) == [2, 3, 4, 5]
    assert numbers(at_least=CRITICAL) == [2]
    assert numbers(codes=["ship.*"]) == [1, 3]
    assert numbers(codes=["ship%*", "store.unfit"]) == [2, 5]
    assert numbers(gateway="gateway-a") == [2]
    assert numbers(machine="m1") == numbers(item="i1") == [3]
    assert numbers(since=told + timedelta(days=1)) == []
    assert len(numbers(since=told - timedelta(days=1))) == 5
    assert [one.number for one in events.newest(ALL, before=4, limit=2)] == [3, 2]
    assert [one.number for one in events.after(ALL, 3, limit=1)] == [4]
    third = events.after(ALL, 2, limit=1)[0]
    assert third.text == "away and gone"
    assert events.after(ALL, 1, limit=1)[0].told_at == told


def test_too_old_and_too_many_go_and_are_counted(database_url: str) -> None:
    clock = FakeClock()
    database = open_database(database_url, clock)
    events = Events(database, events_max=3, kept_for=timedelta(days=2))
    for code in ("a.one", "a.two"):
        _emit(events, database, code)
    clock.advance(86_400 * 1.5)
    for code in ("a.three", "a.four"):
        _emit(events, database, code)
    assert events.tidy() == 1
    assert [one.code for one in events.after(ALL, 0, limit=10)] == ["a.two", "a.three", "a.four"]
    clock.advance(86_400)
    assert events.tidy() == 1
    assert [one.code for one in events.after(ALL, 0, limit=10)] == ["a.three", "a.four"]
    kept = events.kept()
    assert (kept.newest, kept.kept, kept.dropped) == (4, 2, 2)
    assert events.tidy() == 0
    database.close()


def test_who_follows_misses_nothing_of_slow_writers(database: Database) -> None:
    """Two writers at once, one slow to commit: a reader never sees the later number before the earlier."""
    events = Events(database)
    first_wrote, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        with database.write(alone=False) as connection:
            events.emit(connection, "north", INFO, "a.slow", "slow")
            first_wrote.set()
            assert may_end.wait(30)

    def quick() -> None:
        with database.write(alone=False) as connection:
            events.emit(connection, "north", INFO, "a.quick", "quick")

    threads = [threading.Thread(target=slow), threading.Thread(target=quick)]
    threads[0].start()
    assert first_wrote.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    seen = [one.code for one in events.after(ALL, 0, limit=10)]
    may_end.set()
    for thread in threads:
        thread.join(30)
    assert seen == []
    assert [one.code for one in events.after(ALL, 0, limit=10)] == ["a.slow", "a.quick"]
