"""Identity: vaults, the authority, registration keys, gateways and their certificates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables."""
    _vaults()
    _keys()
    _gateways()
    _certificates()


def _vaults() -> None:
    op.create_table(
        "vaults",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("friendly_name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vaults")),
        sa.UniqueConstraint("name_key", name=op.f("uq_vaults_name_key")),
    )
    op.create_table(
        "authorities",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("key_envelope", sa.Text(), nullable=False),
        sa.Column("revocation_number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_authorities")),
    )


def _keys() -> None:
    op.create_table(
        "registration_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("vault_id", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("for_gateway", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("ends_at", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.Text(), nullable=True),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registration_keys")),
        sa.ForeignKeyConstraint(
            ["vault_id"], ["vaults.id"], name=op.f("fk_registration_keys_vault_id_vaults"), ondelete="CASCADE"
        ),
    )
    op.create_index("ix_registration_keys_vault_id", "registration_keys", ["vault_id"])
    op.create_table(
        "enrolment_proofs",
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("ends_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_enrolment_proofs")),
    )
    op.create_index("ix_enrolment_proofs_ends_at", "enrolment_proofs", ["ends_at"])


def _gateways() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("friendly_name", sa.Text(), nullable=False),
        sa.Column("vault_id", sa.Text(), nullable=False),
        sa.Column("site", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("state_since", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("registered_at", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("refresh_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
        sa.UniqueConstraint("name", name=op.f("uq_gateways_name")),
        sa.ForeignKeyConstraint(["vault_id"], ["vaults.id"], name=op.f("fk_gateways_vault_id_vaults")),
    )
    op.create_index("ix_gateways_vault_id", "gateways", ["vault_id"])
    op.create_table(
        "gateway_contacts",
        sa.Column("gateway_id", sa.Text(), nullable=False),
        sa.Column("last_contact", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("clock_seconds", sa.Float(), nullable=False),
        sa.Column("refreshed", sa.Integer(), nullable=False),
        sa.Column("protected", sa.Integer(), nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("health", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("gateway_id", name=op.f("pk_gateway_contacts")),
        sa.ForeignKeyConstraint(
            ["gateway_id"],
            ["gateways.id"],
            name=op.f("fk_gateway_contacts_gateway_id_gateways"),
            ondelete="CASCADE",
        ),
    )


def _certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("gateway_id", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.Text(), nullable=False),
        sa.Column("valid_until", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
        sa.ForeignKeyConstraint(
            ["gateway_id"],
            ["gateways.id"],
            name=op.f("fk_certificates_gateway_id_gateways"),
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_certificates_gateway_id", "certificates", ["gateway_id"])
    op.create_index(
        "ix_certificates_gateway_id_public_key", "certificates", ["gateway_id", "public_key"], unique=True
    )
    op.create_table(
        "revocations",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("gateway_name", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.Text(), nullable=False),
        sa.Column("valid_until", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_revocations")),
    )
    op.create_index("ix_revocations_valid_until", "revocations", ["valid_until"])
