"""What the sites have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "inventory_objects",
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sort_key", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("seen_first", sa.String(), nullable=False),
        sa.Column("gone_since", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("gateway", "kind", "id", name=op.f("pk_inventory_objects")),
    )
    listed = ["kind", "sort_key", "gateway", "id"]
    op.create_index("ix_inventory_objects_listed", "inventory_objects", listed)
    op.create_table(
        "inventory_reads",
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("begun_at", sa.String(), nullable=False),
        sa.Column("read_at", sa.String(), nullable=True),
        sa.Column("problem", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("gateway", name=op.f("pk_inventory_reads")),
    )
