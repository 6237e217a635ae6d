"""Jobs that deliver messages: tried again for an hour, told as an event when they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.server.alerts.channels import Channels
from secondsite.server.alerts.errors import DeliveryFailed
from secondsite.server.alerts.groups import Kind
from secondsite.server.alerts.sending import send
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import ALERT_CHANNELS, ALERT_MESSAGES
from secondsite.server.events.service import Events
from secondsite.server.jobs.definitions import DONE, Definition, Result, Step
from secondsite.server.jobs.run import StepRun

SEND_ALERT = "alert.send"
TEST_ALERT = "alert.test"
# No rule takes events that begin so: an alert that fails must not make another one.
OWN_CODES = "alert."
FAILED = "alert.failed"
# With a minute between tries in the end: an hour.
TRIES = 62


class SendAlert(msgspec.Struct, frozen=True, kw_only=True):
    """Which message; its title and its channel's name for people."""

    message: str
    channel: str
    title: str


class Delivery:
    """What the jobs do."""

    def __init__(self, database: Database, channels: Channels, events: Events) -> None:
        self._database = database
        self._channels = channels
        self._events = events

    def definitions(self) -> Sequence[Definition[Any]]:
        """The kinds of jobs."""
        return (self._definition(SEND_ALERT, TRIES), self._definition(TEST_ALERT, 1))

    def _definition(self, kind: str, tries: int) -> Definition[SendAlert]:
        return Definition(
            kind=kind,
            version=1,
            input=SendAlert,
            steps=(Step("send", self._send, undo=self._give_up, tries=tries),),
            title=lambda given: f"Alert to {given.channel}: {given.title}",
        )

    def _send(self, run: StepRun[SendAlert]) -> Result:
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(ALERT_MESSAGES).where(ALERT_MESSAGES.c.id == run.input.message)
            ).one_or_none()
            if row is None or row.sent_at is not None:
                run_log = "the channel was removed" if row is None else "it was delivered already"
                address = None
            else:
                address = self._channels.address(connection, row.channel)
        if row is None or address is None:
            run.log(run_log)
            return DONE
        try:
            send(
                run.input.channel,
                address,
                title=row.title,
                body=row.body,
                severity=Severity(row.severity),
                over=row.kind == Kind.OVER.value,
            )
        except DeliveryFailed as error:
            why = str(error.fields["why"])
            run.write(lambda connection: self._note(connection, row.channel, failed=why))
            raise
        run.write(lambda connection: self._sent(connection, row.id, row.channel))
        return DONE

    def _give_up(self, run: StepRun[SendAlert]) -> Result:
        """It could not be delivered, or a person cancelled it: said once, as an event."""

        def work(connection: Connection) -> None:
            query = sa.select(ALERT_CHANNELS.c.problem).where(ALERT_CHANNELS.c.name == run.input.channel)
            why = connection.execute(query).scalar_one_or_none() or "the channel was removed"
            text = f"The alert {run.input.title!r} did not reach {run.input.channel}: {why}."
            self._events.emit(connection, "", Severity.WARNING, FAILED, text)

        run.write(work)
        return DONE

    def _sent(self, connection: Connection, message: str, channel: str) -> None:
        change = sa.update(ALERT_MESSAGES).where(ALERT_MESSAGES.c.id == message)
        connection.execute(change.values(sent_at=self._database.now()))
        self._note(connection, channel)

    def _note(self, connection: Connection, channel: str, *, failed: str = "") -> None:
        now = self._database.now()
        values: dict[str, object] = {"failed_at": now, "problem": failed} if failed else {"sent_at": now}
        connection.execute(sa.update(ALERT_CHANNELS).where(ALERT_CHANNELS.c.id == channel).values(values))
