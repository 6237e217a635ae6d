"""Tables of replication policies, and of what each of their revisions said."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Integer, Table, Text, UniqueConstraint

from secondsite.server.database.metadata import METADATA

policies = Table(
    "policies",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("vault_id", Text, ForeignKey("vaults.id", ondelete="CASCADE"), nullable=False),
    Column("friendly_name", Text, nullable=False),
    Column("name_key", Text, nullable=False),  # case folded: two names never differ by case alone
    Column("description", Text, nullable=False),
    Column("revision", Integer, nullable=False),  # grows with each change of the settings
    Column("settings", Text, nullable=False),  # JSON of model.policies.ReplicationPolicy
    # of a failback policy: the one it was made with
    Column("failback_of", Text, ForeignKey("policies.id", ondelete="CASCADE"), unique=True),
    Column("created_at", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", Text, nullable=False),
    Column("changed_by", Text, nullable=False),
    UniqueConstraint("vault_id", "name_key"),
)

policy_revisions = Table(
    "policy_revisions",
    METADATA,
    Column("policy_id", Text, ForeignKey("policies.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("settings", Text, nullable=False),
    Column("made_at", Text, nullable=False),
    Column("made_by", Text, nullable=False),
)
