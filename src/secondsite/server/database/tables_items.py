"""Protected items, what their gateways last said of them, and replicas.

`protected_items` holds what is wanted and the state; `item_reports` what the source gateway measures, written
with every change of it; a list reads both. An item that was ended stays as Unprotected: its id, the day of
its first protection, and what a gateway that was away has still to be told.
"""

from __future__ import annotations

import sqlalchemy as sa

from secondsite.server.database.metadata import METADATA

ITEMS = sa.Table(
    "protected_items",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("vault_id", sa.Text, sa.ForeignKey("vaults.id", ondelete="CASCADE"), nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("name_key", sa.Text, nullable=False),  # case folded: what is sorted and searched by
    sa.Column("source_id", sa.Text, nullable=False, index=True),  # a gateway's id
    sa.Column("source_name", sa.Text, nullable=False),
    sa.Column("target_id", sa.Text, index=True),  # absent: the peer is no gateway of this server
    sa.Column("target_name", sa.Text, nullable=False),
    # what is wanted
    sa.Column("managed", sa.Integer, nullable=False),  # False: known only, its gateway is told nothing
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column(
        "source_generation", sa.BigInteger, nullable=False
    ),  # of the gateway's, the newest with a change
    sa.Column("target_generation", sa.BigInteger, nullable=False),
    sa.Column("policy_id", sa.Text, index=True),
    sa.Column("policy_revision", sa.BigInteger, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),  # JSON: ReplicationPolicy as it was taken
    sa.Column("disks", sa.Text),  # JSON; absent: all
    sa.Column("left_out", sa.Text, nullable=False),  # JSON
    sa.Column("mapping", sa.Text, nullable=False),  # JSON: WantedMapping
    sa.Column("own_mapping", sa.Integer, nullable=False),  # not as its sites are mapped
    sa.Column("paused", sa.Integer, nullable=False),
    sa.Column("resync", sa.Integer, nullable=False),
    sa.Column("enabled", sa.Integer, nullable=False),
    sa.Column("delete_replica", sa.Integer, nullable=False),
    # where it stands
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_since", sa.Text, nullable=False),
    sa.Column("health", sa.Text, nullable=False),
    sa.Column("health_code", sa.Text, nullable=False),
    sa.Column("health_note", sa.Text, nullable=False),
    sa.Column("source_revision", sa.BigInteger, nullable=False),  # the newest the gateway says it has
    sa.Column("target_revision", sa.BigInteger, nullable=False),
    sa.Column("refused", sa.Text, nullable=False),  # why the source does not take the newest revision
    sa.Column("source_done", sa.Integer, nullable=False),  # what is ended is ended there
    sa.Column("target_done", sa.Integer, nullable=False),
    sa.Column("left_behind", sa.Text, nullable=False),  # what was not removed when it was ended by force
    # the failover its state follows or followed last, by the operation's id; "": none yet
    sa.Column("failover_id", sa.Text, nullable=False, server_default=""),
    # JSON: how it was protected from its first site, while its machine is away from there; "": it is there
    sa.Column("home", sa.Text, nullable=False, server_default=""),
    sa.Column("finalized_at", sa.Text),
    sa.Column("first_protected_at", sa.Text),  # stays when it is ended and protected again
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),  # of the newest revision
    sa.Column("changed_by", sa.Text, nullable=False),  # the action of a job: it does it once
    sa.Column("before_change", sa.Text, nullable=False),  # JSON: the columns before it, for taking it back
    sa.Index("ix_protected_items_machine", "vault_id", "machine", unique=True),
    sa.Index("ix_protected_items_listed", "vault_id", "name_key", "id"),
    sa.Index("ix_protected_items_by_state", "vault_id", "state", "name_key", "id"),
    sa.Index("ix_protected_items_by_health", "vault_id", "health", "name_key", "id"),
    sa.Index("ix_protected_items_by_source", "source_name", "name_key", "id"),
    sa.Index("ix_protected_items_by_target", "target_name", "name_key", "id"),
)

REPORTS = sa.Table(
    "item_reports",
    METADATA,
    sa.Column("item", sa.Text, sa.ForeignKey("protected_items.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sent_at", sa.Text, nullable=False),  # the gateway's clock
    sa.Column("word", sa.Text, nullable=False),  # the state as the gateway says it
    sa.Column("bitmap_mode", sa.Integer, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("copying", sa.Text),  # JSON
    sa.Column("resynced", sa.Integer, nullable=False),
    sa.Column("points", sa.BigInteger, nullable=False),
    sa.Column("last_point", sa.BigInteger),
    sa.Column("last_point_at", sa.Text),
    sa.Column("last_consistency", sa.Text, nullable=False),
    # the instant of the last point by the server's clock: the age the gateway said, before it was heard
    sa.Column("last_point_here", sa.Text),
    sa.Column("spool_bytes", sa.BigInteger, nullable=False),
    sa.Column("total_changed_bytes", sa.BigInteger, nullable=False),
    sa.Column("total_sent_bytes", sa.BigInteger, nullable=False),
    # PostgreSQL: a new measurement finds its place beside the one before (HOT), so that neither the index
    # grows nor has vacuum much to do: with full pages one in fifteen did
    postgresql_with={"fillfactor": 50},
)

REPLICAS = sa.Table(
    "item_replicas",
    METADATA,
    sa.Column("gateway", sa.Text, primary_key=True),
    sa.Column("machine", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("sent_at", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("points", sa.BigInteger, nullable=False),
    sa.Column("oldest_at", sa.Text),
    sa.Column("newest", sa.BigInteger),
    sa.Column("newest_at", sa.Text),
    sa.Column("retention", sa.Text, nullable=False),
    sa.Column("test_state", sa.Text, nullable=False),  # of the test failover that stands; "": none
    sa.Column("test_name", sa.Text, nullable=False),
    sa.Column("doubt", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    postgresql_with={"fillfactor": 50},  # as above
)

# What a gateway is given has a number that grows with each change of it.
GENERATIONS = sa.Table(
    "item_generations",
    METADATA,
    sa.Column("gateway", sa.Text, primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("peers", sa.Text, nullable=False),  # JSON, as they were last given
)
