"""Servers killed and stalled, the database away: every job ends as it must, nothing doubled, nothing missing.

`./run chaos` kills more and longer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from secondsite.base.clock import SystemClock
from secondsite.base.crash import MARKS
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.errors import DatabaseUnavailable
from secondsite.server.database.migrations import upgrade
from secondsite.server.database.tables_jobs import job_locks, job_log, job_steps, job_workers, jobs
from secondsite.server.jobs import runner
from secondsite.server.jobs.states import ENDED, JobState
from support.databases import Databases, PostgreSQL
from support.job_chaos import OUTSIDE, STEPS, Chaos, calls, effects, jobs_of, seen

pytestmark = pytest.mark.fault

FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
KILLS = 60 if FULL else 6
JOBS = 1000 if FULL else 100
WAIT_SECONDS_MAX = 400.0 if FULL else 100.0
SOURCE = Path(__file__).resolve().parents[2]


class Servers:
    """Worker processes on one database; killed and replaced."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.directory = Path(tempfile.mkdtemp(prefix="ss-chaos-"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self, crash_at: str = "") -> None:
        self.started += 1
        ready = self.directory / f"ready{self.started}"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{SOURCE}/src:{SOURCE}/tests",
            "SECONDSITE_CRASH_AT": crash_at,
        }
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "support.job_chaos", self.url, str(ready)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=(self.directory / f"log{self.started}").open("wb"),
            )
        )
        assert until(ready.exists), "a worker did not come up"

    def kill(self, which: int = 0) -> None:
        process = self.processes.pop(which)
        process.kill()
        process.wait(30)

    def stall(self, which: int, database: Database) -> None:
        """Stop it until its peer has buried it, then let it go on with what is no longer its own."""
        process = self.processes[which]
        never = threading.Event()
        for _ in range(200):
            process.send_signal(signal.SIGSTOP)
            never.wait(0.05)
            if outside_of_writes(database):
                break
            process.send_signal(signal.SIGCONT)
            never.wait(0.007)
        else:
            return  # always inside a write: it would hold up everybody, and nobody could take over
        there = sa.select(sa.func.count()).where(job_workers.c.name.endswith(f":{process.pid}"))

        def buried() -> bool:
            with database.read() as connection:
                return connection.execute(there).scalar_one() == 0

        assert until(buried), "a worker that shows no sign of life keeps its jobs"
        process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace")[-2000:] for path in self.directory.glob("log*"))

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in self.processes] == [0] * len(self.processes), self.log()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(30)
        shutil.rmtree(self.directory, ignore_errors=True)


def outside_of_writes(database: Database) -> bool:
    """Whether no stopped process sits in a transaction: of a file's lock nobody can relieve it."""
    if database.is_sqlite:
        assert database.engine.url.database is not None
        with contextlib.closing(sqlite3.connect(database.engine.url.database, timeout=0.3)) as probe:
            try:
                probe.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True
    idle = (
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
    )
    with database.read() as connection:
        return int(connection.execute(sa.text(idle)).scalar_one()) == 0


def until(condition: object, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    never = threading.Event()
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        never.wait(0.05)
    return False


@pytest.fixture
def servers(database_url: str) -> Iterator[Servers]:
    made = Servers(database_url)
    yield made
    made.end()


@pytest.fixture
def prepared(database: Database) -> Iterator[Database]:
    """A database with the gateways' own tables beside the server's; they go at the end."""
    with database.write() as connection:
        OUTSIDE.create_all(connection)
    yield database
    with database.write() as connection:
        OUTSIDE.drop_all(connection)


def start_jobs(database: Database, count: int) -> dict[str, Chaos]:
    """Every third fails at some step, so that there is undoing at all times."""
    service = jobs_of(database, database)
    given = [Chaos(n, fails_at=(n * 7) % STEPS if n % 3 == 0 else None) for n in range(count)]
    with database.write() as connection:
        made = {service.start(connection, "Chaos", one, "test"): one for one in given}
        connection.execute(seen.insert(), [{"job": job, "epoch": 0} for job in made])
    return made


def live(database: Database) -> int:
    states = [state.value for state in ENDED]
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).where(jobs.c.state.not_in(states))).scalar_one()


def called(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(calls)).scalar_one()


