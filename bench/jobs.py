"""The job engine: steps a second and the time of a job that is alone, on SQLite and on PostgreSQL.

A step does nothing, so this is the engine's own cost: every step is one durable write (an fsync on both).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import msgspec
import sqlalchemy as sa

from bench.report import Figure, Report
from secondsite.base.clock import SystemClock
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import upgrade
from secondsite.server.database.tables_jobs import jobs as jobs_table
from secondsite.server.database.values import from_moment
from secondsite.server.jobs.definitions import DONE, Definition, Registry, Result, Step
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.states import JobState
from secondsite.server.jobs.worker import Worker, WorkerSettings
from support.databases import PostgreSQL

JOBS = 100
STEPS = 20
ALONE = 30
WAIT_SECONDS_MAX = 300.0


class Given(msgspec.Struct):
    number: int


def nothing(_run: StepRun[Given]) -> Result:
    return DONE


def definition(kind: str, steps: int) -> Definition[Given]:
    return Definition(
        kind=kind,
        version=1,
        input=Given,
        steps=tuple(Step(f"s{number}", do=nothing) for number in range(steps)),
        title=lambda given: f"{kind} {given.number}",
        locks=lambda given: [f"machine:{given.number}"],
    )


def run(report: Report, work: Path) -> None:
    """Both databases, with the settings a server has."""
    measure(report, "sqlite", f"sqlite:///{work}/jobs.db")
    cluster = PostgreSQL()
    try:
        cluster.start()
        measure(report, "postgresql", cluster.url("postgres"))
    finally:
        cluster.remove()


def measure(report: Report, name: str, url: str) -> None:
    database = open_database(url, SystemClock())
    upgrade(database)
    jobs = Jobs(Registry([definition("Many", STEPS), definition("Alone", 1)]), database.clock)
    with database.write() as connection:
        for number in range(JOBS):
            jobs.start(connection, "Many", Given(number), "bench")
    worker = Worker(database, jobs, WorkerSettings())
    began, cpu = time.monotonic(), time.process_time()
    worker.start()
    wait(database, JOBS)
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    report.add(
        Figure(
            f"jobs_steps_per_second_{name}",
            JOBS * STEPS / seconds,
            "steps/s",
            note=f"{JOBS} jobs of {STEPS} steps at once, {used / (JOBS * STEPS) * 1000:.2f} ms CPU a step",
        )
    )
    spans = spread(database)
    report.add(
        Figure(
            f"jobs_slowest_to_median_{name}",
            max(spans) / statistics.median(spans),
            "times",
            note=f"from being asked for to the end, of {JOBS} at once: none starved",
        )
    )
    taken = []
    for number in range(ALONE):
        began = time.monotonic()
        with database.write() as connection:
            jobs.start(connection, "Alone", Given(number), "bench")
        worker.nudge()
        wait(database, JOBS + number + 1)
        taken.append(time.monotonic() - began)
    report.add(
        Figure(
            f"jobs_alone_{name}",
            statistics.median(taken) * 1000,
            "ms",
            note="median from asking for a job of one step to its end",
        )
    )
    assert worker.stop()
    database.close()


def wait(database: Database, ended: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    query = sa.select(sa.func.count()).where(jobs_table.c.state == JobState.SUCCEEDED.value)
    while time.monotonic() < deadline:
        with database.read() as connection:
            if connection.execute(query).scalar_one() == ended:
                return
        time.sleep(0.002 if ended > JOBS else 0.05)
    raise AssertionError("the jobs did not end")


def spread(database: Database) -> list[float]:
    with database.read() as connection:
        rows = connection.execute(sa.select(jobs_table.c.created, jobs_table.c.ended)).all()
    return [(from_moment(str(ended)) - from_moment(created)).total_seconds() for created, ended in rows]
