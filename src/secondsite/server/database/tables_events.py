"""Tables of events, of what they say over time, and of alerts."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # in the order of commits
    sa.Column("at", sa.String, nullable=False),  # the server's clock, when it was written
    sa.Column("told_at", sa.String, nullable=False),  # the gateway's clock, when it happened; empty: `at`
    sa.Column("severity", sa.String, nullable=False),  # a `model.events.Severity`
    sa.Column("code", sa.String, nullable=False),
    sa.Column("text", sa.String, nullable=False),
    sa.Column("vault", sa.String, nullable=False),  # its id; empty: of the server itself
    sa.Column("gateway", sa.String, nullable=False),  # its name; these texts are empty where there is none
    sa.Column("item", sa.String, nullable=False),
    sa.Column("machine", sa.String, nullable=False),
    sa.Column("lasts", sa.Integer, nullable=False),  # 1: wrong until an event `ends` its code
    sa.Column("ends", sa.String, nullable=False),
)
sa.Index("ix_events_at", EVENTS.c.at)
sa.Index("ix_events_item", EVENTS.c.item, EVENTS.c.number)

# one row: who adds events has it locked, so that their numbers follow the order of commits
EVENTS_HEAD = sa.Table(
    "events_head",
    METADATA,
    sa.Column(
        "id", sa.Integer, sa.CheckConstraint("id = 1", name="one"), primary_key=True, autoincrement=False
    ),
    sa.Column("number", sa.BigInteger, nullable=False),  # of the newest event
    sa.Column("dropped", sa.BigInteger, nullable=False),  # how many the retention took
    sa.Column("alive_at", sa.String, nullable=False),  # when a server last was there; empty: never
)

# how far the server has each sequence of events of each gateway
EVENT_LOGS = sa.Table(
    "event_logs",
    METADATA,
    sa.Column("gateway", sa.String, primary_key=True),  # its id
    sa.Column("log", sa.String, primary_key=True),
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("changed_at", sa.String, nullable=False),
)

# when an item met its recovery point objective and when not; of what is in no interval nothing is known
RPO_INTERVALS = sa.Table(
    "rpo_intervals",
    METADATA,
    sa.Column("item", sa.String, primary_key=True),  # a protected item's id
    sa.Column("since", sa.String, primary_key=True),
    sa.Column("state", sa.String, primary_key=True),  # an `intervals.Rpo`
    sa.Column("until", sa.String, nullable=False),
)
sa.Index("ix_rpo_intervals_until", RPO_INTERVALS.c.until)

# an item's health, a row for each change
HEALTH_CHANGES = sa.Table(
    "health_changes",
    METADATA,
    sa.Column("item", sa.String, primary_key=True),
    sa.Column("at", sa.String, primary_key=True),
    sa.Column("health", sa.String, nullable=False),  # Normal, Warning or Critical
    sa.Column("code", sa.String, nullable=False),
    sa.Column("note", sa.String, nullable=False),
)
sa.Index("ix_health_changes_at", HEALTH_CHANGES.c.at)

# where alerts go; the address is a secret and lies here only in an envelope
ALERT_CHANNELS = sa.Table(
    "alert_channels",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("service", sa.String, nullable=False),  # what kind of address, "E-Mail"
    sa.Column("envelope", sa.String, nullable=False),  # base64
    sa.Column("per_hour", sa.Integer, nullable=False),  # messages at most; what is more is put together
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("created_by", sa.String, nullable=False),
    sa.Column("sent_at", sa.String),  # the last delivery
    sa.Column("failed_at", sa.String),  # the last failure
    sa.Column("problem", sa.String, nullable=False),  # of the last failure, without secrets
)

ALERT_RULES = sa.Table(
    "alert_rules",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("channel", sa.String, sa.ForeignKey("alert_channels.id", ondelete="CASCADE"), nullable=False),
    sa.Column("severity", sa.String, nullable=False),  # at least
    sa.Column("codes", sa.String, nullable=False),  # JSON list, each a code or a beginning and *; empty: any
    sa.Column("vault", sa.String, nullable=False),  # its id; empty: any
    sa.Column("gateway", sa.String, nullable=False),  # its name; empty: any
    sa.Column("quiet_seconds", sa.Integer, nullable=False),
    sa.Column("enabled", sa.Integer, nullable=False),
)

# what was told by a rule and may come again: counted, and told together
ALERT_GROUPS = sa.Table(
    "alert_groups",
    METADATA,
    sa.Column("rule", sa.String, sa.ForeignKey("alert_rules.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("subject", sa.String, primary_key=True),  # JSON: code, gateway, item or machine
    sa.Column("wrong", sa.Integer, nullable=False),  # 1: nothing said yet that it is over
    sa.Column("since", sa.String, nullable=False),
    sa.Column("quiet_until", sa.String),  # NULL: only waits until it is over
    sa.Column("more", sa.Integer, nullable=False),  # not told yet
    sa.Column("over_told", sa.Integer, nullable=False),
    sa.Column("lasts", sa.Integer, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False),  # number of the newest event of it
)
sa.Index("ix_alert_groups_quiet_until", ALERT_GROUPS.c.quiet_until)

ALERT_MESSAGES = sa.Table(
    "alert_messages",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("channel", sa.String, sa.ForeignKey("alert_channels.id", ondelete="CASCADE"), nullable=False),
    sa.Column("rule", sa.String, nullable=False),  # its name; empty: of none
    sa.Column("kind", sa.String, nullable=False),  # a `groups.Kind`
    sa.Column("severity", sa.String, nullable=False),
    sa.Column("title", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("made_at", sa.String, nullable=False),
    sa.Column("event", sa.BigInteger, nullable=False),  # the number of what it tells; 0: of none, or many
    sa.Column("begun_at", sa.String),  # a job has it; NULL: it waits for the channel's rate
    sa.Column("sent_at", sa.String),
    sa.Column("job", sa.String, nullable=False),
)
sa.Index("ix_alert_messages_begun_at", ALERT_MESSAGES.c.channel, ALERT_MESSAGES.c.begun_at)
sa.Index("ix_alert_messages_made_at", ALERT_MESSAGES.c.made_at)

# one row: up to which event the rules were tried
ALERT_CURSOR = sa.Table(
    "alert_cursor",
    METADATA,
    sa.Column(
        "id", sa.Integer, sa.CheckConstraint("id = 1", name="one"), primary_key=True, autoincrement=False
    ),
    sa.Column("number", sa.BigInteger, nullable=False),
)

# gateways that are silent and were told of
GATEWAY_SILENCES = sa.Table(
    "gateway_silences",
    METADATA,
    sa.Column("gateway", sa.String, primary_key=True),  # its id
    sa.Column("since", sa.String, nullable=False),
)
