"""What happens, in all its parts: kept, counted, and told to people. Opened and closed as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from secondsite.server.alerts.service import Alerts
from secondsite.server.database.engine import Database
from secondsite.server.events.history import Histories
from secondsite.server.events.intake import EventIntake
from secondsite.server.events.items import items_of, look
from secondsite.server.events.service import Events
from secondsite.server.events.watch import Watch
from secondsite.server.identity.service import Identity
from secondsite.server.jobs.definitions import Definition
from secondsite.server.jobs.service import Jobs


class Telling:
    """Of one server. `connect` once there are jobs, then `start`; `close` at the end."""

    def __init__(self, database: Database, identity: Identity) -> None:
        self.events = Events(database)
        self.intake = EventIntake(database, self.events, items_of)
        self.histories = Histories(database)
        self.looked = partial(look, self.histories)  # (a report, the items it is about)
        self.alerts = Alerts(database, identity.authority.master, self.events)
        self._watch = Watch(database, self.events, identity.gateways)

    def definitions(self) -> Sequence[Definition[Any]]:
        """The kinds of jobs that tell."""
        return self.alerts.definitions()

    def connect(self, jobs: Jobs, nudge: Callable[[], None]) -> None:
        """What carries them out; nudge: a job is due."""
        self.alerts.connect(jobs, nudge)

    def start(self) -> None:
        """Begin to watch, to tell, and to write what is taken in memory."""
        self._watch.start()
        self.histories.start()
        self.alerts.start()

    def close(self) -> None:
        """Write what is left."""
        self.alerts.close()
        self.histories.close()
        self._watch.close()

    def tidy(self) -> None:
        """Drop what is too old. Raises what the database raises."""
        self.events.tidy()
        self.intake.tidy()
        self.histories.tidy()
        self.alerts.tidy()
