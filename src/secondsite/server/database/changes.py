"""Counts what a server changes that is worth a new copy of its state: standbys cost what changes.

Left out is what is of the moment, what gateways tell again by themselves, and what a copy itself writes: else
every heartbeat would make a copy, and every copy the next one.
"""

from __future__ import annotations

import re
import threading

import sqlalchemy as sa
from sqlalchemy.engine import Engine

# Gateways report all of this anew within a minute, keep their events until a server has them, or it is read
# from them again. The hourly backup has it.
OF_THE_MOMENT = frozenset(
    {
        "alert_cursor",
        "calls",
        "enrolment_proofs",
        "event_logs",
        "events",
        "events_head",
        "gateway_contacts",
        "gateway_silences",
        "gateway_trust",
        "health_changes",
        "inventory_objects",
        "inventory_reads",
        "item_replicas",
        "item_reports",
        "job_workers",
        "oidc_logins",
        "rpo_intervals",
        "server_backup_parts",
        "server_backups",
        "server_copies",
        "server_standbys",
    }
)
# The table a statement writes to; the words are SQLAlchemy's, and ours where SQL is written by hand.
_WRITES = re.compile(
    r'\s*(?:WITH\b.*?)?\b(?:INSERT INTO|UPDATE|DELETE FROM)\s+"?(\w+)', re.IGNORECASE | re.DOTALL
)
# When a token was last used: written every few minutes while anybody looks at a page.
_USED = re.compile(r"UPDATE tokens SET used_at=\S+ WHERE")


class Changes:
    """Of one server's connections. Thread-safe. Begins at 1: what changed before is not known."""

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._local = threading.local()
        self._count = 1
        sa.event.listen(engine, "after_cursor_execute", self._executed)

    @property
    def count(self) -> int:
        """Grows after every transaction that changed something, also after one of which that is not known."""
        return self._count

    def ended(self) -> None:
        """This thread's transaction is over, however it ended: what it changed counts from now on."""
        # not before: a copy made in between would have the number and not the change
        if getattr(self._local, "changed", False):
            self._local.changed = False
            with self._lock:
                self._count += 1

    def _executed(self, _connection: object, cursor: object, statement: str, *_rest: object) -> None:
        # What looks for work by an update changes nothing most of the time. How many rows a statement that
        # returns some has changed is not known before they are read (sqlite3, Cursor.rowcount).
        nothing = getattr(cursor, "rowcount", -1) == 0 and "RETURNING" not in statement
        if not nothing and counts(statement):
            self._local.changed = True


def counts(statement: str) -> bool:
    """Whether an SQL statement changes something that is worth a copy."""
    found = _WRITES.match(statement)
    return found is not None and found[1].lower() not in OF_THE_MOMENT and not _USED.match(statement)
