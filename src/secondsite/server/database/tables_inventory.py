"""What each gateway's site has, and when it was last asked."""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

OBJECTS = sa.Table(
    "inventory_objects",
    METADATA,
    sa.Column("gateway", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),  # an `inventory.service.Kind`
    sa.Column("id", sa.String, primary_key=True),  # a machine's id, else a name
    sa.Column("name", sa.String, nullable=False),
    sa.Column(
        "sort_key", sa.String, nullable=False
    ),  # the name in lower case: what is sorted and searched by
    sa.Column("detail", sa.String, nullable=False),  # JSON, as the gateway told it
    sa.Column("seen_first", sa.String, nullable=False),
    sa.Column("gone_since", sa.String),  # it was there once and is not any more
)
sa.Index("ix_inventory_objects_listed", OBJECTS.c.kind, OBJECTS.c.sort_key, OBJECTS.c.gateway, OBJECTS.c.id)

READS = sa.Table(
    "inventory_reads",
    METADATA,
    sa.Column("gateway", sa.String, primary_key=True),
    sa.Column("begun_at", sa.String, nullable=False),  # the last try
    sa.Column("read_at", sa.String),  # the last that worked
    sa.Column("problem", sa.String),  # JSON, of the last try, as errors travel; null when it worked
)
