"""A server of another version finds a job half done: it goes on, leaves it, or refuses it with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from secondsite.server.database.engine import Database
from secondsite.server.jobs.definitions import DONE, Definition, Result, RetryAfter, Step, Upgrade
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.states import JobState
from support.job_hand import HandWorker


class Old(msgspec.Struct):
    machine: str


class New(msgspec.Struct):
    machines: list[str]


def carried(text: bytes) -> New:
    return New([msgspec.json.decode(text, type=Old).machine])


@dataclass
class Here:
    """What the server has that finds the job."""

    version: int
    given: Any = Old
    upgrades: dict[int, Any] = field(default_factory=dict)


class Program:
    """One version of the program on a database."""

    def __init__(
        self,
        database: Database,
        names: str,
        version: int,
        *,
        given: Any = Old,
        upgrades: Any = None,
        wait: str = "",
    ) -> None:
        self.calls: list[str] = []
        self.wait = wait

        def act(run: StepRun[Any]) -> Result:
            self.calls.append(f"{run.action.value} {run.step}")
            return RetryAfter(1, "waits") if run.step == self.wait and run.action.value == "do" else DONE

        self.definition: Definition[Any] = Definition(
            "Move",
            version,
            given,
            tuple(Step(name, do=act, undo=act) for name in names.split()),
            title=lambda _given: "Move",
            upgrades=upgrades or {},
        )
        self.worker = HandWorker(database, [self.definition])


def half_done(database: Database) -> tuple[Program, str]:
    old = Program(database, "a b c", 1, wait="b")
    job = old.worker.start("Move", Old("shop"))
    old.worker.idle()
    assert old.calls == ["do a", "do b"]
    old.worker.clock.advance(2)
    return old, job


def test_an_upgrade_goes_on_where_the_old_one_stood(timed: Database) -> None:
    _, job = half_done(timed)
    upgrade = Upgrade(steps={"a": "first", "b": "second"}, input=carried)
    new = Program(timed, "first second more third", 2, given=New, upgrades={1: upgrade})
    new.worker.idle()
    found = new.worker.get(job)
    assert (found.state, found.version, found.input) == (JobState.SUCCEEDED, 2, '{"machines":["shop"]}')
    assert new.calls == ["do second", "do more", "do third"]
    assert "goes on with version 2 of Move" in new.worker.log(job)


def test_an_upgrade_in_the_middle_of_taking_back(timed: Database) -> None:
    old, job = half_done(timed)
    with timed.write() as connection:
        old.worker.jobs.cancel(connection, job, "ann")
    new = Program(
        timed,
        "zero first second",
        2,
        given=New,
        upgrades={1: Upgrade({"a": "first", "b": "second"}, carried)},
    )
    new.worker.idle()
    assert new.calls == ["undo second", "undo first"]
    assert new.worker.get(job).state is JobState.CANCELLED


AS_IT_WAS = {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("names", "here", "why"),
    [
        ("a b c", Here(2), "nothing leads from there"),
        ("a b", Here(1), "other names"),
        ("a b c", Here(1, New), "another form"),
        ("a c", Here(2, New, {1: Upgrade({"a": "a"}, carried)}), "nothing stands for the step b"),
        ("x a b", Here(2, New, {1: Upgrade(AS_IT_WAS, carried)}), "x would come before"),
        ("a b", Here(2, New, {1: Upgrade(AS_IT_WAS, lambda text: carried(text[1:]))}), "cannot be carried"),
    ],
)
def test_what_cannot_go_on_is_refused_with_the_reason(
    timed: Database, names: str, here: Here, why: str
) -> None:
    _, job = half_done(timed)
    new = Program(timed, names, here.version, given=here.given, upgrades=here.upgrades)
    new.worker.idle()
    found = new.worker.get(job)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert found.error.code == "job.definition-changed"
    assert why in found.error.happened
    assert new.calls == []
    assert found.error.happened in new.worker.log(job)
    # the machine is free, and the former program can still take it back
    old = Program(timed, "a b c", 1)
    with timed.write() as connection:
        old.worker.jobs.cancel(connection, job, "ann")
    old.worker.idle()
    assert old.calls == ["undo b", "undo a"]


def test_a_newer_programs_job_is_left_to_it(timed: Database) -> None:
    new = Program(timed, "a b", 3, wait="b")
    job = new.worker.start("Move", Old("shop"))
    new.worker.idle()
    new.worker.clock.advance(2)
    old = Program(timed, "a", 2)
    old.worker.idle()
    found = old.worker.get(job)
    assert found.state is JobState.IN_PROGRESS
    assert found.note == "needs a server with version 3 of Move; this one has 2"
    assert old.calls == []
    new.wait = ""
    new.worker.clock.advance(60)
    new.worker.idle()
    assert new.worker.get(job).state is JobState.SUCCEEDED


def test_a_kind_nobody_here_knows_says_so(timed: Database) -> None:
    old = Program(timed, "a", 1)
    job = old.worker.start("Move", Old("shop"))
    other = HandWorker(timed, [])
    other.idle()
    other.claims.name_strangers()
    assert "no server that looked knows this kind" in (other.get(job).note or "")
    old.worker.idle()
    assert old.worker.get(job).state is JobState.SUCCEEDED
