"""Messages: written with what they tell of, sent by jobs, put together where a channel's rate holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.model.events import Severity
from secondsite.server.alerts.groups import Kind, Tell
from secondsite.server.database.tables_events import ALERT_CHANNELS, ALERT_MESSAGES
from secondsite.server.database.values import fresh_id, moment
from secondsite.server.events.service import StoredEvent

RATE_WINDOW = timedelta(hours=1)
KEPT = timedelta(days=30)
LISTED_MAX = 20
_SEVERITIES = list(Severity)


@dataclass(frozen=True)
class Message:
    """What goes out. rule: its name."""

    channel: str  # its id
    rule: str
    kind: Kind
    severity: Severity
    title: str
    body: str
    event: int = 0  # the number of what it tells; 0: of none, or many


@dataclass(frozen=True)
class About:
    """What a message is about. code: the event's, or of what is over with it; where: for people."""

    code: str
    where: str
    quiet: timedelta  # what was counted over


def compose(event: StoredEvent, tell: Tell, about: About, *, rule: str, channel: str) -> Message:
    """The message about an event. channel: its id."""
    subject = about.code + (f" ({about.where})" if about.where else "")
    minutes = max(1, round(about.quiet.total_seconds() / 60))
    match tell.kind:
        case Kind.OVER:
            title = f"Over: {subject}"
            first = (
                f"It is over. It happened {tell.more} more times meanwhile." if tell.more else "It is over."
            )
        case Kind.MORE:
            title = f"{tell.more} more: {subject}"
            state = "It is not over." if tell.wrong else "It is over."
            first = f"{tell.more} more in the last {minutes} minutes. {state}"
        case _:
            title, first = f"{event.severity.value}: {subject}", ""
    lines = [
        *([first] if first else []),
        event.text,
        f"{event.told_at or event.at:%Y-%m-%d %H:%M:%S} UTC, event {event.number}, by the rule {rule}",
    ]
    title = f"[secondsite] {title}"[:200]
    return Message(channel, rule, tell.kind, event.severity, title, "\n\n".join(lines), event.number)


def put_together(waiting: Sequence[sa.Row[tuple[object, ...]]], channel: str) -> Message:
    """One message in place of many."""
    titles = [row.title.removeprefix("[secondsite] ") for row in waiting]
    shown = [f"- {title}" for title in titles[:LISTED_MAX]]
    if len(titles) > LISTED_MAX:
        shown.append(f"and {len(titles) - LISTED_MAX} more")
    severity = max((Severity(row.severity) for row in waiting), key=_SEVERITIES.index)
    body = "More came than this channel takes in an hour. See `secondsite event list`.\n\n" + "\n".join(shown)
    title = f"[secondsite] {len(titles)} alerts, the worst is {severity.value}"
    return Message(channel, "", Kind.TOGETHER, severity, title, body)


def add(connection: Connection, clock: Clock, message: Message, *, begun: bool = False, job: str = "") -> str:
    """Put one in the queue, or note it as begun; its id."""
    identity, now = fresh_id(clock), moment(clock.utc())
    connection.execute(
        sa.insert(ALERT_MESSAGES).values(
            id=identity,
            channel=message.channel,
            rule=message.rule,
            kind=message.kind.value,
            severity=message.severity.value,
            title=message.title,
            body=message.body,
            made_at=now,
            event=message.event,
            begun_at=now if begun else None,
            job=job,
        )
    )
    return identity


@dataclass(frozen=True)
class Due:
    """A message that may go now."""

    id: str
    channel_name: str
    title: str


def take_due(connection: Connection, clock: Clock) -> list[Due]:
    """What may go by each channel's rate, for `begin`; the rest is put together in the last that may."""
    due: list[Due] = []
    waits = ALERT_MESSAGES.c.begun_at.is_(None)
    oldest = (ALERT_MESSAGES.c.made_at, ALERT_MESSAGES.c.event, ALERT_MESSAGES.c.id)
    joined = ALERT_MESSAGES.join(ALERT_CHANNELS, ALERT_CHANNELS.c.id == ALERT_MESSAGES.c.channel)
    channels = sa.select(ALERT_CHANNELS.c.id, ALERT_CHANNELS.c.name, ALERT_CHANNELS.c.per_hour).select_from(
        joined
    )
    for channel in connection.execute(channels.where(waits).distinct()).all():
        mine = ALERT_MESSAGES.c.channel == channel.id
        query = sa.select(ALERT_MESSAGES).where(mine, waits).order_by(*oldest)
        waiting = list(connection.execute(query))
        room = channel.per_hour - _begun_lately(connection, clock, channel.id)
        if room <= 0:
            continue
        ids = [row.id for row in waiting]
        if len(waiting) > room:
            together = put_together(waiting[room - 1 :], channel.id)
            connection.execute(sa.delete(ALERT_MESSAGES).where(ALERT_MESSAGES.c.id.in_(ids[room - 1 :])))
            waiting = waiting[: room - 1]
            made = add(connection, clock, together)
            due.append(Due(made, channel.name, together.title))
        due += [Due(row.id, channel.name, row.title) for row in waiting]
    return due


def begin(connection: Connection, clock: Clock, message: str, job: str) -> None:
    """A job has it."""
    change = sa.update(ALERT_MESSAGES).where(ALERT_MESSAGES.c.id == message)
    connection.execute(change.values(begun_at=moment(clock.utc()), job=job))


def tidy(connection: Connection, now: datetime) -> None:
    """Forget what was sent long ago."""
    old = ALERT_MESSAGES.c.made_at < moment(now - KEPT)
    connection.execute(sa.delete(ALERT_MESSAGES).where(old))


def _begun_lately(connection: Connection, clock: Clock, channel: str) -> int:
    edge = moment(clock.utc() - RATE_WINDOW)
    where = (
        ALERT_MESSAGES.c.channel == channel,
        ALERT_MESSAGES.c.begun_at > edge,
        ALERT_MESSAGES.c.kind != Kind.TEST.value,
    )
    return int(
        connection.execute(sa.select(sa.func.count()).select_from(ALERT_MESSAGES).where(*where)).scalar_one()
    )
