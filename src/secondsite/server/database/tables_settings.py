"""What a recovered machine is to be, for each protected item and direction."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

ITEM_SETTINGS = sa.Table(
    "item_settings",
    METADATA,
    sa.Column("item", sa.Text, sa.ForeignKey("protected_items.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("direction", sa.Text, primary_key=True),  # model.recovered.Direction
    sa.Column("settings", sa.Text, nullable=False),  # JSON: model.recovered.RecoveredSettings
    sa.Column("changed_at", sa.Text, nullable=False),
    sa.Column("changed_by", sa.Text, nullable=False),
)
