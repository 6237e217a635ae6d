"""What gateways tell: each event once, in order, over real TLS, whoever dies or is put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from secondsite.base import crash
from secondsite.base.clock import FakeClock, SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.uplink import eventlink
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.gateway.uplink.eventlink import EventLink, ServerEvents, told_event
from secondsite.model.events import Event, Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import EVENT_LOGS, EVENTS, EVENTS_HEAD
from secondsite.server.events.intake import GAP, LOGS_MAX, EventIntake
from secondsite.server.events.service import Events, Search
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.transfer.reports import EVENT_BATCH_BYTES_MAX, EventAnswer, EventBatch, ToldEvent
from support.enrolled import Place, enrolled_place
from support.until import until

WHO = GatewayIdentity("g1", "gateway-a", "A", "north", "1", 0, 0)
MARKS = [eventlink.SENT]


def _told(*numbers: int) -> tuple[ToldEvent, ...]:
    return tuple(_one(number) for number in numbers)


def _one(number: int, **values: object) -> ToldEvent:
    given = {"number": number, "at": "2026-01-02T03:04:05.678+00:00", "code": "a.b", "severity": "Warning"}
    return ToldEvent.model_validate({**given, "text": f"event {number}", **values})


def _texts(database: Database) -> list[str]:
    return [event.text for event in Events(database).after(Search(), 0, limit=1000)]


def test_each_counts_once_and_gaps_are_told(database: Database) -> None:
    intake = EventIntake(database, Events(database))

    def push(after: int, *numbers: int, log: str = "one") -> int:
        return intake.take(WHO, EventBatch(log=log, after=after, events=_told(*numbers))).last

    assert push(0) == 0
    assert push(0, 1, 2) == 2
    assert push(0, 1, 2, 3) == 3  # a batch whose answer was lost
    assert push(5, 6, 7) == 3  # a server put back: it says where it is, and takes no gap
    assert push(3, 6, 7) == 7  # the gateway has no 4 and 5 any more
    assert push(7, 8, 10) == 10
    assert push(0, 1, log="two") == 1
    found = Events(database).after(Search(), 0, limit=100)
    assert [event.text for event in found if event.code != GAP] == [
        f"event {n}" for n in (1, 2, 3, 6, 7, 8, 10, 1)
    ]
    assert [event.text[:8] for event in found if event.code == GAP] == ["2 events", "1 events"]
    assert {(event.vault, event.gateway) for event in found} == {("north", "gateway-a")}


@pytest.mark.parametrize("numbers", [(2, 1), (1, 1), (0, 1)])
def test_numbers_that_do_not_grow_are_refused(database: Database, numbers: Sequence[int]) -> None:
    with pytest.raises(InvalidInput):
        EventIntake(database, Events(database)).take(WHO, EventBatch(log="one", events=_told(*numbers)))
    bad = _one(1, at="not a time but long enough")
    with pytest.raises(InvalidInput):
        EventIntake(database, Events(database)).take(WHO, EventBatch(log="one", events=(bad,)))


def test_items_are_named_and_old_logs_forgotten(database: Database) -> None:
    machine = "0" * 8 + "-0000-0000-0000-" + "0" * 12
    intake = EventIntake(
        database, Events(database), lambda _connection, _gateway, machines: dict.fromkeys(machines, "i7")
    )
    intake.take(WHO, EventBatch(log="x", events=(_one(1, machine=machine),)))
    assert Events(database).after(Search(item="i7"), 0, limit=9)[0].machine == machine
    for number in range(LOGS_MAX + 3):
        intake.take(WHO, EventBatch(log=f"log {number:03}", events=_told(1)))
    with database.read() as connection:
        logs = list(connection.execute(sa.select(EVENT_LOGS.c.log)).scalars())
    assert len(logs) == LOGS_MAX
    assert "x" not in logs
    intake.tidy()  # g1 is no gateway of this server
    with database.read() as connection:
        assert connection.execute(sa.select(EVENT_LOGS.c.log)).first() is None


class _Gateway:
    """A gateway's end, begun again with `restart`."""

    def __init__(self, root: Path, push: Callable[[EventBatch], EventAnswer]) -> None:
        self.root, self.push, self.clock = root, push, FakeClock()
        self.restart()

    def close(self) -> None:
        """Part of the protocol."""

    def restart(self, events_max: int = 5000) -> None:
        self.files = EventFiles(self.root)
        self.events = EventLog(self.clock, files=self.files, events_max=events_max)
        self.link = EventLink(self, self.events, self.files, self.clock)

    def say(self, *texts: str) -> None:
        for text in texts:
            self.events.emit("a.b", Severity.INFORMATION, text)


def _to(database: Database) -> Callable[[EventBatch], EventAnswer]:
    intake = EventIntake(database, Events(database))
    return lambda batch: intake.take(WHO, batch)


def _put_back(database: Database, to: int) -> None:
    """As a restored backup: what was after event number `to` never happened."""

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.delete(EVENTS).where(EVENTS.c.number > to))
        connection.execute(sa.update(EVENTS_HEAD).values(number=to))
        connection.execute(sa.update(EVENT_LOGS).values(last=0))

    database.run(work)