def check(database: Database, made: dict[str, Chaos]) -> None:
    """All right, none missing, none doubled."""
    with database.read() as connection:
        ended = dict(connection.execute(sa.select(jobs.c.id, jobs.c.state)).all())
        left: dict[str, list[int]] = {job: [] for job in made}
        for job, step in connection.execute(
            sa.select(effects.c.job, effects.c.step).order_by(effects.c.step)
        ):
            left[job].append(step)
        assert connection.execute(sa.select(job_locks)).all() == []
        done = connection.execute(sa.select(job_steps.c.job, job_steps.c.number, job_steps.c.state)).all()
        told = connection.execute(sa.select(calls).order_by(calls.c.id)).all()
    for job, given in made.items():
        fails = given.fails_at is not None
        assert ended[job] == (JobState.FAILED if fails else JobState.SUCCEEDED).value, (job, given)
        assert left[job] == ([] if fails else list(range(STEPS))), (job, given)
        states = {row.state for row in done if row.job == job}
        assert states <= ({"Undone", "NotStarted"} if fails else {"Succeeded"}), (job, states)
        mine = [row for row in told if row.job == job]
        epochs = [row.epoch for row in mine]
        assert epochs == sorted(epochs)
        order = [(row.action == "undo", -row.step if row.action == "undo" else row.step) for row in mine]
        assert order == sorted(order), f"{job}: out of order"
        for before, row in itertools.pairwise(mine):
            # a call is only repeated under a newer epoch, after a death or a wait
            assert (before.action, before.step) != (row.action, row.step) or row.epoch > before.epoch


def test_jobs_of_twenty_steps_and_servers_killed(prepared: Database, servers: Servers) -> None:
    made = start_jobs(prepared, JOBS)
    chance = random.Random(4)
    servers.start()
    servers.start()
    for number in range(KILLS):
        # by how much was done, not by the clock: a fast machine is through before a slow one has begun
        due = int(JOBS * STEPS * (number + chance.random()) / (KILLS + 1))
        assert until(lambda due=due: called(prepared) >= due, WAIT_SECONDS_MAX), servers.log()
        which = chance.randrange(2)
        if number % 2:
            servers.stall(which, prepared)
        else:
            servers.kill(which)
            servers.start()
    assert until(lambda: live(prepared) == 0, WAIT_SECONDS_MAX), servers.log()
    servers.stop()
    check(prepared, made)
    with prepared.read() as connection:
        taken = sa.select(sa.func.count()).where(job_log.c.text.like("%taken over%"))
        assert connection.execute(taken).scalar_one() >= KILLS, "nobody held a job when he was killed"


# at its first and at a later pass; `./run chaos` has both at every mark
@pytest.mark.parametrize(
    ("mark", "passes"),
    [
        *((mark, 30) for mark in (runner.BEGUN, runner.CALLED, runner.NOTED)),
        *((mark, 1) for mark in ((runner.BEGUN, runner.CALLED, runner.NOTED) if FULL else (runner.BEGUN,))),
    ],
)
def test_killed_at_a_mark(prepared: Database, servers: Servers, mark: str, passes: int) -> None:
    made = start_jobs(prepared, 4)
    servers.start(f"{mark}:{passes}")
    assert servers.processes[0].wait(60) == -signal.SIGKILL
    servers.processes.clear()
    servers.start()
    assert until(lambda: live(prepared) == 0, 60), servers.log()
    servers.stop()
    check(prepared, made)


def test_every_mark_of_ours_is_tried() -> None:
    assert {mark for mark in MARKS if mark.startswith("jobs.")} == {runner.BEGUN, runner.CALLED, runner.NOTED}


def test_a_stopped_worker_gives_its_jobs_back_at_once(prepared: Database, servers: Servers) -> None:
    made = start_jobs(prepared, 30)
    servers.start()
    assert until(lambda: live(prepared) < 30 or _begun(prepared) > 3)
    servers.stop()
    servers.processes.clear()
    with prepared.read() as connection:
        assert connection.execute(sa.select(jobs.c.id).where(jobs.c.worker.is_not(None))).all() == []
    servers.start()
    assert until(lambda: live(prepared) == 0, 60), servers.log()
    check(prepared, made)


def _begun(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(calls)).scalar_one()


def test_postgresql_stopped_and_started_under_load(databases: Databases) -> None:
    cluster = PostgreSQL()
    servers = None
    try:
        cluster.start()
        database = open_database(cluster.url("postgres"), SystemClock())
        upgrade(database)
        with database.write() as connection:
            OUTSIDE.create_all(connection)
        made = start_jobs(database, JOBS // 2)
        servers = Servers(cluster.url("postgres"))
        servers.start()
        servers.start()
        for how in (signal.SIGQUIT, signal.SIGINT, signal.SIGQUIT):
            before = _begun(database)
            assert until(lambda before=before: _begun(database) > before + 50 or not live(database))
            cluster.stop(how)
            with pytest.raises(DatabaseUnavailable):
                live(database)
            cluster.start()
        assert until(lambda: live(database) == 0, WAIT_SECONDS_MAX), servers.log()
        servers.stop()
        check(database, made)
        database.close()
    finally:
        if servers is not None:
            servers.end()
        cluster.remove()
