"""Protected items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables."""
    _items()
    op.create_table(
        "item_reports",
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("sent_at", sa.Text(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("bitmap_mode", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("copying", sa.Text(), nullable=True),
        sa.Column("resynced", sa.Integer(), nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("last_point", sa.BigInteger(), nullable=True),
        sa.Column("last_point_at", sa.Text(), nullable=True),
        sa.Column("last_consistency", sa.Text(), nullable=False),
        sa.Column("last_point_here", sa.Text(), nullable=True),
        sa.Column("spool_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_changed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_sent_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["item"],
            ["protected_items.id"],
            name=op.f("fk_item_reports_item_protected_items"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("item", name=op.f("pk_item_reports")),
    )
    op.create_table(
        "item_replicas",
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sent_at", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("oldest_at", sa.Text(), nullable=True),
        sa.Column("newest", sa.BigInteger(), nullable=True),
        sa.Column("newest_at", sa.Text(), nullable=True),
        sa.Column("retention", sa.Text(), nullable=False),
        sa.Column("test_state", sa.Text(), nullable=False),
        sa.Column("test_name", sa.Text(), nullable=False),
        sa.Column("doubt", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("gateway", "machine", name=op.f("pk_item_replicas")),
    )
    op.create_table(
        "item_generations",
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("peers", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("gateway", name=op.f("pk_item_generations")),
    )


def _items() -> None:
    op.create_table(
        "protected_items",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("vault_id", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=False),
        sa.Column("source_name", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=True),
        sa.Column("target_name", sa.Text(), nullable=False),
        sa.Column("managed", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("source_generation", sa.BigInteger(), nullable=False),
        sa.Column("target_generation", sa.BigInteger(), nullable=False),
        sa.Column("policy_id", sa.Text(), nullable=True),
        sa.Column("policy_revision", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("disks", sa.Text(), nullable=True),
        sa.Column("left_out", sa.Text(), nullable=False),
        sa.Column("mapping", sa.Text(), nullable=False),
        sa.Column("own_mapping", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Integer(), nullable=False),
        sa.Column("resync", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Integer(), nullable=False),
        sa.Column("delete_replica", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_since", sa.Text(), nullable=False),
        sa.Column("health", sa.Text(), nullable=False),
        sa.Column("health_code", sa.Text(), nullable=False),
        sa.Column("health_note", sa.Text(), nullable=False),
        sa.Column("source_revision", sa.BigInteger(), nullable=False),
        sa.Column("target_revision", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        sa.Column("source_done", sa.Integer(), nullable=False),
        sa.Column("target_done", sa.Integer(), nullable=False),
        sa.Column("left_behind", sa.Text(), nullable=False),
        sa.Column("finalized_at", sa.Text(), nullable=True),
        sa.Column("first_protected_at", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("before_change", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vault_id"],
            ["vaults.id"],
            name=op.f("fk_protected_items_vault_id_vaults"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_protected_items")),
    )
    op.create_index(op.f("ix_protected_items_source_id"), "protected_items", ["source_id"])
    op.create_index(op.f("ix_protected_items_target_id"), "protected_items", ["target_id"])
    op.create_index(op.f("ix_protected_items_policy_id"), "protected_items", ["policy_id"])
    op.create_index("ix_protected_items_machine", "protected_items", ["vault_id", "machine"], unique=True)
    op.create_index("ix_protected_items_listed", "protected_items", ["vault_id", "name_key", "id"])
    op.create_index("ix_protected_items_by_state", "protected_items", ["vault_id", "state", "name_key", "id"])
    op.create_index(
        "ix_protected_items_by_health", "protected_items", ["vault_id", "health", "name_key", "id"]
    )
