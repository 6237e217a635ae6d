"""Tries new events against the rules, once each, whichever server does it: one transaction a look.

What came to be told is in the queue when the cursor has moved on, and a job when its channel's rate lets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.server.alerts import groups, messages
from secondsite.server.alerts.delivery import OWN_CODES, SEND_ALERT, SendAlert
from secondsite.server.alerts.groups import Group, Tell
from secondsite.server.alerts.rules import Rule, Rules
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import (
    ALERT_CHANNELS,
    ALERT_CURSOR,
    ALERT_GROUPS,
    ALERT_MESSAGES,
    EVENTS_HEAD,
)
from secondsite.server.database.tables_identity import vaults
from secondsite.server.database.values import from_moment, moment, to_json
from secondsite.server.events.service import Events, StoredEvent
from secondsite.server.jobs.service import Jobs

EVENTS_A_LOOK = 500
# A rule with more subjects than that counts those that come next by their code alone.
SUBJECTS_MAX = 2000
ACTOR = "server"


class Subject(msgspec.Struct, frozen=True, array_like=True):
    """What is counted together."""

    code: str
    gateway: str
    of: str  # item, else machine


@dataclass(frozen=True)
class Looked:
    """What a look did."""

    events: int
    jobs: int


class Dispatcher:
    """Of one database."""

    def __init__(self, database: Database, events: Events, rules: Rules, jobs: Jobs) -> None:
        self._database = database
        self._clock = database.clock
        self._events = events
        self._rules = rules
        self._jobs = jobs

    def look(self) -> Looked:
        """Take on what is new and due. Raises what the database raises."""
        with self._database.read() as connection:
            if not self._anything(connection):
                return Looked(0, 0)
        return self._database.run(self._take)

    def _anything(self, connection: Connection) -> bool:
        newest = connection.execute(sa.select(EVENTS_HEAD.c.number)).scalar_one_or_none() or 0
        cursor = connection.execute(sa.select(ALERT_CURSOR.c.number)).scalar_one_or_none()
        if cursor is None or cursor != newest:
            return True
        due = ALERT_GROUPS.c.quiet_until <= moment(self._clock.utc())
        if connection.execute(sa.select(ALERT_GROUPS.c.rule).where(due).limit(1)).first() is not None:
            return True
        # channel by channel, by their index: there may be a month of messages
        of_channel = (ALERT_MESSAGES.c.channel == ALERT_CHANNELS.c.id) & ALERT_MESSAGES.c.begun_at.is_(None)
        waits = sa.select(ALERT_CHANNELS.c.id).where(sa.exists().where(of_channel)).limit(1)
        return connection.execute(waits).first() is not None

    def _take(self, connection: Connection) -> Looked:
        after = self._cursor(connection)
        found = self._events.read_after(connection, after, limit=EVENTS_A_LOOK)
        rules = [rule for rule in self._rules.all(connection) if rule.enabled]
        for event in found:
            if not event.code.startswith(OWN_CODES):
                for rule in rules:
                    self._try(connection, rule, event)
        self._end_quiet_times(connection, {rule.id: rule for rule in rules})
        jobs = self._begin_due(connection)
        if found:
            connection.execute(sa.update(ALERT_CURSOR).values(number=found[-1].number))
        return Looked(len(found), jobs)

    def _cursor(self, connection: Connection) -> int:
        """Its row is ours until the transaction ends. The first look begins with what comes from now on."""
        make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        newest = connection.execute(sa.select(EVENTS_HEAD.c.number)).scalar_one_or_none() or 0
        connection.execute(make(ALERT_CURSOR).values(id=1, number=newest).on_conflict_do_nothing())
        found = int(connection.execute(sa.select(ALERT_CURSOR.c.number).with_for_update()).scalar_one())
        if found > newest:  # the events were put back to an older state
            connection.execute(sa.update(ALERT_CURSOR).values(number=newest))
        return min(found, newest)

    def _try(self, connection: Connection, rule: Rule, event: StoredEvent) -> None:
        now = self._clock.utc()
        ended = [*groups.ENDS.get(event.code, ()), *([event.ends] if event.ends else [])]
        for code in ended:
            subject = _subject(event, code)
            group = _group(connection, rule, subject)
            if group is not None:
                changed, tell = groups.over(group, quiet=rule.quiet, now=now)
                _keep(connection, rule, subject, changed)
                self._tell(connection, rule, event, tell, code=code)
        if not rule.takes(event):
            return
        subject = _subject(event, event.code)
        group = _group(connection, rule, subject)
        if group is None and _crowded(connection, rule):
            subject = Subject(event.code, "", "")
            group = _group(connection, rule, subject)
        lasts = event.lasts or event.code in groups.HAVE_AN_END
        changed, tell = groups.happened(group, event.number, lasts=lasts, quiet=rule.quiet, now=now)
        _keep(connection, rule, subject, changed)
        self._tell(connection, rule, event, tell)

    def _end_quiet_times(self, connection: Connection, rules: Mapping[str, Rule]) -> None:
        now = self._clock.utc()
        due = sa.select(ALERT_GROUPS).where(ALERT_GROUPS.c.quiet_until <= moment(now)).limit(EVENTS_A_LOOK)
        for row in connection.execute(due).all():
            rule, subject = rules.get(row.rule), msgspec.json.decode(row.subject, type=Subject)
            if rule is None:  # it rests
                _drop(connection, row.rule, row.subject)
                continue
            group, tell = groups.quiet_ended(_group_of(row), quiet=rule.quiet, now=now)
            if group is None:
                _drop(connection, row.rule, row.subject)
            else:
                _keep(connection, rule, subject, group)
            last = self._events.read_after(connection, row.last - 1, limit=1) if tell is not None else []
            if last:
                self._tell(connection, rule, last[0], tell)

    def _tell(
        self, connection: Connection, rule: Rule, event: StoredEvent, tell: Tell | None, *, code: str = ""
    ) -> None:
        """Put a message into the queue. code: of what is over with the event."""
        if tell is None:
            return
        query = sa.select(vaults.c.friendly_name).where(vaults.c.id == event.vault)
        vault = connection.execute(query).scalar_one_or_none()
        parts = [event.gateway, vault and f"vault {vault}", event.machine and f"machine {event.machine}"]
        where = ", ".join(part for part in parts if part)
        about = messages.About(code or event.code, where, rule.quiet)
        made = messages.compose(event, tell, about, rule=rule.name, channel=rule.channel_id)
        messages.add(connection, self._clock, made)

    def _begin_due(self, connection: Connection) -> int:
        due = messages.take_due(connection, self._clock)
        for one in due:
            given = SendAlert(message=one.id, channel=one.channel_name, title=one.title)
            job = self._jobs.start(connection, SEND_ALERT, given, ACTOR)
            messages.begin(connection, self._clock, one.id, job)
        return len(due)


def _subject(event: StoredEvent, code: str) -> Subject:
    return Subject(code, event.gateway, event.item or event.machine)


def _group(connection: Connection, rule: Rule, subject: Subject) -> Group | None:
    mine = (ALERT_GROUPS.c.rule == rule.id, ALERT_GROUPS.c.subject == to_json(subject))
    row = connection.execute(sa.select(ALERT_GROUPS).where(*mine)).one_or_none()
    return None if row is None else _group_of(row)


def _group_of(row: sa.Row[tuple[object, ...]]) -> Group:
    return Group(
        wrong=bool(row.wrong),
        lasts=bool(row.lasts),
        since=from_moment(row.since),
        quiet_until=from_moment(row.quiet_until) if row.quiet_until else None,
        more=row.more,
        over_told=bool(row.over_told),
        last=row.last,
    )


def _keep(connection: Connection, rule: Rule, subject: Subject, group: Group) -> None:
    key = {"rule": rule.id, "subject": to_json(subject)}
    values = {
        "wrong": int(group.wrong),
        "lasts": int(group.lasts),
        "since": moment(group.since),
        "quiet_until": moment(group.quiet_until) if group.quiet_until else None,
        "more": group.more,
        "over_told": int(group.over_told),
        "last": group.last,
    }
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    upsert = make(ALERT_GROUPS).values(**key, **values)
    connection.execute(upsert.on_conflict_do_update(index_elements=list(key), set_=values))


def _drop(connection: Connection, rule: str, subject: str) -> None:
    mine = (ALERT_GROUPS.c.rule == rule, ALERT_GROUPS.c.subject == subject)
    connection.execute(sa.delete(ALERT_GROUPS).where(*mine))


def _crowded(connection: Connection, rule: Rule) -> bool:
    count = sa.select(sa.func.count()).select_from(ALERT_GROUPS).where(ALERT_GROUPS.c.rule == rule.id)
    return int(connection.execute(count).scalar_one()) >= SUBJECTS_MAX
