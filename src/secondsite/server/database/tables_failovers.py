"""Failovers and held machines, as their gateways last told of them: one row a gateway and machine.

What is told is kept as it came (`transfer.reports`); what an item makes of it is the item's own state.
"""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

FAILOVERS = sa.Table(
    "item_failovers",
    METADATA,
    sa.Column("gateway", sa.Text, primary_key=True),  # which takes over, by id
    sa.Column("machine", sa.Text, primary_key=True),
    sa.Column("sent_at", sa.Text, nullable=False),  # the gateway's clock
    sa.Column("told", sa.Text, nullable=False),  # JSON: FailoverReport, the newest of the machine
)

HELD = sa.Table(
    "item_held",
    METADATA,
    sa.Column("gateway", sa.Text, primary_key=True),  # which isolates it, by id
    sa.Column("machine", sa.Text, primary_key=True),
    sa.Column("sent_at", sa.Text, nullable=False),
    sa.Column("told", sa.Text, nullable=False),  # JSON: HeldReport
)
