"""Approvals by a second person, log-ins at an OIDC provider, what holds for sessions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Make the tables."""
    _approvals()
    _oidc()
    _logins()


def _approvals() -> None:
    op.create_table(
        "vault_approvals",
        sa.Column("vault", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.CheckConstraint("needed >= 1", name=op.f("ck_vault_approvals_needed")),
        sa.ForeignKeyConstraint(
            ["vault"], ["vaults.id"], name=op.f("fk_vault_approvals_vault_vaults"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("vault", "operation", name=op.f("pk_vault_approvals")),
    )
    op.create_table(
        "approvals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("vault", sa.Text(), nullable=True),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("subject", "asked_by")),
        sa.Column("urged_by", sa.Text(), nullable=True),
        sa.Column("needed", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("state", "asked_at", "expires_at")),
        sa.Column("decided_at", sa.Text(), nullable=True),
        sa.Column("told", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_approvals_job_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
    )
    op.create_index(op.f("ix_approvals_job_step_round"), "approvals", ["job", "step", "round"], unique=True)
    op.create_index(op.f("ix_approvals_state_expires_at"), "approvals", ["state", "expires_at"], unique=False)
    op.create_table(
        "approval_votes",
        sa.Column("approval", sa.Text(), nullable=False),
        sa.Column("voter", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("verdict", "comment", "at")),
        sa.ForeignKeyConstraint(
            ["approval"],
            ["approvals.id"],
            name=op.f("fk_approval_votes_approval_approvals"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("approval", "voter", name=op.f("pk_approval_votes")),
    )


def _oidc() -> None:
    op.create_table(
        "oidc_provider",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("issuer", "client_id")),
        sa.Column("secret_envelope", sa.Text(), nullable=True),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("authority", "scopes", "groups_claim", "name_claim")
        ),
        sa.Column("session_minutes", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_oidc_provider_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oidc_provider")),
    )
    op.create_table(
        "oidc_roles",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("claim", "vault", "role")),
        sa.PrimaryKeyConstraint("claim", "vault", "role", name=op.f("pk_oidc_roles")),
    )
    op.create_table(
        "oidc_identities",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("issuer", "subject", "user_id", "seen_at")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_oidc_identities_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_oidc_identities")),
        sa.UniqueConstraint("user_id", name=op.f("uq_oidc_identities_user_id")),
    )
    op.create_table(
        "oidc_grants",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("user_id", "vault", "role")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_oidc_grants_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "vault", "role", name=op.f("pk_oidc_grants")),
    )


def _logins() -> None:
    op.create_table(
        "oidc_logins",
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("id", "kind", "digest", "envelope", "expires_at")
        ),
        sa.Column("interval_seconds", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oidc_logins")),
    )
    op.create_index(op.f("ix_oidc_logins_expires_at"), "oidc_logins", ["expires_at"], unique=False)
    op.create_table(
        "login_settings",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("one_session", sa.Integer(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_login_settings_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_settings")),
    )
