"""How often a person had a job tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column. Jobs of before, also those of older backups, were never counted: none."""
    op.add_column("jobs", sa.Column("retries", sa.Integer(), nullable=False, server_default="0"))
