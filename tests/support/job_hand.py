"""A worker turned by hand: takes what is due and gives it its turn, until nothing is due at this moment."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database
from secondsite.server.jobs import records
from secondsite.server.jobs.claims import Claims
from secondsite.server.jobs.definitions import Definition, Registry
from secondsite.server.jobs.runner import Runner
from secondsite.server.jobs.service import Jobs

TURNS_MAX = 1000


class HandWorker:
    """One worker in the test's own thread, on a clock moved by hand."""

    def __init__(
        self, database: Database, definitions: Sequence[Definition[Any]], *, turn_seconds: float = 1.0
    ) -> None:
        assert isinstance(database.clock, FakeClock)
        self.database = database
        self.clock = database.clock
        self.jobs = Jobs(Registry(definitions), database.clock)
        self.claims = Claims(database, self.jobs.registry.kinds, 30.0)
        self.runner = Runner(self.jobs, threading.Event(), turn_seconds)
        self.stop = threading.Event()
        self.claims.join()

    def start(self, kind: str, given: msgspec.Struct, actor: str = "ann") -> str:
        with self.database.write() as connection:
            return self.jobs.start(connection, kind, given, actor)

    def turn(self, limit: int = 1) -> int:
        """Take at most so many jobs and give each its turn."""
        holds = self.claims.take(limit, self.stop)
        for hold in holds:
            self.runner.run(hold)
        return len(holds)

    def succeeded_by_a_peer(self) -> None:
        """This worker is gone: a lease's time passes, and another one takes over."""
        peer = Claims(self.database, self.jobs.registry.kinds, 30.0)
        peer.join()
        assert peer.take_over() == 0
        self.clock.advance(31.0)
        assert peer.take_over() == 1
        self.claims = peer

    def idle(self, taking: int = 1) -> None:
        """Turn until nothing is due."""
        for _ in range(TURNS_MAX):
            if not self.turn(taking):
                return
        raise AssertionError("there is always something due")

    def get(self, job: str) -> records.Job:
        with self.database.read() as connection:
            return records.get(connection, job)

    def steps(self, job: str) -> list[records.StepRecord]:
        with self.database.read() as connection:
            return records.steps(connection, job)

    def log(self, job: str) -> list[str]:
        with self.database.read() as connection:
            return [line.text for line in records.log(connection, job)]
