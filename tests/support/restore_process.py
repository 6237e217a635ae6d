"""``python -m support.restore_process URL BACKUP MASTER_KEY``: a restore, for tests that kill it."""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.server.database.engine import open_database
from secondsite.server.identity.envelopes import open_master_key
from secondsite.server.survival.restore import restore_from

if __name__ == "__main__":
    database = open_database(sys.argv[1], SystemClock())
    restore_from(database, open_master_key(Path(sys.argv[3]), create=False), Path(sys.argv[2]))
