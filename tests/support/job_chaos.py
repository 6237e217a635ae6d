"""``python -m support.job_chaos URL FILE``: a worker, for tests that kill it; and the jobs it carries out.

Every call of a step writes a line into a table of its own, in a transaction of its own: what a gateway would
see. The gateway there is as strict as a real one: it refuses an epoch lower than one it has seen of that job.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import msgspec
import sqlalchemy as sa

from secondsite.base.clock import SystemClock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database, open_database
from secondsite.server.jobs.definitions import DONE, Definition, Done, Registry, Result, RetryAfter, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.worker import Worker, WorkerSettings

STEPS = 20
LEASE_SECONDS = 1.0

OUTSIDE = sa.MetaData()
# What each job's machine has: a step that was done and not taken back stands here once.
effects = sa.Table(
    "outside_effects",
    OUTSIDE,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
)
seen = sa.Table(
    "outside_seen",
    OUTSIDE,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer),
)
calls = sa.Table(
    "outside_calls",
    OUTSIDE,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job", sa.String),
    sa.Column("epoch", sa.Integer),
    sa.Column("action", sa.String),
    sa.Column("step", sa.Integer),
)


class OlderEpoch(SecondsiteError):
    code = "test.older-epoch"
    happened = "The gateway has seen a newer epoch of {job}."
    cause = "A test."
    action = "Nothing."


class Refused(SecondsiteError):
    code = "test.refused"
    happened = "The step fails as its input says."
    cause = "A test."
    action = "Nothing."


class Wobble(SecondsiteError):
    code = "test.wobble"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway was busy."
    cause = "A test."
    action = "Wait."


class Chaos(msgspec.Struct):
    number: int
    fails_at: int | None = None  # the step that fails for good: everything is taken back


class Output(msgspec.Struct):
    step: int


def definition(outside: Database) -> Definition[Chaos]:
    never = threading.Event()

    def act(run: StepRun[Chaos], number: int) -> None:
        """One idempotent call of a gateway, in one piece, fenced by the epoch."""
        with outside.write(alone=False) as connection:
            newest = connection.execute(
                sa.select(seen.c.epoch).where(seen.c.job == run.job).with_for_update()
            ).scalar_one()
            if newest > run.epoch:
                raise OlderEpoch(job=run.job)
            connection.execute(seen.update().where(seen.c.job == run.job).values(epoch=run.epoch))
            connection.execute(
                calls.insert().values(job=run.job, epoch=run.epoch, action=run.action.value, step=number)
            )
            connection.execute(effects.delete().where(effects.c.job == run.job, effects.c.step == number))
            if run.action.value == "do":
                connection.execute(effects.insert().values(job=run.job, step=number))

    def do(run: StepRun[Chaos], number: int) -> Result:
        act(run, number)
        never.wait(0.03)  # so that most of what is killed or stalled is inside a step
        if run.input.fails_at == number:
            raise Refused
        if (run.input.number + number) % 17 == 0 and run.attempt == 1:
            return RetryAfter(0.05, "once more")
        return Done(Output(number))

    def undo(run: StepRun[Chaos], number: int) -> Result:
        act(run, number)
        return DONE

    def step(number: int) -> Step[Chaos]:
        return Step(
            f"s{number:02}", do=lambda run: do(run, number), undo=lambda run: undo(run, number), tries=100
        )

    return Definition(
        kind="Chaos",
        version=1,
        input=Chaos,
        steps=tuple(step(number) for number in range(STEPS)),
        title=lambda given: f"chaos {given.number}",
        locks=lambda given: [f"machine:{given.number}"],
    )


def jobs_of(database: Database, outside: Database) -> Jobs:
    return Jobs(Registry([definition(outside)]), database.clock)


def main() -> int:
    url, ready = sys.argv[1], Path(sys.argv[2])
    database = open_database(url, SystemClock())
    settings = WorkerSettings(threads=8, lease_seconds=LEASE_SECONDS, beat_seconds=0.2, poll_seconds=0.05)
    worker = Worker(database, jobs_of(database, database), settings)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    worker.start()
    ready.touch()
    while not ended.wait(0.2):
        pass
    return 0 if worker.stop(20) else 1


if __name__ == "__main__":
    sys.exit(main())
