"""A worker: threads that carry out the jobs that are due, and one that shares them with the other servers.

Any number of workers, in any number of processes, work on one database. A job that waits holds no thread.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from secondsite.base.errors import SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.values import moment
from secondsite.server.jobs.claims import Claims
from secondsite.server.jobs.errors import LeaseLost
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.runner import Runner
from secondsite.server.jobs.service import Jobs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker works."""

    # Steps mostly wait for gateways; each that writes needs one of the database's connections.
    threads: int = 16
    # A worker silent for so long is dead to its peers; its steps may then run twice at once, which they bear.
    lease_seconds: float = 30.0
    beat_seconds: float = 5.0
    # How soon a job that another process started is noticed; one started here is told by `nudge`.
    poll_seconds: float = 0.25
    keep_days: float = 90.0  # ended jobs
    housekeeping_seconds: float = 3600.0


class Worker:
    """Runs from `start` to `stop`."""

    def __init__(self, database: Database, jobs: Jobs, settings: WorkerSettings | None = None) -> None:
        self._database = database
        self._jobs = jobs
        self._settings = settings or WorkerSettings()
        self._clock = database.clock
        self._claims = Claims(database, jobs.registry.kinds, self._settings.lease_seconds)
        self._stopping = threading.Event()  # no further step is begun
        self._abandon = threading.Event()  # the database is no longer waited for
        self._nudged = threading.Event()
        self._running = threading.Semaphore(self._settings.threads)
        self._runner = Runner(jobs, self._stopping)
        self._pool = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="job")
        self._beating = threading.Thread(target=self._beat, name="jobs-beat", daemon=True)
        self._dispatching = threading.Thread(target=self._dispatch, name="jobs", daemon=True)
        self._joined = threading.Event()
        # jobs with their epochs: one is added by the dispatcher, and removed once it is let go
        self._carried: set[tuple[str, int]] = set()
        self._looked = self._tended = float("-inf")

    def start(self) -> None:
        """Begin; a database that is away is waited for."""
        self._dispatching.start()
        self._beating.start()

    def nudge(self) -> None:
        """A job may be due: look now."""
        self._nudged.set()

    def stop(self, seconds: float = 30.0) -> bool:
        """Begin no further step, wait for those that run. False: some went on; a peer repeats them."""
        if self._abandon.is_set():
            return True
        self._stopping.set()
        self._nudged.set()
        deadline = self._clock.monotonic() + seconds
        ended = 0
        for _ in range(self._settings.threads):
            ended += self._running.acquire(timeout=max(0.0, deadline - self._clock.monotonic()))
        self._abandon.set()
        for thread in (self._dispatching, self._beating):
            if thread.ident is not None:  # a server that may not work never started them
                thread.join(seconds)
        self._pool.shutdown(wait=False)
        if self._joined.is_set():
            try:
                self._claims.leave()
            except SecondsiteError as error:
                log.warning("the jobs of this server are freed only after their lease: %s", error)
        return ended == self._settings.threads

    def _beat(self) -> None:
        while not self._clock.wait(self._abandon, self._settings.beat_seconds):
            if not self._joined.is_set():
                continue
            try:
                if not self._claims.beat():
                    log.warning("this server was silent for too long, its jobs were taken over")
                    self._joined.clear()
                    self._nudged.set()
            except SecondsiteError as error:
                log.warning("no sign of life could be given: %s", error)
            except Exception:  # root of the thread: without beats every job would be lost, so it goes on
                log.exception("no sign of life could be given")

    def _dispatch(self) -> None:
        pause = self._settings.poll_seconds
        while not self._stopping.is_set():
            taken = False
            try:
                if not self._joined.is_set():
                    self._claims.join()
                    self._joined.set()
                taken = self._take()
                self._tend()
            except SecondsiteError as error:
                log.warning("jobs cannot be looked at: %s", error)
            except Exception:  # root of the thread: no defect in one look may end all later ones
                log.exception("jobs cannot be looked at")
            if not taken:
                self._clock.wait(self._nudged, pause)
                self._nudged.clear()

    def _take(self) -> bool:
        """Take what there are threads for; whether there was anything."""
        free = 0
        while free < self._settings.threads and self._running.acquire(blocking=False):
            free += 1
        holds: list[Hold] = []
        try:
            holds = self._claims.take(free, self._abandon)
        finally:
            for _ in range(free - len(holds)):
                self._running.release()
        for hold in holds:
            self._carried.add((hold.job, hold.epoch))
            self._pool.submit(self._carry_out, hold)
        return bool(holds)

    def _carry_out(self, hold: Hold) -> None:
        try:
            self._runner.run(hold)
        except LeaseLost as error:
            log.warning("%s", error)
        except Exception as error:  # root of a job's thread: the job is tried again, perhaps by a peer
            log.exception("job %s could not be carried on", hold.job)
            self._give_back(hold, f"a server could not carry it on: {type(error).__name__}: {error}"[:300])
        finally:
            self._carried.discard((hold.job, hold.epoch))
            self._running.release()
            self._nudged.set()

    def _give_back(self, hold: Hold, why: str) -> None:
        try:
            self._claims.give_back(hold, why)
        except SecondsiteError as error:
            log.warning("job %s is freed as soon as the database answers: %s", hold.job, error)

    def _tend(self) -> None:
        """What is to be done now and then: dead peers, jobs nobody knows, old jobs."""
        now = self._clock.monotonic()
        if now - self._looked >= self._settings.beat_seconds:
            self._looked = now
            # what is taken is taken by this very thread: nothing comes in between that is not in `_carried`
            if self._claims.take_over() + self._claims.let_go(frozenset(self._carried)):
                self._nudged.set()
            self._claims.name_strangers()
        if now - self._tended < self._settings.housekeeping_seconds:
            return
        self._tended = now
        before = moment(self._clock.utc() - timedelta(days=self._settings.keep_days))
        while not self._stopping.is_set():
            with self._database.write() as connection:
                if not self._jobs.delete_ended(connection, before):
                    return
