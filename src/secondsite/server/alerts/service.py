"""Alerts put together: channels, rules, and the thread that tries new events against them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.server.alerts import messages
from secondsite.server.alerts.channels import Channels
from secondsite.server.alerts.delivery import TEST_ALERT, Delivery, SendAlert
from secondsite.server.alerts.dispatch import Dispatcher
from secondsite.server.alerts.groups import Kind
from secondsite.server.alerts.messages import Message
from secondsite.server.alerts.rules import Rules
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import ALERT_CHANNELS, ALERT_MESSAGES
from secondsite.server.events.service import Events
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.jobs.definitions import Definition
from secondsite.server.jobs.service import Jobs
from secondsite.server.rounds import Round, Rounds

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Alerts:
    """Of one server. `connect` once there are jobs, then `start`; `close` at the end."""

    def __init__(self, database: Database, master: MasterKey, events: Events) -> None:
        self._database = database
        self._clock = database.clock
        self._events = events
        self.channels = Channels(database, master)
        self.rules = Rules(database)
        self._delivery = Delivery(database, self.channels, events)
        self._jobs: Jobs | None = None
        self._nudge: Callable[[], None] = lambda: None
        self._rounds = Rounds(Round("alerts", self.look, LOOK_SECONDS, "alerts wait"), self._clock)

    def definitions(self) -> Sequence[Definition[Any]]:
        """The kinds of jobs that deliver."""
        return self._delivery.definitions()

    def connect(self, jobs: Jobs, nudge: Callable[[], None]) -> None:
        """What carries them out; nudge: a job is due."""
        self._jobs, self._nudge = jobs, nudge

    def start(self) -> None:
        """Begin to look at events."""
        self._rounds.start()

    def close(self) -> None:
        """Look no more; what is not told yet is told by the next server."""
        self._rounds.close()

    def look(self) -> int:
        """Try what is new once; how many jobs began. Raises what the database raises."""
        assert self._jobs is not None
        looked = Dispatcher(self._database, self._events, self.rules, self._jobs).look()
        if looked.jobs:
            self._nudge()
        return looked.jobs

    def test(self, connection: Connection, name: str, by: str) -> str:
        """Send a test message, whatever the channel's rate; the job's id. Raises ChannelUnknown."""
        assert self._jobs is not None
        channel = self.channels.get(connection, name)
        title = "[secondsite] Test"
        body = f"This is a test of the alert channel {name}, asked for by {by}. Nothing is wrong."
        made = Message(channel.id, "", Kind.TEST, Severity.INFORMATION, title, body)
        message = messages.add(connection, self._clock, made, begun=True)
        given = SendAlert(message=message, channel=name, title=title)
        job = self._jobs.start(connection, TEST_ALERT, given, by)
        messages.begin(connection, self._clock, message, job)
        return job

    def sent(self, *, before: str | None, limit: int) -> list[sa.Row[tuple[object, ...]]]:
        """Messages, youngest first, with their channels' names. before: the id of the last one seen."""
        joined = ALERT_MESSAGES.join(ALERT_CHANNELS, ALERT_CHANNELS.c.id == ALERT_MESSAGES.c.channel)
        query = sa.select(*ALERT_MESSAGES.c, ALERT_CHANNELS.c.name.label("channel_name")).select_from(joined)
        if before is not None:
            query = query.where(ALERT_MESSAGES.c.id < before)
        with self._database.read() as connection:
            return list(connection.execute(query.order_by(ALERT_MESSAGES.c.id.desc()).limit(limit)))

    def tidy(self) -> None:
        """Forget what was sent long ago."""
        now = self._clock.utc()
        self._database.run(lambda connection: messages.tidy(connection, now))
