"""The planned switch-over at the active server: jobs stop, the last state goes out, nothing is lost.

    Stopping     noted: requests that change something are refused, no further step of a job is begun
    Copying      every step has ended; the last copy of the state is on its way into the stores
    HandedOver   a store has it: a standby may take over, and goes on with the jobs

It goes on where it was after a restart. `take_back` ends it, as long as no standby has taken over.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_jobs import jobs
from secondsite.server.events.service import Events
from secondsite.server.survival.copies import Copies
from secondsite.server.survival.incarnation import read_incarnation
from secondsite.server.survival.life import Life

log = logging.getLogger(__name__)

NOTED = mark("handover.noted")
STOPPED = mark("handover.stopped")
COPIED = mark("handover.copied")

LOOK_SECONDS = 0.2
RETRY_SECONDS = 5.0
Note = Callable[[Connection, str, str], None]


class HandOverState(enum.StrEnum):
    """Where it stands."""

    NONE = "None"
    STOPPING = "Stopping"
    COPYING = "Copying"
    HANDED_OVER = "HandedOver"


class HandOverStatus(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """For people. waits_for: jobs whose step under way has not ended."""

    state: HandOverState
    since: str | None = None
    waits_for: tuple[str, ...] = ()
    copy: str = ""
    stores: tuple[str, ...] = ()
    problem: str = ""


class HandOver:
    """Of one server. `start` goes on with one that was noted; `close` at the end."""

    def __init__(self, database: Database, life: Life, copies: Copies, events: Events, clock: Clock) -> None:
        self._database = database
        self._life = life
        self._copies = copies
        self._events = events
        self._clock = clock
        self._problem = ""
        self._change = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Go on with what was noted before a restart."""
        if self._life.handed_over and not self._life.superseded:
            self._begin_thread()

    def close(self) -> None:
        """Wait for the thread."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def begin(self, note: Note) -> HandOverStatus:
        """Hand over; again is fine. note: writes the audit log. Raises ServerSuperseded."""
        self._life.check()
        if not self._life.handed_over:
            at = self._database.now()

            def work(connection: Connection) -> None:
                self._life.hand_over(connection, at)
                note(connection, "", "server")
                text = "the server is handed over: its jobs stop, its last state goes to the stores"
                self._events.emit(connection, "", Severity.WARNING, "server.handed-over", text, lasts=True)

            self._database.run(work)
            crash_point(NOTED)
            self._life.handed(at)
        self._begin_thread()
        return self.status()

    def take_back(self, note: Note) -> HandOverStatus:
        """Go on here. Raises ServerSuperseded when a standby has taken over."""
        self._life.check()
        if self._life.handed_over:

            def work(connection: Connection) -> None:
                self._life.hand_over(connection, None)
                note(connection, "", "server")
                text = "the server goes on: the hand-over was taken back"
                self._events.emit(
                    connection, "", Severity.INFORMATION, "server.taken-back", text, ends="server.handed-over"
                )

            self._database.run(work)
            self._life.handed(None)
        return self.status()

    def status(self) -> HandOverStatus:
        """Where it stands."""
        with self._database.read() as connection:
            since = read_incarnation(connection).handed_over_at
            busy = self._busy(connection)
        if since is None:
            return HandOverStatus(state=HandOverState.NONE)
        newest = self._copies.newest()
        if newest is not None and newest.final and newest.kept_at and newest.made_at > since:
            stores = tuple(place.store for place in newest.places if place.store)
            return HandOverStatus(
                state=HandOverState.HANDED_OVER, since=since, copy=newest.name, stores=stores
            )
        state = HandOverState.STOPPING if busy else HandOverState.COPYING
        return HandOverStatus(state=state, since=since, waits_for=tuple(busy), problem=self._problem)

    def _begin_thread(self) -> None:
        with self._change:
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = threading.Thread(target=self._root, name="hand-over", daemon=True)
            self._thread.start()

    def _root(self) -> None:
        pause = 0.0
        while not self._clock.wait(self._stop, pause):
            try:
                if self._is_over():
                    return
                pause = self._step()
                self._problem = ""
            except SecondsiteError as error:
                self._problem, pause = str(error), RETRY_SECONDS
                log.warning("the last state is not out yet: %s", error)
            except Exception as error:  # a thread's root: told, and tried again
                self._problem, pause = f"{type(error).__name__}: {error}", RETRY_SECONDS
                log.exception("handing over failed")

    def _is_over(self) -> bool:
        """Also where it was taken back: whoever begins again from now on starts another thread."""
        with self._change:
            if self._goes_on():
                return False
            self._thread = None
            return True

    def _goes_on(self) -> bool:
        return self._life.handed_over and self.status().state is not HandOverState.HANDED_OVER

    def _step(self) -> float:
        with self._database.read() as connection:
            if self._busy(connection):
                return LOOK_SECONDS
        crash_point(STOPPED)
        self._copies.make(final=True)
        crash_point(COPIED)
        return 0.0

    def _busy(self, connection: Connection) -> list[str]:
        """Jobs that a worker has, of any server of this database."""
        return list(connection.execute(sa.select(jobs.c.id).where(jobs.c.worker.is_not(None))).scalars())
