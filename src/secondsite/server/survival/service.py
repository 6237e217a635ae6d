"""All of survival, put together for one server: opened once, given to the API's routes."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.model.events import Severity
from secondsite.server.calls.service import Calls
from secondsite.server.config import ServerConfig
from secondsite.server.database.engine import Database
from secondsite.server.events.service import Events
from secondsite.server.identity.service import Identity
from secondsite.server.jobs.definitions import Definition
from secondsite.server.jobs.errors import LockHeld
from secondsite.server.jobs.service import Jobs
from secondsite.server.operations.backup import BackupServer, Target, backup_server
from secondsite.server.people.roles import THE_SERVER
from secondsite.server.rounds import Round, Rounds
from secondsite.server.standby.files import StandbyFiles
from secondsite.server.survival.backups import BACKUP_JOB, Backups
from secondsite.server.survival.copies import LOOK_SECONDS as COPIES_SECONDS
from secondsite.server.survival.copies import Copies
from secondsite.server.survival.handover import HandOver
from secondsite.server.survival.life import Life
from secondsite.server.survival.places import Places
from secondsite.server.survival.relearn import Relearning
from secondsite.server.survival.rotation import Rotation
from secondsite.server.survival.standbys import Standbys

# Another server of this database may have been told that a later life is there, or to hand over.
LOOK_SECONDS = 2.0
# The server before comes back at any time: it is told within seconds that another is active.
FORMER_SECONDS = 10.0


class Survival:
    """Of one server."""

    def __init__(self, database: Database, identity: Identity, config: ServerConfig, clock: Clock) -> None:
        self._database = database
        self._identity = identity
        self._settings = config.backup
        self.life = Life(database, identity.authority, clock)
        identity.relearning = Relearning(database, identity.authority, self.life.state, clock)
        self.rotation = Rotation(database, identity.authority, config.name, clock)
        identity.rotation = self.rotation
        self.backups = Backups(
            database,
            identity.authority.master,
            clock,
            state_dir=config.state_dir,
            every=dt.timedelta(minutes=config.backup.every_minutes),
        )

        self._clock = clock
        self._stop = threading.Event()
        self.standbys = Standbys(
            database,
            self.life,
            identity.authority.master,
            clock,
            name=config.name,
            url=config.reached_at(),
            id_=StandbyFiles(config.state_dir).id(),
            authority_pem=lambda: identity.authority.bundle,
        )
        self._state_dir = config.state_dir
        self.copies: Copies | None = None
        self.handover: HandOver | None = None
        self._rounds: list[Rounds] = []

    def connect(self, calls: Calls, events: Events) -> None:
        """Who keeps copies, and where it is told what happens to this server."""
        places = Places(
            self._database,
            self._identity.gateways,
            calls,
            self.life,
            self._settings,
            self._clock,
            self._stop,
        )
        copies = Copies(places, self.standbys, self._identity.authority.master, self._state_dir)
        self.copies = copies
        self.standbys.events = events
        self.standbys.current, self.standbys.made_at = copies.current, copies.made_at
        self.life.tell = partial(_superseded, events)
        self.handover = HandOver(self._database, self.life, copies, events, self._clock)

    def start(self) -> None:
        """Follow what other servers of this database, standbys and the former server say; make copies."""
        assert self.copies is not None
        assert self.handover is not None
        waits = "standby servers are not looked after"
        for name, work, seconds in (
            ("standbys", self._look, LOOK_SECONDS),
            ("former", self.standbys.tell_former, FORMER_SECONDS),
            ("copies", self.copies.look, COPIES_SECONDS),
        ):
            self._rounds.append(Rounds(Round(name, work, seconds, waits, at_once=True), self._clock))
        for rounds in self._rounds:
            rounds.start()
        self.handover.start()

    def close(self) -> None:
        """End what runs."""
        self._stop.set()
        for rounds in self._rounds:
            rounds.close()
        if self.handover is not None:
            self.handover.close()

    def _look(self) -> None:
        self.life.look()
        self.standbys.look()

    def operations(self, calls: Calls) -> Sequence[Definition[Any]]:
        """The kinds of jobs there are for it."""
        settings = self._settings
        target = Target(
            server=self.life.state.server,
            keep=settings.keep,
            gateways=settings.gateways,
            url=settings.url,
            credentials=settings.credentials,
        )
        return [backup_server(self.backups, self._identity.gateways, calls, target)]

    def keep_house(self, jobs: Jobs) -> bool:
        """Begin a backup where one is due, drop what is left of cut ones; True when a job was begun."""
        self.life.look()
        if self.life.superseded or self.life.handed_over:
            return False
        self.backups.drop_strays()
        self._identity.authority.look()
        self.rotation.advance()

        def work(connection: Connection) -> bool:
            if not self.backups.due(connection, own_place=self._settings.url is not None):
                return False
            with contextlib.suppress(LockHeld):
                jobs.start(connection, BACKUP_JOB, BackupServer(), THE_SERVER.name)
                return True
            return False

        return self._database.run(work)

    def warnings(self) -> list[str]:
        """What a person is to be told of it."""
        found = [self.backups.warning(own_place=self._settings.url is not None)]
        found += [f"the standby server {one.name} is late" for one in self.standbys.known() if one.late_since]
        return [one for one in found if one]


def _superseded(events: Events, connection: Connection, number: int, url: str) -> None:
    where = f", at {url}" if url else ""
    text = (
        f"a later life of this server is active, incarnation {number}{where}: this one does nothing any more"
    )
    events.emit(connection, "", Severity.CRITICAL, "server.superseded", text, lasts=True)
