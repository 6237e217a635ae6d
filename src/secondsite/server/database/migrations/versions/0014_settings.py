"""Settings of recovered machines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Make the table. Nothing is set for items of before."""
    op.create_table(
        "item_settings",
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["item"],
            ["protected_items.id"],
            name=op.f("fk_item_settings_item_protected_items"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("item", "direction", name=op.f("pk_item_settings")),
    )
