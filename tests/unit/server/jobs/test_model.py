"""The job table against a model: whatever comes in whatever order, locks, effects and states agree."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_jobs import job_locks, job_workers, jobs
from secondsite.server.jobs import records
from secondsite.server.jobs.claims import Claims
from secondsite.server.jobs.definitions import (
    DONE,
    Ask,
    Definition,
    OnFailure,
    Registry,
    Result,
    RetryAfter,
    Step,
)
from secondsite.server.jobs.errors import LockHeld
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.runner import Runner
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.states import ENDED, JobIllegal, JobState, allowed
from support.job_runs import Killed, Lasting, Passing

STEPS = ("a", "b", "c")
MACHINES = ("shop", "bakery")
OUTCOMES = ("done", "done", "done", "later", "passing", "lasting", "ask", "killed", "cancel")


class Given(msgspec.Struct):
    machine: str


@dataclass
class Modelled:
    """What the outside has of one job."""

    machine: str
    keeps: bool
    effects: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)


class JobTable(RuleBasedStateMachine):
    """One worker after another; the outcome of the next calls is drawn before."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        assert isinstance(database.clock, FakeClock)
        self.database, self.clock = database, database.clock
        self.models: dict[str, Modelled] = {}
        self.outcomes: list[str] = []
        with database.write() as connection:
            for table in (job_locks, jobs, job_workers):
                connection.execute(table.delete())
        kinds = [self._definition(failing) for failing in OnFailure]
        self.jobs = Jobs(Registry(kinds), self.clock)
        self.stop = threading.Event()
        self._join()

    def _definition(self, failing: OnFailure) -> Definition[Given]:
        return Definition(
            kind=failing.name,
            version=1,
            input=Given,
            steps=tuple(Step(name, do=self._called, undo=self._called) for name in STEPS),
            title=lambda given: given.machine,
            locks=lambda given: [given.machine],
            on_failure=failing,
        )

    def _join(self) -> None:
        self.claims = Claims(self.database, self.jobs.registry.kinds, 30.0)
        self.claims.join()
        self.runner = Runner(self.jobs, threading.Event(), turn_seconds=0.0)

    def _called(self, run: StepRun[Given]) -> Result:
        model = self.models[run.job]
        outcome = self.outcomes.pop(0) if self.outcomes else "done"
        action = run.action.value
        assert self._locks().get(model.machine) == run.job, "a step runs on a machine that is not its job's"
        expected = [name for name in STEPS if name not in model.effects] if action == "do" else None
        if expected is not None:
            assert run.step in {expected[0], *model.effects}, "a step was passed over"
        else:
            assert not {name for name in model.effects if name > run.step}, "taken back in the wrong order"
        model.calls.append((action, run.step))
        if action == "do":
            model.effects.add(run.step)
        else:
            model.effects.discard(run.step)
        if outcome == "killed":
            raise Killed
        if outcome == "lasting":
            raise Lasting
        if outcome == "passing":
            raise Passing
        if outcome == "cancel":
            self._ask("cancel", run.job)
        if outcome == "ask" and action == "do":
            return Ask("go on?")
        return RetryAfter(5, "later") if outcome == "later" else DONE

    def _locks(self) -> dict[str, str]:
        with self.database.read() as connection:
            return {row.key: row.job for row in connection.execute(sa.select(job_locks))}

    def _found(self) -> dict[str, records.Job]:
        with self.database.read() as connection:
            return {job.id: job for job in records.listed(connection, limit=1000)}

    def _ask(self, what: str, job: str) -> None:
        with self.database.read() as connection:
            state = records.get(connection, job).state
        calls: dict[str, Callable[[sa.Connection], object]] = {
            "cancel": lambda connection: self.jobs.cancel(connection, job, "ann"),
            "retry": lambda connection: self.jobs.retry(connection, job, "ann"),
            "resume": lambda connection: self.jobs.resume(connection, job, "yes", "ann"),
        }
        holder = self._locks().get(self.models[job].machine)
        try:
            with self.database.write() as connection:
                calls[what](connection)
        except JobIllegal:
            assert what not in allowed(state)
        except LockHeld:
            assert holder not in {None, job}
        else:
            assert what in allowed(state)

    @initialize()
    def first(self) -> None:
        self.start("shop", keeps=False)

    @rule(machine=st.sampled_from(MACHINES), keeps=st.booleans())
    def start(self, machine: str, keeps: bool) -> None:
        holder = self._locks().get(machine)
        kind = (OnFailure.KEEP if keeps else OnFailure.UNDO).name
        try:
            with self.database.write() as connection:
                job = self.jobs.start(connection, kind, Given(machine), "ann")
        except LockHeld:
            assert holder is not None
        else:
            assert holder is None
            self.models[job] = Modelled(machine, keeps)

    @rule(outcome=st.sampled_from(OUTCOMES))
    def turn(self, outcome: str) -> None:
        self.outcomes = [outcome]
        for hold in self.claims.take(1, self.stop):
            try:
                self.runner.run(hold)
            except Killed:
                self.taken_over()

    @rule()
    def dies_before_it_begins(self) -> None:
        if self.claims.take(2, self.stop):
            self.taken_over()

    @rule()
    def taken_over(self) -> None:
        self._join()
        assert self.claims.take_over() == 0
        self.clock.advance(31)
        assert self.claims.take_over() == 1

    @rule(what=st.sampled_from(("cancel", "retry", "resume")), data=st.data())
    def person(self, what: str, data: st.DataObject) -> None:
        self._ask(what, data.draw(st.sampled_from(sorted(self.models))))

    @rule(seconds=st.sampled_from((1, 5, 60)))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def all_agree(self) -> None:
        found, locks = self._found(), self._locks()
        assert set(found) == set(self.models), "a job is missing, or one came from nowhere"
        live = {self.models[job.id].machine: job.id for job in found.values() if job.live}
        assert locks == live, "the locks are not those of the live jobs"
        assert sum(job.live for job in found.values()) == len(live), "two live jobs on one machine"
        for job in found.values():
            model = self.models[job.id]
            assert (job.ended is not None) == (job.state in ENDED)
            if job.state is JobState.SUCCEEDED:
                assert model.effects == set(STEPS)
            if job.state is JobState.CANCELLED or (job.state is JobState.FAILED and not model.keeps):
                assert model.effects == set()
            assert (job.state is JobState.SUSPENDED) == (job.question is not None)

    def teardown(self) -> None:
        """Nothing is stuck: with all trouble gone and every question answered, every job ends."""
        for _ in range(60):
            for job in self._found().values():
                if job.state is JobState.SUSPENDED:
                    self._ask("resume", job.id)
            self.clock.advance(60)
            self.turn("done")
        assert not [job for job in self._found().values() if job.live]
        self.all_agree()


def test_job_table(timed: Database) -> None:
    class OnThis(JobTable):
        def __init__(self) -> None:
            super().__init__(timed)

    run_state_machine_as_test(
        OnThis,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
