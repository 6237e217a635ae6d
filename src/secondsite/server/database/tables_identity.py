"""Tables of vaults, the authority, registration keys, gateways and their certificates.

Secrets lie here as envelopes (`server.identity.envelopes`) or not at all: of a registration key only the
public half. Revocations outlive the gateways they name, until the certificate would have ended by itself.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, Table, Text

from secondsite.server.database.metadata import METADATA

vaults = Table(
    "vaults",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("friendly_name", Text, nullable=False),
    Column(
        "name_key", Text, nullable=False, unique=True
    ),  # case folded: two names never differ by case alone
    Column("description", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

authorities = Table(
    "authorities",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("certificate", Text, nullable=False),  # PEM
    Column("key_envelope", Text, nullable=False),  # base64
    Column("revocation_number", Integer, nullable=False),  # of the newest list; grows with each revocation
    Column("created_at", Text, nullable=False),
)

registration_keys = Table(
    "registration_keys",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("vault_id", Text, ForeignKey("vaults.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("public_key", Text, nullable=False),  # hexadecimal; the secret cannot be made of it
    Column("for_gateway", Text),  # the one gateway it may enrol again; any new ones when absent
    Column("created_at", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("ends_at", Text, nullable=False),
    Column("revoked_at", Text),
    Column("uses", Integer, nullable=False),
)

# A nonce that was used; kept until it would be refused for its age.
enrolment_proofs = Table(
    "enrolment_proofs",
    METADATA,
    Column("nonce", Text, primary_key=True),
    Column("ends_at", Text, nullable=False, index=True),
)

gateways = Table(
    "gateways",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),  # as in its certificate; never changes
    Column("friendly_name", Text, nullable=False),
    Column("vault_id", Text, ForeignKey("vaults.id"), nullable=False, index=True),
    Column("site", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("state_since", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("registered_at", Text, nullable=False),
    Column("key_id", Text, nullable=False),  # the registration key it came with; the key may be gone
    Column("refresh_number", Integer, nullable=False),
)

certificates = Table(
    "certificates",
    METADATA,
    Column("serial", Text, primary_key=True),  # hexadecimal
    Column("gateway_id", Text, ForeignKey("gateways.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("public_key", Text, nullable=False),  # SHA-256 of it, hexadecimal
    Column("pem", Text, nullable=False),
    Column("valid_from", Text, nullable=False),
    Column("valid_until", Text, nullable=False),
    Index("ix_certificates_gateway_id_public_key", "gateway_id", "public_key", unique=True),
)

revocations = Table(
    "revocations",
    METADATA,
    Column("serial", Text, primary_key=True),
    Column("gateway_name", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("revoked_at", Text, nullable=False),
    Column("valid_until", Text, nullable=False, index=True),
)

# What a gateway last said; soft state, written in batches.
gateway_contacts = Table(
    "gateway_contacts",
    METADATA,
    Column("gateway_id", Text, ForeignKey("gateways.id", ondelete="CASCADE"), primary_key=True),
    Column("last_contact", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("clock_seconds", Float, nullable=False),  # by which its clock is ahead of the server's
    Column("refreshed", Integer, nullable=False),  # the newest refresh it answered
    Column("protected", Integer, nullable=False),
    Column("points", BigInteger, nullable=False),
    Column("health", Text, nullable=False),
    Column("url", Text),  # where other gateways reach its listener
)
