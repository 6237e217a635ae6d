"""The worker's threads: what waits holds none, what they cannot carry on goes back, a stop leaves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from secondsite.server.database.engine import Database
from secondsite.server.database.errors import DatabaseUnavailable
from secondsite.server.database.tables_jobs import job_workers, jobs
from secondsite.server.jobs import processes, records
from secondsite.server.jobs.claims import Claims
from secondsite.server.jobs.definitions import DONE, Definition, Registry, Result, RetryAfter, Step
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.runner import Runner
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.states import JobState
from secondsite.server.jobs.worker import Worker, WorkerSettings

QUICK = WorkerSettings(threads=2, lease_seconds=2.0, beat_seconds=0.1, poll_seconds=0.02)


class Given(msgspec.Struct):
    number: int = 0


class Engine:
    def __init__(self, database: Database, do: Callable[[StepRun[Given]], Result]) -> None:
        self.database = database
        definition = Definition("One", 1, Given, (Step("a", do=do),), title=lambda _given: "One")
        self.jobs = Jobs(Registry([definition]), database.clock)
        self.workers: list[Worker] = []

    def work(self, settings: WorkerSettings = QUICK) -> Worker:
        worker = Worker(self.database, self.jobs, settings)
        self.workers.append(worker)
        worker.start()
        return worker

    def start(self, number: int = 0) -> str:
        with self.database.write() as connection:
            return self.jobs.start(connection, "One", Given(number), "ann")

    def get(self, job: str) -> records.Job:
        with self.database.read() as connection:
            return records.get(connection, job)

    def reaches(self, job: str, state: JobState = JobState.SUCCEEDED) -> bool:
        return until(lambda: self.get(job).state is state)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    never = threading.Event()
    while time.monotonic() < deadline:
        if condition():
            return True
        never.wait(0.02)
    return False


@pytest.fixture
def engine(database: Database) -> Iterator[Callable[[Callable[[StepRun[Given]], Result]], Engine]]:
    made: list[Engine] = []

    def make(do: Callable[[StepRun[Given]], Result]) -> Engine:
        made.append(Engine(database, do))
        return made[-1]

    yield make
    for one in made:
        for worker in one.workers:
            worker.stop(10)


def test_what_waits_holds_no_thread(engine: Any) -> None:
    """Two threads, fifty jobs that wait: the one that comes last runs at once."""
    made = engine(lambda run: DONE if run.input.number == 50 else RetryAfter(3600, "waits"))
    waiting = [made.start(number) for number in range(50)]
    worker = made.work()
    assert until(lambda: all(made.get(job).note == "waits" for job in waiting))
    last = made.start(50)
    worker.nudge()
    assert made.reaches(last)
    assert all(made.get(job).worker is None for job in waiting)


def test_what_a_worker_cannot_carry_on_is_given_back_and_says_why(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Runner.run

    def broken(self: Runner, hold: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Runner, "run", broken)
    made = engine(lambda _run: DONE)
    job = made.start()
    made.work()
    assert until(lambda: "ZeroDivisionError: planted" in (made.get(job).note or ""))
    assert made.get(job).worker is None
    monkeypatch.setattr(Runner, "run", real)
    with made.database.write() as connection:
        made.jobs.wake(connection, job)
    assert made.reaches(job)


def test_a_taking_whose_answer_was_lost_is_let_go(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database kept it, then the connection was gone: nobody carries it out, and its worker lives."""
    taken = Claims.take
    lost: list[str] = []

    def cut(self: Claims, limit: int, stop: threading.Event) -> list[Hold]:
        held = taken(self, limit, stop)
        if held and not lost:
            lost.append(held[0].job)
            raise DatabaseUnavailable(where=self.database.where, why="the connection was cut")
        return held

    monkeypatch.setattr(Claims, "take", cut)
    made = engine(lambda _run: DONE)
    job = made.start()
    made.work()
    assert made.reaches(job)
    assert lost == [job]
    with made.database.read() as connection:
        texts = [line.text for line in records.log(connection, job)]
    assert "its worker did not learn that it had it" in texts


def test_what_is_carried_out_is_not_let_go(engine: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(run: StepRun[Given]) -> Result:
        if not run.input.number:
            begun.set()
            assert go_on.wait(30)
        return DONE

    made = engine(slow)
    job = made.start()
    worker = made.work()
    assert begun.wait(30)
    assert made.reaches(made.start(1)), "the worker works beside it"
    looked = worker._looked
    assert until(lambda: worker._looked > looked), "it looks around"
    held = made.get(job)
    assert held.worker == worker._claims.worker
    go_on.set()
    assert made.reaches(job)
    assert made.get(job).epoch == held.epoch


def test_a_stop_waits_for_the_step_and_begins_no_other(engine: Any) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(_run: StepRun[Given]) -> Result:
        inside.set()
        assert go_on.wait(30)
        return RetryAfter(0, "again")

    made = engine(slow)
    job = made.start()
    worker = made.work()
    assert inside.wait(30)
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(worker.stop(30)))
    stopping.start()
    stopping.join(0.3)
    assert stopping.is_alive(), "it did not wait for the step"
    go_on.set()
    stopping.join(30)
    assert stopped == [True]
    assert (made.get(job).worker, made.get(job).note) == (None, "again")
    with made.database.read() as connection:
        assert connection.execute(sa.select(job_workers)).all() == []


def test_a_worker_taken_for_dead_joins_again(engine: Any) -> None:
    made = engine(lambda _run: DONE)
    worker = made.work()
    assert made.reaches(made.start())
    first = worker._claims.worker
    with made.database.write() as connection:
        connection.execute(jobs.update().values(worker=None))
        connection.execute(job_workers.delete())
    assert until(lambda: worker._claims.worker not in {first, ""})
    assert made.reaches(made.start())


def test_two_workers_share_and_a_silent_one_loses_its_jobs(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stalls in its step and shows no sign of life: the second does the job."""
    inside, go_on = threading.Event(), threading.Event()
    epochs: list[int] = []

    def stalls(run: StepRun[Given]) -> Result:
        epochs.append(run.epoch)
        if run.epoch == 1:
            inside.set()
            assert go_on.wait(30)
            run.log("too late")
        return DONE

    made = engine(stalls)
    job = made.start()
    first = made.work()
    assert inside.wait(30)
    monkeypatch.setattr(first._claims, "beat", lambda: True)  # says it did, and did not
    made.work()
    assert made.reaches(job)
    go_on.set()
    assert first.stop(10)
    assert epochs == [1, 2]
    with made.database.read() as connection:
        texts = [line.text for line in records.log(connection, job)]
    assert "too late" not in texts
    assert any("showed no sign of life" in text for text in texts)


def test_old_jobs_are_deleted_by_the_way(engine: Any) -> None:
    made = engine(lambda _run: DONE)
    job = made.start()
    made.work()
    assert made.reaches(job)
    with made.database.write() as connection:
        connection.execute(jobs.update().values(ended="2020-01-01T00:00:00.000000Z"))
    made.work()
    assert until(lambda: _count(made.database) == 0)


def _count(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(jobs)).scalar_one()


def test_a_process_is_known_by_more_than_its_number() -> None:
    own = processes.own()
    assert not processes.surely_gone(own)
    place, space, pid, began = own.split(" ")
    assert processes.surely_gone(f"{place} {space} {pid} {int(began) - 1}"), "the number was given to another"
    assert processes.surely_gone(f"{place} {space} 4194304 {began}")
    assert not processes.surely_gone(f"other-boot {space} {pid} {int(began) - 1}"), "another machine's"
    assert not processes.surely_gone("written by another version")