def test_restarts_and_a_server_put_back(database: Database, tmp_path: Path) -> None:
    gateway = _Gateway(tmp_path, _to(database))
    gateway.say("a", "b")
    gateway.restart()  # killed before anything was told
    gateway.say("c")
    gateway.link.push_all()
    assert _texts(database) == ["a", "b", "c"]
    gateway.restart()
    gateway.link.push_all()
    gateway.say("d")
    gateway.link.push_all()
    gateway.link.push_all()
    assert _texts(database) == ["a", "b", "c", "d"]
    _put_back(database, 0)
    gateway.clock.advance(61)  # nothing happens at the gateway: it asks by itself
    gateway.link.push_all()
    assert _texts(database) == ["a", "b", "c", "d"]
    _put_back(database, 0)
    gateway.say("e")
    gateway.link.push_all()
    gateway.link.push_all()
    assert sorted(_texts(database)) == ["a", "b", "c", "d", "e"]


def test_what_memory_could_not_keep_is_told_as_a_gap(database: Database, tmp_path: Path) -> None:
    gateway = _Gateway(tmp_path, _to(database))
    gateway.restart(events_max=3)
    gateway.say(*(str(number) for number in range(1, 11)))
    gateway.link.push_all()
    assert _texts(database)[1:] == ["8", "9", "10"]
    assert _texts(database)[0].startswith("7 events of gateway gateway-a are lost")


def test_many_and_large_ones_go_in_several_batches(database: Database, tmp_path: Path) -> None:
    batches: list[EventBatch] = []
    take = _to(database)

    def push(batch: EventBatch) -> EventAnswer:
        batches.append(batch)
        return take(batch)

    gateway = _Gateway(tmp_path, push)
    gateway.say(*("\0" * 4000 for _ in range(60)), *(str(number) for number in range(700)))
    gateway.link.push_all()
    assert len(_texts(database)) == 760
    assert max(len(batch.model_dump_json()) for batch in batches) < EVENT_BATCH_BYTES_MAX
    assert len(batches) < 8


def test_runs_without_a_server_are_bounded_and_torn_lines_passed_over(tmp_path: Path) -> None:
    def push(_batch: EventBatch) -> EventAnswer:
        raise InvalidInput(what="x", why="it is away")

    gateway = _Gateway(tmp_path, push)
    for run in range(eventlink.RUNS_MAX + 3):
        gateway.say(f"run {run}")
        gateway.restart()
    with (tmp_path / f"{gateway.files.earlier()[-1]}.jsonl").open("ab") as file:
        file.write(b'{"number":2,"ev')
    assert len(list(gateway.files.read(gateway.files.earlier()[-1]))) == 1
    gateway.link._drop_untold()
    assert len(gateway.files.earlier()) == eventlink.RUNS_MAX
    assert [event.code for _, event in gateway.events.since(0, 9)] == ["events.dropped"]


def test_any_event_can_be_told() -> None:
    odd = Event(at="soon", code="x" * 200, severity=Severity.CRITICAL, text="\udcff" * 9000, machine="no id")
    told = told_event(1, odd)
    assert (told.code, told.text, told.machine) == ("x" * 100, "?" * 4000, None)
    assert (
        told_event(
            1, Event(at="2026-01-02T03:04:05+00:00", code="a.b", severity=Severity.WARNING, text="t")
        ).text
        == "t"
    )


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> object:
    with enrolled_place(database_url, tmp_path) as made:
        yield made


def test_over_tls_with_a_thread(place: Place, tmp_path: Path) -> None:
    files = EventFiles(tmp_path / "events")
    events = EventLog(SystemClock(), files=files)
    clients = EnrolledClients(place.files)
    link = EventLink(ServerEvents(clients.open, clients.serial), events, files, SystemClock())
    link.start()
    for number in range(3):
        events.emit("a.b", Severity.CRITICAL, f"number {number}")
    listed = place.services.events
    until(lambda: len(listed.after(Search(codes=["a.b"]), 0, limit=10)) == 3, "the events do not arrive")
    link.close()
    [found] = listed.after(Search(codes=["a.b"]), 0, limit=1)
    assert (found.gateway, found.severity, found.text) == ("gateway-a", Severity.CRITICAL, "number 0")
    assert found.vault == place.identity.vaults.get("North").id
    nobody = place.call("")("POST", "/api/v1/gateways/self/events", {"log": "x", "events": []})
    assert nobody.status == 401


def test_every_mark_is_in_the_list() -> None:
    assert {mark for mark in crash.MARKS if mark.startswith("eventlink.")} == set(MARKS)


@pytest.mark.parametrize("mark", MARKS)
def test_killed_between_sending_and_noting(place: Place, tmp_path: Path, mark: str) -> None:
    def run(count: int, crash_at: str) -> int:
        path = os.pathsep.join(sys.path)
        environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at, "PYTHONPATH": path}
        command = [
            sys.executable,
            "-m",
            "support.eventlink_process",
            str(place.files),
            str(tmp_path / "events"),
        ]
        return subprocess.run([*command, str(count)], env=environment, timeout=60, check=False).returncode

    assert run(3, mark) == -signal.SIGKILL
    assert run(2, "") == 0
    texts = [event.text for event in place.services.events.after(Search(codes=["ship.*"]), 0, limit=100)]
    assert texts == [f"00000001 says {n}" for n in (1, 2, 3)] + [f"00000002 says {n}" for n in (1, 2)]
