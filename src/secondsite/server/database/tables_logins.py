"""Tables of approvals by a second person, of log-ins at an OIDC provider, and of what holds for sessions."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text

from secondsite.server.database.metadata import METADATA

# What of a vault needs an approval, and of how many people besides who asks for it
vault_approvals = Table(
    "vault_approvals",
    METADATA,
    Column("vault", Text, ForeignKey("vaults.id", ondelete="CASCADE"), primary_key=True),
    Column("operation", Text, primary_key=True),
    Column("needed", Integer, CheckConstraint("needed >= 1", name="needed"), nullable=False),
)

# One row each time a job asks; the audit log keeps it beyond the job
approvals = Table(
    "approvals",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("job", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("step", Text, nullable=False),
    Column("round", Integer, nullable=False),  # 1, 2, ...: a job tried again asks anew
    Column("operation", Text, nullable=False),
    Column("vault", Text),  # of the job
    Column("subject", Text, nullable=False),  # for people: what is to be done
    Column("asked_by", Text, nullable=False),  # who started the job; never counts
    Column("urged_by", Text),  # who had it tried again; does not count either
    Column("needed", Integer, nullable=False),
    Column("state", Text, nullable=False),  # people.asking.ApprovalState
    Column("asked_at", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("decided_at", Text),
    Column("told", Integer, nullable=False),  # the job was told that it was rejected, or not given in time
    Index(None, "job", "step", "round", unique=True),
    Index(None, "state", "expires_at"),
)

approval_votes = Table(
    "approval_votes",
    METADATA,
    Column("approval", Text, ForeignKey("approvals.id", ondelete="CASCADE"), primary_key=True),
    Column("voter", Text, primary_key=True),  # nobody counts twice
    Column("verdict", Text, nullable=False),  # approved, rejected
    Column("comment", Text, nullable=False),
    Column("at", Text, nullable=False),
)

# The one OIDC provider people may come in by
oidc_provider = Table(
    "oidc_provider",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="one"), primary_key=True, autoincrement=False),
    Column("issuer", Text, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("secret_envelope", Text),  # base64 of identity.envelopes; none: a public client
    Column("authority", Text, nullable=False),  # PEM of whom its TLS is trusted by; empty: the system's own
    Column("scopes", Text, nullable=False),  # with blanks between
    Column("groups_claim", Text, nullable=False),
    Column("name_claim", Text, nullable=False),
    Column("session_minutes", Integer, nullable=False),
    Column("changed_at", Text, nullable=False),
)

# Which role somebody has who is in a group at the provider
oidc_roles = Table(
    "oidc_roles",
    METADATA,
    Column("claim", Text, primary_key=True),  # a group, or * for everybody who logs in there
    Column("vault", Text, primary_key=True),  # an id, or * for everywhere
    Column("role", Text, primary_key=True),
)

# Who is whom: by issuer and subject alone, never by a name or an address
oidc_identities = Table(
    "oidc_identities",
    METADATA,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("seen_at", Text, nullable=False),
)

# Roles that a log-in gave, and that a later one takes again; what people granted is not among them
oidc_grants = Table(
    "oidc_grants",
    METADATA,
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("vault", Text, primary_key=True),
    Column("role", Text, primary_key=True),
)

# A log-in that was begun and not finished; gone once it was used
oidc_logins = Table(
    "oidc_logins",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # people.oidc_login.Kind
    Column("digest", Text, nullable=False),  # SHA-256 of the secret of who began it
    Column("envelope", Text, nullable=False),  # base64: state, nonce, verifier; or the device's code
    Column("expires_at", Text, nullable=False),
    Column("interval_seconds", Integer, nullable=False),  # between two questions of a device
    Column("asked_at", Text),
    Index(None, "expires_at"),
)

login_settings = Table(
    "login_settings",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1", name="one"), primary_key=True, autoincrement=False),
    Column("one_session", Integer, nullable=False),  # a log-in ends the user's other sessions
)
