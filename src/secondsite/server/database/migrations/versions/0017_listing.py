"""Listing items by a gateway; room on PostgreSQL's pages for what gateways measure again and again."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Make the indexes; set the room that is left on new pages, older ones get it as they are written."""
    op.create_index(
        "ix_protected_items_by_source", "protected_items", ["source_name", "name_key", "id"], unique=False
    )
    op.create_index(
        "ix_protected_items_by_target", "protected_items", ["target_name", "name_key", "id"], unique=False
    )
    if op.get_bind().dialect.name == "postgresql":
        for table in ("item_reports", "item_replicas"):
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")
