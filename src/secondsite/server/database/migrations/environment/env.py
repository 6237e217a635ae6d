"""Run by alembic for each command, on the connection `migrations.config` carries."""

from __future__ import annotations

from alembic import context

from secondsite.server.database.metadata import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite changes a table only by making it anew
    transactional_ddl=True,  # SQLite's too, as we begin its transactions ourselves
)
context.run_migrations()
