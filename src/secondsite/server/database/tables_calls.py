"""Calls to gateways: those that wait, those under way, and the answers until they were read."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

CALLS = sa.Table(
    "calls",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("gateway", sa.String, nullable=False),
    sa.Column("job", sa.String, nullable=False),  # empty: it only reads
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("method", sa.String, nullable=False),
    sa.Column("path", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("made_at", sa.String, nullable=False),
    sa.Column("expires_at", sa.String, nullable=False),  # without an answer by then it is given up
    sa.Column("answered_at", sa.String),
    sa.Column("status", sa.Integer),
    sa.Column("answer", sa.String),
)
# what a gateway asks for all the time: its own that wait, oldest first
sa.Index("ix_calls_waiting", CALLS.c.gateway, CALLS.c.answered_at, CALLS.c.made_at)
sa.Index("ix_calls_job", CALLS.c.job)
