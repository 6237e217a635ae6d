"""Active and standby server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Make the tables."""
    op.add_column("server_state", sa.Column("superseded_url", sa.Text(), nullable=True))
    op.add_column("server_state", sa.Column("handed_over_at", sa.Text(), nullable=True))
    op.create_table(
        "server_standbys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Text(), nullable=False),
        sa.Column("copy", sa.Text(), nullable=False),
        sa.Column("current_at", sa.Text(), nullable=True),
        sa.Column("late_seconds", sa.Integer(), nullable=False),
        sa.Column("late_since", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_server_standbys")),
    )
    op.create_table(
        "server_copies",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("made_at", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("final", sa.Integer(), nullable=False),
        sa.Column("kept_at", sa.Text(), nullable=True),
        sa.Column("places", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_server_copies")),
    )
    op.create_index(op.f("ix_server_copies_made_at"), "server_copies", ["made_at"], unique=False)
