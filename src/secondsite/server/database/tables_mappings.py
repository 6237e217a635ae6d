"""Clouds, the hosts and machines in them, pairs of clouds, and where things of one go at the other.

A site has no table: it is what the gateways that name it have together. What follows from an inventory
(`placed_machines`) is written with it, in one transaction.
"""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

CLOUDS = sa.Table(
    "clouds",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("vault_id", sa.String, sa.ForeignKey("vaults.id", ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("name_key", sa.String, nullable=False),  # case folded
    sa.Column("site", sa.String, nullable=False),
    sa.Column("site_key", sa.String, nullable=False),  # case folded: what gateways are compared by
    sa.Column("published", sa.Integer, nullable=False),
    # the gateway it was made for by itself: hosts of that gateway that are in no other cloud are in it
    sa.Column("default_of", sa.String, sa.ForeignKey("gateways.id", ondelete="CASCADE")),
    sa.Column("created_at", sa.String, nullable=False),
    sa.UniqueConstraint("vault_id", "name_key"),
    sa.UniqueConstraint("default_of"),
)

# A host is in one cloud.
CLOUD_HOSTS = sa.Table(
    "cloud_hosts",
    METADATA,
    sa.Column("vault_id", sa.String, primary_key=True),
    sa.Column("site_key", sa.String, primary_key=True),
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("cloud", sa.String, sa.ForeignKey("clouds.id", ondelete="CASCADE"), nullable=False, index=True),
)

# Which machines each gateway last told of, and where they run: only those of published clouds.
PLACED = sa.Table(
    "placed_machines",
    METADATA,
    sa.Column("gateway", sa.String, sa.ForeignKey("gateways.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("machine", sa.String, primary_key=True),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("cloud", sa.String, sa.ForeignKey("clouds.id", ondelete="CASCADE"), nullable=False),
)
sa.Index("ix_placed_machines_cloud_machine", PLACED.c.cloud, PLACED.c.machine)
sa.Index("ix_placed_machines_machine", PLACED.c.machine)

PAIRS = sa.Table(
    "cloud_pairs",
    METADATA,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column(
        "vault_id",
        sa.String,
        sa.ForeignKey("vaults.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("primary_cloud", sa.String, sa.ForeignKey("clouds.id", ondelete="CASCADE"), nullable=False),
    sa.Column("target_cloud", sa.String, sa.ForeignKey("clouds.id", ondelete="CASCADE"), nullable=False),
    sa.Column("state", sa.String, nullable=False),  # a `mappings.records.PairState`
    sa.Column("created_at", sa.String, nullable=False),
    sa.Column("created_by", sa.String, nullable=False),
)

# A cloud is in one pair, on whichever side: the primary key says so, whoever writes.
PAIR_SIDES = sa.Table(
    "cloud_pair_sides",
    METADATA,
    sa.Column("cloud", sa.String, sa.ForeignKey("clouds.id", ondelete="CASCADE"), primary_key=True),
    sa.Column(
        "pair", sa.String, sa.ForeignKey("cloud_pairs.id", ondelete="CASCADE"), nullable=False, index=True
    ),
)

# What each host of the primary cloud said of its way to the target, the last time it was asked.
PAIR_CHECKS = sa.Table(
    "pair_checks",
    METADATA,
    sa.Column("pair", sa.String, sa.ForeignKey("cloud_pairs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("host", sa.String, primary_key=True),
    sa.Column("gateway", sa.String, primary_key=True),  # the id of the one that was asked
    sa.Column("target", sa.String, primary_key=True),  # the id of the one it was to reach
    sa.Column("ok", sa.Integer, nullable=False),
    sa.Column("round_trip_seconds", sa.Float),
    sa.Column("result", sa.String, nullable=False),  # JSON, a `mappings.records.HostCheck`
    sa.Column("checked_at", sa.String, nullable=False),
)

# What is not named is attached to nothing, or lies in the default pool.
PAIR_MAPPINGS = sa.Table(
    "pair_mappings",
    METADATA,
    sa.Column("pair", sa.String, sa.ForeignKey("cloud_pairs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),  # "network" or "pool"
    sa.Column("source", sa.String, primary_key=True),  # "" of a pool: the default
    sa.Column("target", sa.String, nullable=False),
)
