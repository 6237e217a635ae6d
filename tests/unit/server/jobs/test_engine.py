"""What steps can use of the engine, what readers see, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.clock import FakeClock
from secondsite.server.calls.service import GatewaySilent
from secondsite.server.database.engine import Database
from secondsite.server.database.errors import DatabaseUnavailable
from secondsite.server.database.tables_jobs import job_steps, job_workers, jobs
from secondsite.server.database.values import moment
from secondsite.server.jobs import records
from secondsite.server.jobs.advance import LOST_MAX
from secondsite.server.jobs.definitions import DONE, Definition, Done, Result, RetryAfter, Step
from secondsite.server.jobs.errors import JobKindUnknown, JobNotFound, LeaseLost, LockHeld, OutputMissing
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.states import JobIllegal, JobState
from support.job_hand import HandWorker


class Given(msgspec.Struct):
    machine: str = "shop"


class Size(msgspec.Struct):
    gib: int


def one_step(do: Any, kind: str = "One", **more: Any) -> Definition[Given]:
    return Definition(
        kind=kind,
        version=1,
        input=Given,
        steps=(Step("a", do=do, **more),),
        title=lambda given: f"{kind} of {given.machine}",
        locks=lambda given: [f"machine:{given.machine}"],
    )


def done(_run: StepRun[Given]) -> Result:
    return DONE


def test_outputs_travel_from_step_to_step_and_out(timed: Database) -> None:
    def last(run: StepRun[Given]) -> Result:
        with pytest.raises(OutputMissing):
            run.output_of("nothing", Size)
        return Done(Size(run.output_of("measure", Size).gib * 2))

    steps: tuple[Step[Given], ...] = (
        Step("measure", do=lambda _run: Done(Size(21))),
        Step("double", do=last),
    )
    worker = HandWorker(timed, [Definition("Sizes", 1, Given, steps, title=lambda _given: "Sizes")])
    job = worker.start("Sizes", Given())
    worker.idle()
    found = worker.get(job)
    assert (found.state, found.output, found.progress) == (JobState.SUCCEEDED, '{"gib":42}', 1.0)
    assert [step.output for step in worker.steps(job)] == ['{"gib":21}', '{"gib":42}']


def test_one_live_job_a_machine_and_the_refusal_names_it(timed: Database) -> None:
    worker = HandWorker(timed, [one_step(lambda _run: RetryAfter(60, "waits"))])
    job = worker.start("One", Given("shop"))
    worker.start("One", Given("bakery"))
    worker.idle()
    with pytest.raises(LockHeld) as caught:
        worker.start("One", Given("shop"))
    assert job in str(caught.value)
    assert "One of shop" in str(caught.value)
    with timed.read() as connection:
        assert len(records.listed(connection)) == 2, "the refused one left something behind"
    with timed.write() as connection:
        worker.jobs.cancel(connection, job, "ann")
    with pytest.raises(LockHeld):
        worker.start("One", Given("shop"))
    worker.idle()
    worker.start("One", Given("shop"))


def test_a_retry_must_have_the_machine_again(timed: Database) -> None:
    def breaks(_run: StepRun[Given]) -> Result:
        raise JobNotFound(job="x")

    worker = HandWorker(timed, [one_step(breaks), one_step(lambda _run: RetryAfter(60, "waits"), "Two")])
    job = worker.start("One", Given())
    worker.idle()
    other = worker.start("Two", Given())
    for call in (worker.jobs.retry, worker.jobs.restart, worker.jobs.cancel):
        with pytest.raises(LockHeld, match=other), timed.write() as connection:
            call(connection, job, "ann")
    assert worker.get(job).state is JobState.FAILED


def test_progress_and_log_are_seen_while_the_step_runs(timed: Database, clock: FakeClock) -> None:
    seen: list[tuple[float, str]] = []

    def second(run: StepRun[Given]) -> Result:
        for part in (0.5, 0.25, 1.0):
            clock.advance(1)
            assert run.progress(part, f"{part:.0%} copied") is False
            found = worker.get(run.job)
            seen.append((found.progress, found.progress_text))
        run.progress(0.1, "too soon after the last: not written")
        run.log("disk vda is thin")
        return DONE

    steps = (Step("a", do=done), Step("b", do=second, weight=3.0))
    worker = HandWorker(timed, [Definition("P", 1, Given, steps, title=lambda _given: "P")], turn_seconds=100)
    job = worker.start("P", Given())
    worker.idle()
    assert seen == [(0.625, "50% copied"), (0.625, "25% copied"), (1.0, "100% copied")]
    assert worker.log(job) == ["asked for by ann", "done", "disk vda is thin", "done", "ended: Succeeded"]
    assert worker.get(job).progress_text == ""


@pytest.mark.parametrize(("between", "calls_made"), [(True, 3), (False, 20)])
def test_tries_count_while_only_questions_are_put(timed: Database, *, between: bool, calls_made: int) -> None:
    """Asked and never answered, the step ends; what said something in between is tried on."""
    tried: list[int] = []

    def asks(run: StepRun[Given]) -> Result:
        if run.attempt % 2:
            return RetryAfter(5, "waits for gateway gateway-b", asked=between)
        tried.append(run.attempt)
        if len(tried) == 20:
            return DONE
        raise GatewaySilent(gateway="gateway-b", seconds=60)

    steps = (Step("ask", do=asks, tries=3),)
    worker = HandWorker(timed, [Definition("Ask", 1, Given, steps, title=lambda _given: "Ask")])
    job = worker.start("Ask", Given())
    for _ in range(60):
        worker.idle()
        worker.clock.advance(10)
    state = JobState.FAILED if between else JobState.SUCCEEDED
    assert (worker.get(job).state, len(tried)) == (state, calls_made)


def test_an_unforeseen_error_is_the_jobs_not_the_workers(timed: Database) -> None:
    def breaks(_run: StepRun[Given]) -> Result:
        raise ZeroDivisionError("planted")

    worker = HandWorker(timed, [one_step(breaks)])
    job = worker.start("One", Given())
    worker.idle()
    found = worker.get(job)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert (found.error.code, "planted" in found.error.happened) == ("job.step-broken", True)
    assert all((found.error.happened, found.error.cause, found.error.action))
    assert worker.steps(job)[0].error == found.error


def test_a_step_that_takes_its_workers_with_it_is_given_up(timed: Database) -> None:
    worker = HandWorker(timed, [one_step(done)])
    job = worker.start("One", Given())
    with timed.write() as connection:
        connection.execute(job_steps.update().values(lost=LOST_MAX))
    worker.idle()
    found = worker.get(job)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert found.error.code == "job.step-given-up"
    with timed.write() as connection:
        worker.jobs.retry(connection, job, "ann")
    worker.idle()
    assert worker.get(job).state is JobState.SUCCEEDED


def test_a_wake_cuts_a_wait_short_also_while_the_step_runs(timed: Database) -> None:
    calls: list[int] = []

    def waits(run: StepRun[Given]) -> Result:
        calls.append(run.epoch)
        if len(calls) == 2:  # what it waits for happens after it looked and before it says so
            with timed.write() as connection:
                worker.jobs.wake(connection, run.job)
        return DONE if len(calls) == 3 else RetryAfter(3600, "waits for the gateway")

    worker = HandWorker(timed, [one_step(waits)])
    job = worker.start("One", Given())
    worker.idle()
    assert (len(calls), worker.get(job).note) == (1, "waits for the gateway")
    with timed.write() as connection:
        worker.jobs.wake(connection, job)
    worker.idle()
    assert len(calls) == 3
    assert worker.get(job).state is JobState.SUCCEEDED


def test_rows_of_the_servers_own_are_fenced_like_the_jobs(timed: Database) -> None:
    def writes(run: StepRun[Given]) -> Result:
        with timed.write() as connection:  # a peer has taken it over meanwhile
            connection.execute(jobs.update().values(worker=None, epoch=jobs.c.epoch + 1))
        run.write(lambda connection: connection.execute(job_workers.update().values(name="late")))
        return DONE

    worker = HandWorker(timed, [one_step(writes)])
    worker.start("One", Given())
    with pytest.raises(LeaseLost):
        worker.turn()
    with timed.read() as connection:
        assert "late" not in connection.execute(sa.select(job_workers.c.name)).scalars().all()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_a_write_of_unknown_end_is_done_once(
    timed: Database, monkeypatch: pytest.MonkeyPatch, kept: bool, which: int
) -> None:
    """The connection is lost in the n-th commit of a worker, before or after the database kept it."""
    calls: list[str] = []

    def noted(run: StepRun[Given]) -> Result:
        calls.append(run.step)
        return DONE

    steps = tuple(Step(name, do=noted) for name in "abc")
    worker = HandWorker(timed, [Definition("L", 1, Given, steps, title=lambda _given: "L")], turn_seconds=100)
    job = worker.start("L", Given())
    [hold] = worker.claims.take(1, worker.stop)
    real, writes = timed.write, []

    @contextlib.contextmanager
    def lossy(*, alone: bool = True) -> Iterator[Connection]:
        writes.append(1)
        with real(alone=alone) as connection:
            yield connection
            if len(writes) == which and not kept:
                raise DatabaseUnavailable(where="here", why="planted")
        if len(writes) == which:
            raise DatabaseUnavailable(where="here", why="planted")

    monkeypatch.setattr(timed, "write", lossy)
    worker.runner.run(hold)
    assert worker.get(job).state is JobState.SUCCEEDED
    assert calls == ["a", "b", "c"]
    assert worker.log(job).count("done") == 3


def test_what_is_listed_and_what_may_be_asked(timed: Database, clock: FakeClock) -> None:
    worker = HandWorker(timed, [one_step(done), one_step(lambda _run: RetryAfter(60, "waits"), "Two")])
    made = []
    for number in range(5):
        made.append(worker.start("Two" if number == 2 else "One", Given(f"m{number}")))
        clock.advance(1)
    worker.idle()
    with timed.read() as connection:
        page = records.listed(connection, limit=3)
        assert [job.id for job in page] == made[:1:-1]
        assert [job.id for job in records.listed(connection, limit=3, before=page[-1].id)] == made[1::-1]
        assert [job.id for job in records.listed(connection, kind="Two")] == [made[2]]
        assert [job.id for job in records.listed(connection, states=[JobState.IN_PROGRESS])] == [made[2]]
        counts = records.counts(connection)
    assert (counts[JobState.SUCCEEDED], counts[JobState.IN_PROGRESS], sum(counts.values())) == (4, 1, 5)
    assert worker.get(made[2]).allowed == ("cancel",)
    assert worker.get(made[0]).allowed == ("restart",)
    assert worker.get(made[0]).shown == ("Succeeded", "Completed")


def test_what_is_not_there_is_refused(timed: Database) -> None:
    worker = HandWorker(timed, [one_step(done)])
    with pytest.raises(JobKindUnknown, match="Tow"):
        worker.start("Tow", Given())
    with pytest.raises(JobNotFound), timed.write() as connection:
        worker.jobs.cancel(connection, "nobody", "ann")
    job = worker.start("One", Given())
    with pytest.raises(JobIllegal, match="NotStarted"), timed.write() as connection:
        worker.jobs.resume(connection, job, "yes", "ann")


def test_old_jobs_go_and_live_ones_stay(timed: Database, clock: FakeClock) -> None:
    worker = HandWorker(timed, [one_step(done), one_step(lambda _run: RetryAfter(86400, "waits"), "Two")])
    old, waits = worker.start("One", Given("a")), worker.start("Two", Given("b"))
    worker.idle()
    clock.advance(timedelta(days=2).total_seconds())
    young = worker.start("One", Given("c"))
    worker.idle()
    before = moment(clock.utc() - timedelta(days=1))
    with timed.write() as connection:
        assert worker.jobs.delete_ended(connection, before) == 1
        assert worker.jobs.delete_ended(connection, before) == 0
    with pytest.raises(JobNotFound):
        worker.get(old)
    assert worker.steps(old) == []
    assert (worker.get(waits).live, worker.get(young).live) == (True, False)


def test_of_hundred_jobs_none_starves(timed: Database, clock: FakeClock) -> None:
    """Steps of a second each: no job's second step comes before every job's first."""
    order: list[tuple[str, str]] = []

    def slow(run: StepRun[Given]) -> Result:
        order.append((run.step, run.job))
        clock.advance(1.0)
        return DONE

    steps = tuple(Step(name, do=slow) for name in "ab")
    worker = HandWorker(timed, [Definition("S", 1, Given, steps, title=lambda _given: "S")])
    made = [worker.start("S", Given(f"m{number}")) for number in range(100)]
    worker.idle(taking=20)
    assert [step for step, _ in order] == ["a"] * 100 + ["b"] * 100
    assert [job for _, job in order[:100]] == [job for _, job in order[100:200]]
    assert {worker.get(job).state for job in made} == {JobState.SUCCEEDED}
