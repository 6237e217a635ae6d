"""What a server asks for: permitted or refused, done once, in the epoch of its job, never more than fits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.fences import JOBS_MAX, Fences, FencesDamaged, StepOutdated
from secondsite.gateway.uplink import calls as module
from secondsite.gateway.uplink.calls import (
    CallNotPermitted,
    ControlUnreachable,
    StepMissing,
    Uplink,
    Wishes,
    check_call,
    over_socket,
)
from secondsite.transfer.calls import UNDER_WAY_MAX, Answer, Call
from support.calls import MemoryCalls
from support.until import until

Started = Callable[[Callable[[Call], Answer]], MemoryCalls]


def get(number: int = 1, path: str = "/v1/status") -> Call:
    return Call(id=f"c{number}", method="GET", path=path)


def change(number: int = 1, *, job: str = "j", epoch: int = 1) -> Call:
    path = "/v1/protections/shop/point"
    return Call(id=f"c{number}", method="POST", path=path, body="{}", job=job, epoch=epoch)


def call_of(method: str, path: str) -> Call:
    return Call.model_validate({"id": "c", "method": method, "path": path, "job": "j", "epoch": 1})


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    running = []

    def start(carry_out: Callable[[Call], Answer]) -> MemoryCalls:
        server = MemoryCalls()
        uplink = Uplink(server, carry_out, Fences(tmp_path / "fences.json"), SystemClock())
        uplink.start()
        running.append(uplink)
        return server

    yield start
    for uplink in running:
        uplink.close()


@pytest.fixture
def fences(tmp_path: Path) -> Fences:
    return Fences(tmp_path / "state" / "fences.json")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("GET", "/v1/events?after=3"),
        ("PUT", "/v1/protections/5f0c"),
        ("POST", "/v1/machines/shop/test-failover"),
        ("DELETE", "/v1/machines/shop/holds/1"),
    ],
)
def test_what_is_permitted_passes(fences: Fences, method: str, path: str) -> None:
    check_call(call_of(method, path), fences)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/protections/shop/seed-export"),  # names a directory
        ("POST", "/v1/seed-import"),
        ("POST", "/v1/machines/shop/exports"),
        ("DELETE", "/v1/status"),
        ("GET", "/v1/status/x"),
        ("GET", "/v1/operations/a/b"),
        ("PUT", "/v1/protections/a/../../x"),
    ],
)
def test_anything_else_is_refused(fences: Fences, method: str, path: str) -> None:
    with pytest.raises(CallNotPermitted):
        check_call(call_of(method, path), fences)


@pytest.mark.parametrize("path", ["/v1/status\n", "/v2/status", "/v1/ x", "/v1/ü", "/v1/" + "a" * 4096])
def test_what_is_no_path_is_no_call(path: str) -> None:
    with pytest.raises(ValidationError):
        get(path=path)


def test_a_change_belongs_to_a_job(fences: Fences) -> None:
    with pytest.raises(StepMissing):
        check_call(change(job=""), fences)


def test_a_step_of_an_older_epoch_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "fences.json"
    check_call(change(epoch=3), Fences(path))
    with pytest.raises(StepOutdated):
        check_call(change(epoch=2), Fences(path))
    check_call(change(epoch=3), Fences(path))
    check_call(change(epoch=1, job="another"), Fences(path))


def test_planted_bug_fences_that_are_not_written_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondsite.gateway.common.fences.replace_file", lambda *_, **__: None)
    with pytest.raises(pytest.fail.Exception):
        test_a_step_of_an_older_epoch_is_refused_also_after_a_restart(tmp_path)


def test_fences_keep_the_jobs_used_last(fences: Fences, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondsite.gateway.common.fences.JOBS_MAX", 3)
    assert JOBS_MAX > 3
    for job in ("a", "b", "c"):
        fences.pass_or_refuse(job, 5)
    fences.pass_or_refuse("a", 6)
    fences.pass_or_refuse("d", 1)  # b goes
    fences.pass_or_refuse("b", 1)
    with pytest.raises(StepOutdated):
        fences.pass_or_refuse("a", 5)


@pytest.mark.parametrize(
    "text", ["", "{", '{"version": 2, "jobs": {}}', '{"version": 1, "jobs": {"a": "x"}}']
)
def test_damaged_fences_are_not_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fences.json"
    path.write_text(text)
    with pytest.raises(FencesDamaged):
        Fences(path)
    assert path.read_text() == text


def test_calls_are_carried_out_and_refusals_told(started: Started) -> None:
    server = started(lambda call: Answer(id=call.id, status=200, body='{"path":"' + call.path + '"}'))
    server.put(get(1), get(2, "/v1/secret"), change(3, epoch=2))
    good, refused, step = server.answered("c1", "c2", "c3")
    assert (good.status, good.body) == (200, '{"path":"/v1/status"}')
    assert (refused.status, msgspec.json.decode(refused.body)["code"]) == (409, "calls.not-permitted")
    assert step.status == 200
    server.put(change(4, epoch=1))
    [outdated] = server.answered("c4")
    assert (outdated.status, msgspec.json.decode(outdated.body)["code"]) == (409, "calls.step-outdated")


def test_a_lost_answer_is_given_again_and_its_change_not_repeated(started: Started) -> None:
    done: list[str] = []

    def carry_out(call: Call) -> Answer:
        done.append(call.id)
        return Answer(id=call.id, status=200, body=str(len(done)))

    server = started(carry_out)
    server.cut_answers = 3
    server.put(change(1))
    assert server.answered("c1")[0].body == "1"
    assert done == ["c1"]


def test_planted_bug_answers_that_are_not_kept_are_caught(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_ANSWERS", 0)
    with pytest.raises(AssertionError):
        test_a_lost_answer_is_given_again_and_its_change_not_repeated(started)


def test_what_may_succeed_later_is_not_kept(started: Started) -> None:
    tries: list[str] = []

    def carry_out(call: Call) -> Answer:
        tries.append(call.id)
        if len(tries) == 1:
            raise ControlUnreachable(why="a test")
        return Answer(id=call.id, status=200)

    server = started(carry_out)
    server.cut_answers = 1
    server.put(change(1))
    assert server.answered("c1")[0].status == 200
    assert len(tries) == 2


def test_no_more_are_under_way_than_there_is_room_for(started: Started) -> None:
    go, full, lock = threading.Event(), threading.Event(), threading.Lock()
    most, now = [0], [0]

    def carry_out(call: Call) -> Answer:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == UNDER_WAY_MAX:
                full.set()
        assert go.wait(60)
        with lock:
            now[0] -= 1
        return Answer(id=call.id, status=200)

    server = started(carry_out)
    ids = [f"c{number}" for number in range(3 * UNDER_WAY_MAX)]
    server.put(*(get(number) for number in range(3 * UNDER_WAY_MAX)))
    assert full.wait(60)
    go.set()
    server.answered(*ids)
    assert most[0] <= UNDER_WAY_MAX
    assert all(len(ask.under_way) + ask.room == UNDER_WAY_MAX for ask in server.asked)


def test_a_defect_in_one_call_does_not_stop_the_next(started: Started) -> None:
    def carry_out(call: Call) -> Answer:
        if call.id == "c1" and not server.answers:
            raise RuntimeError("a defect")
        return Answer(id=call.id, status=200)

    server = started(carry_out)
    server.put(get(1), get(2))
    server.answered("c1", "c2")


def test_a_gateway_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlUnreachable):
        over_socket(tmp_path / "none.sock")(get())


def test_who_follows_the_servers_wishes_hears_of_them_with_its_work(tmp_path: Path) -> None:
    server, heard = MemoryCalls(), [3]
    server.generation = 4
    fences = Fences(tmp_path / "fences.json")
    wishes = Wishes(lambda: heard[-1], heard.append)
    uplink = Uplink(server, lambda call: Answer(id=call.id, status=200), fences, SystemClock(), wishes)
    uplink.start()
    until(lambda: len(server.asked) > 1, "asked again")
    uplink.close()
    assert server.asked[0].generation == 3
    assert server.asked[1].generation == 4
    assert set(heard) == {3, 4}
