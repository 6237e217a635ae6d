"""Failovers of protected items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Make the tables. Items of before follow no failover yet."""
    op.add_column("protected_items", sa.Column("failover_id", sa.Text(), nullable=False, server_default=""))
    for table in ("item_failovers", "item_held"):
        op.create_table(
            table,
            sa.Column("gateway", sa.Text(), nullable=False),
            sa.Column("machine", sa.Text(), nullable=False),
            sa.Column("sent_at", sa.Text(), nullable=False),
            sa.Column("told", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint("gateway", "machine", name=op.f(f"pk_{table}")),
        )
