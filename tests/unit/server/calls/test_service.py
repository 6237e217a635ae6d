"""Calls in a database: made once, given until answered, taken back by a newer epoch, given up in the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from secondsite.base.clock import SystemClock
from secondsite.server.calls.bells import Bells
from secondsite.server.calls.service import CallDiffers, Calls, CallUnknown, GatewaySilent
from secondsite.server.database.engine import Database, open_database
from secondsite.transfer.calls import UNDER_WAY_MAX, Answer, Ask, Call

ASK = Ask(room=UNDER_WAY_MAX, wait_seconds=0)


def change(identity: str, *, job: str = "j", epoch: int = 1, path: str = "/v1/protections/x/point") -> Call:
    return Call(id=identity, method="POST", path=path, body="{}", job=job, epoch=epoch)


@pytest.fixture
def calls(database: Database) -> Calls:
    return Calls(database, Bells())


def ids(found: list[Call]) -> list[str]:
    return [call.id for call in found]


def test_a_call_is_given_until_it_is_answered(calls: Calls) -> None:
    calls.put("a", change("1"), seconds_max=600)
    calls.put("a", change("2"), seconds_max=600)
    calls.put("b", change("3"), seconds_max=600)
    assert calls.ready("a", ASK) == [change("1"), change("2")]
    assert ids(calls.ready("a", asking(under_way=("1",)))) == ["2"]
    assert ids(calls.ready("a", asking(room=1))) == ["1"]
    assert calls.result("1") is None
    calls.answer("a", Answer(id="1", status=200, body='{"number":7}'))
    calls.answer("a", Answer(id="1", status=500, body="{}"))  # again, after a lost reply: the first counts
    assert calls.result("1") == Answer(id="1", status=200, body='{"number":7}')
    assert ids(calls.ready("a", ASK)) == ["2"]


def asking(*, room: int = UNDER_WAY_MAX, under_way: tuple[str, ...] = ()) -> Ask:
    return Ask(room=room, under_way=under_way, wait_seconds=0)


def test_made_again_is_nothing_new_but_another_call_is_refused(calls: Calls) -> None:
    calls.put("a", change("1"), seconds_max=600)
    calls.put("a", change("1"), seconds_max=600)
    assert ids(calls.ready("a", ASK)) == ["1"]
    for gateway, other in (
        ("b", change("1")),
        ("a", change("1", path="/v1/other")),
    ):
        with pytest.raises(CallDiffers):
            calls.put(gateway, other, seconds_max=600)
    assert calls.ready("a", ASK) == [change("1")]


def test_a_step_that_goes_on_in_a_later_epoch_asks_the_same(calls: Calls) -> None:
    assert calls.ask("a", change("1", epoch=1), seconds_max=600) is None
    assert calls.ask("a", change("1", epoch=3), seconds_max=600) is None
    assert calls.ask("a", change("1", epoch=2), seconds_max=600) is None  # an old worker, late
    assert calls.ready("a", ASK) == [change("1", epoch=3)]
    calls.answer("a", Answer(id="1", status=200, body="7"))
    assert calls.ask("a", change("1", epoch=4), seconds_max=600) == Answer(id="1", status=200, body="7")


def test_a_call_that_was_given_up_is_asked_anew(calls: Calls) -> None:
    with pytest.raises(GatewaySilent):
        calls.ask("a", change("1"), seconds_max=-1)
    assert calls.ask("a", change("1"), seconds_max=600) is None
    assert ids(calls.ready("a", ASK)) == ["1"]


def test_a_call_made_anew_is_not_the_one_that_was_under_way(calls: Calls, database: Database) -> None:
    """The gateway still waits with what it said before: it would get the call only at the end of its time."""
    calls.put("a", change("1"), seconds_max=600)
    busy, said_at = asking(under_way=("1",)), database.now()
    assert calls.ready("a", busy, asked_at=said_at) == []
    calls.forget(["1"])
    calls.put("a", change("1"), seconds_max=600)
    assert ids(calls.ready("a", busy, asked_at=said_at)) == ["1"]


def test_the_job_is_told_of_its_answer_once(calls: Calls) -> None:
    told: list[str] = []
    calls.on_answer = lambda _connection, job: told.append(job)
    calls.put("a", change("1"), seconds_max=600)
    for _ in range(2):
        calls.answer("a", Answer(id="1", status=200))
    assert told == ["j"]


def test_no_gateway_answers_for_another(calls: Calls) -> None:
    calls.put("a", change("1"), seconds_max=600)
    with pytest.raises(CallUnknown):
        calls.answer("b", Answer(id="1", status=200))
    assert calls.result("1") is None


def test_a_newer_epoch_takes_back_what_an_older_one_still_asks_for(calls: Calls) -> None:
    calls.put("a", change("j:1:s", epoch=1), seconds_max=600)
    calls.put("a", change("j:1:t", epoch=1), seconds_max=600)
    calls.put("a", change("other", job="k", epoch=1), seconds_max=600)
    calls.answer("a", Answer(id="j:1:s", status=200))
    calls.put("a", change("j:2:s", epoch=2), seconds_max=600)
    assert ids(calls.ready("a", ASK)) == ["other", "j:2:s"]
    assert calls.result("j:1:s") is not None  # what was answered can be read
    with pytest.raises(CallUnknown):
        calls.answer("a", Answer(id="j:1:t", status=200))


def test_without_an_answer_it_is_given_up(calls: Calls) -> None:
    calls.put("a", change("1"), seconds_max=0)
    assert calls.ready("a", ASK) == []
    with pytest.raises(GatewaySilent):
        calls.result("1")


def test_what_nobody_reads_is_dropped(calls: Calls) -> None:
    calls.put("a", change("1"), seconds_max=-7200)
    calls.put("a", change("2"), seconds_max=600)
    assert calls.tidy() == 1
    with pytest.raises(CallUnknown):
        calls.result("1")
    assert calls.result("2") is None


def test_something_is_read_of_a_gateway_and_leaves_nothing(calls: Calls) -> None:
    def gateway() -> None:
        asked: list[Call] = []
        while not asked:
            asked = calls.ready("a", ASK)
        calls.answer("a", Answer(id=asked[0].id, status=200, body=f'"{asked[0].path}"'))

    thread = threading.Thread(target=gateway)
    thread.start()
    answer = calls.ask_now("a", "/v1/status", seconds_max=60)
    thread.join()
    assert (answer.status, answer.body) == (200, '"/v1/status"')
    with pytest.raises(CallUnknown):
        calls.result(answer.id)


def test_an_answer_that_another_server_took_is_found(calls: Calls, database_url: str) -> None:
    """Its bell does not ring here."""
    other_database = open_database(database_url, SystemClock())
    other = Calls(other_database, Bells())

    def gateway() -> None:
        asked: list[Call] = []
        while not asked:
            asked = other.ready("a", ASK)
        other.answer("a", Answer(id=asked[0].id, status=200))

    thread = threading.Thread(target=gateway)
    thread.start()
    assert calls.ask_now("a", "/v1/status", seconds_max=60).ok
    thread.join()
    other_database.close()


def test_a_silent_gateway_is_told_and_its_question_withdrawn(calls: Calls) -> None:
    with pytest.raises(GatewaySilent):
        calls.ask_now("a", "/v1/status", seconds_max=0.1)
    assert calls.ready("a", ASK) == []


def test_bells_wake_threads_and_loops_and_are_forgotten() -> None:
    bells = Bells()

    async def waits() -> None:
        with bells.listening_async("x") as event:
            threading.Thread(target=bells.ring, args=("x",)).start()
            await asyncio.wait_for(event.wait(), 60)

    asyncio.run(waits())
    with bells.listening("x") as heard:
        bells.ring("y")
        assert not heard.is_set()
        bells.ring("x")
        assert heard.wait(60)
    assert (bells._threads, bells._loops) == ({}, {})
