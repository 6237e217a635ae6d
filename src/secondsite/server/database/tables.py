"""Every area's tables, so that `METADATA` is whole where it is compared or made."""

from __future__ import annotations

from secondsite.server.database import (
    tables_calls,
    tables_events,
    tables_failovers,
    tables_identity,
    tables_inventory,
    tables_items,
    tables_jobs,
    tables_logins,
    tables_mappings,
    tables_people,
    tables_policies,
    tables_settings,
    tables_survival,
)
from secondsite.server.database.metadata import METADATA

__all__ = [
    "METADATA",
    "tables_calls",
    "tables_events",
    "tables_failovers",
    "tables_identity",
    "tables_inventory",
    "tables_items",
    "tables_jobs",
    "tables_logins",
    "tables_mappings",
    "tables_people",
    "tables_policies",
    "tables_settings",
    "tables_survival",
]
