"""Protection in the other direction, and groups of operations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the columns. Children of before were begun before their parents were tried again; items of before
    are at their first site.
    """
    op.add_column("protected_items", sa.Column("home", sa.Text(), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("parent_retries", sa.Integer(), nullable=False, server_default="0"))
