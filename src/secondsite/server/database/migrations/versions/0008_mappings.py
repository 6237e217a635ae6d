"""Sites, clouds, pairs and mappings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the tables."""
    _clouds()
    _pairs()


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _to(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}_{other}")
    return sa.ForeignKeyConstraint([column], [f"{other}.id"], name=name, ondelete="CASCADE")


def _clouds() -> None:
    op.create_table(
        "clouds",
        *(_text(name) for name in ("id", "vault_id", "name", "name_key", "site", "site_key")),
        sa.Column("published", sa.Integer(), nullable=False),
        _text("default_of", nullable=True),
        _text("created_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clouds")),
        sa.UniqueConstraint("vault_id", "name_key", name=op.f("uq_clouds_vault_id_name_key")),
        sa.UniqueConstraint("default_of", name=op.f("uq_clouds_default_of")),
        _to("clouds", "vault_id", "vaults"),
        _to("clouds", "default_of", "gateways"),
    )
    op.create_table(
        "cloud_hosts",
        *(_text(name) for name in ("vault_id", "site_key", "host", "cloud")),
        sa.PrimaryKeyConstraint("vault_id", "site_key", "host", name=op.f("pk_cloud_hosts")),
        _to("cloud_hosts", "cloud", "clouds"),
    )
    op.create_index(op.f("ix_cloud_hosts_cloud"), "cloud_hosts", ["cloud"])
    op.create_table(
        "placed_machines",
        *(_text(name) for name in ("gateway", "machine", "host", "cloud")),
        sa.PrimaryKeyConstraint("gateway", "machine", name=op.f("pk_placed_machines")),
        _to("placed_machines", "gateway", "gateways"),
        _to("placed_machines", "cloud", "clouds"),
    )
    op.create_index("ix_placed_machines_cloud_machine", "placed_machines", ["cloud", "machine"])
    op.create_index("ix_placed_machines_machine", "placed_machines", ["machine"])


def _pairs() -> None:
    names = ("id", "vault_id", "primary_cloud", "target_cloud", "state", "created_at", "created_by")
    op.create_table(
        "cloud_pairs",
        *(_text(name) for name in names),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cloud_pairs")),
        _to("cloud_pairs", "vault_id", "vaults"),
        _to("cloud_pairs", "primary_cloud", "clouds"),
        _to("cloud_pairs", "target_cloud", "clouds"),
    )
    op.create_index(op.f("ix_cloud_pairs_vault_id"), "cloud_pairs", ["vault_id"])
    op.create_table(
        "cloud_pair_sides",
        _text("cloud"),
        _text("pair"),
        sa.PrimaryKeyConstraint("cloud", name=op.f("pk_cloud_pair_sides")),
        _to("cloud_pair_sides", "cloud", "clouds"),
        _to("cloud_pair_sides", "pair", "cloud_pairs"),
    )
    op.create_index(op.f("ix_cloud_pair_sides_pair"), "cloud_pair_sides", ["pair"])
    op.create_table(
        "pair_checks",
        *(_text(name) for name in ("pair", "host", "gateway", "target")),
        sa.Column("ok", sa.Integer(), nullable=False),
        sa.Column("round_trip_seconds", sa.Float(), nullable=True),
        _text("result"),
        _text("checked_at"),
        sa.PrimaryKeyConstraint("pair", "host", "gateway", "target", name=op.f("pk_pair_checks")),
        _to("pair_checks", "pair", "cloud_pairs"),
    )
    op.create_table(
        "pair_mappings",
        *(_text(name) for name in ("pair", "kind", "source", "target")),
        sa.PrimaryKeyConstraint("pair", "kind", "source", name=op.f("pk_pair_mappings")),
        _to("pair_mappings", "pair", "cloud_pairs"),
    )
