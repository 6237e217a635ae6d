"""Tables of people: users, the roles they hold, what proves who they are, and the log of what was done."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text

from secondsite.server.database.metadata import METADATA

users = Table(
    "users",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("display_name", Text, nullable=False),
    Column("password", Text),  # Argon2id with its parameters; none: logs in with tokens only
    Column("disabled", Integer, nullable=False),
    Column("created_at", Text, nullable=False),
)

grants = Table(
    "grants",
    METADATA,
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("vault", Text, primary_key=True),  # a vault's id, or * for everywhere
    Column("role", Text, primary_key=True),
)

# API tokens, sessions and set-up tokens: one way to prove who one is
tokens = Table(
    "tokens",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # people.tokens.Kind
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the secret, which has 256 random bits
    Column("vault", Text),  # limited to this vault
    Column("role", Text),  # limited to what this role may
    Column("address", Text, nullable=False),  # where it was made from
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("used_at", Text),  # not of every use: at most every few minutes
    Column("revoked_at", Text),
    Index(None, "user_id", "kind"),
)

audit = Table(
    "audit",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, ... without a gap
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("via", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("vault", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),  # JSON
    Column("digest", Text, nullable=False),  # SHA-256 over the digest before and this row
    Column("seal", Text, nullable=False),  # HMAC of the digest, with a key that is not in the database
)

audit_head = Table(
    "audit_head",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="one"), primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("seal", Text, nullable=False),
)
