"""Events of gateways and alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "events",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in (
                *("at", "told_at", "severity", "code", "text"),
                *("vault", "gateway", "item", "machine"),
            )
        ),
        sa.Column("lasts", sa.Integer(), nullable=False),
        sa.Column("ends", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
    )
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_events_item", "events", ["item", "number"])
    op.create_table(
        "events_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("alive_at", sa.String(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_events_head_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events_head")),
    )
    op.create_table(
        "event_logs",
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("log", sa.String(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("gateway", "log", name=op.f("pk_event_logs")),
    )
    _make_histories()
    _make_alerts()


def _make_histories() -> None:
    op.create_table(
        "rpo_intervals",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("item", "since", "state", "until")),
        sa.PrimaryKeyConstraint("item", "since", "state", name=op.f("pk_rpo_intervals")),
    )
    op.create_index("ix_rpo_intervals_until", "rpo_intervals", ["until"])
    op.create_table(
        "health_changes",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("item", "at", "health", "code", "note")),
        sa.PrimaryKeyConstraint("item", "at", name=op.f("pk_health_changes")),
    )
    op.create_index("ix_health_changes_at", "health_changes", ["at"])


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _make_alerts() -> None:
    op.create_table(
        "alert_channels",
        *_texts("id", "name", "service", "envelope"),
        sa.Column("per_hour", sa.Integer(), nullable=False),
        *_texts("created_at", "created_by"),
        sa.Column("sent_at", sa.String(), nullable=True),
        sa.Column("failed_at", sa.String(), nullable=True),
        *_texts("problem"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_channels")),
        sa.UniqueConstraint("name", name=op.f("uq_alert_channels_name")),
    )
    op.create_table(
        "alert_rules",
        *_texts("id", "name", "channel", "severity", "codes", "vault", "gateway"),
        sa.Column("quiet_seconds", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Integer(), nullable=False),
        _to_channel("alert_rules"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_rules")),
        sa.UniqueConstraint("name", name=op.f("uq_alert_rules_name")),
    )
    op.create_table(
        "alert_groups",
        *_texts("rule", "subject"),
        sa.Column("wrong", sa.Integer(), nullable=False),
        *_texts("since"),
        sa.Column("quiet_until", sa.String(), nullable=True),
        sa.Column("more", sa.Integer(), nullable=False),
        sa.Column("over_told", sa.Integer(), nullable=False),
        sa.Column("lasts", sa.Integer(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rule"], ["alert_rules.id"], name=op.f("fk_alert_groups_rule_alert_rules"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rule", "subject", name=op.f("pk_alert_groups")),
    )
    op.create_index("ix_alert_groups_quiet_until", "alert_groups", ["quiet_until"])
    op.create_table(
        "alert_messages",
        *_texts("id", "channel", "rule", "kind", "severity", "title", "body", "made_at"),
        sa.Column("event", sa.BigInteger(), nullable=False),
        sa.Column("begun_at", sa.String(), nullable=True),
        sa.Column("sent_at", sa.String(), nullable=True),
        *_texts("job"),
        _to_channel("alert_messages"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_messages")),
    )
    op.create_index("ix_alert_messages_begun_at", "alert_messages", ["channel", "begun_at"])
    op.create_index("ix_alert_messages_made_at", "alert_messages", ["made_at"])
    op.create_table(
        "alert_cursor",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_alert_cursor_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_cursor")),
    )
    op.create_table(
        "gateway_silences",
        *_texts("gateway", "since"),
        sa.PrimaryKeyConstraint("gateway", name=op.f("pk_gateway_silences")),
    )


def _to_channel(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_channel_alert_channels")
    return sa.ForeignKeyConstraint(["channel"], ["alert_channels.id"], name=name, ondelete="CASCADE")
