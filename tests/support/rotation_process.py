"""A rotation of the vault key in a process of its own, to be killed at a mark.

``python -m support.rotation_process ROOT``; see tests/fault/test_rotation_killed.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import FakeClock
from secondsite.journal.key_rotation import delete_replaced, reseal
from secondsite.journal.keys import VaultKey
from secondsite.journal.page_write import write_log_page
from secondsite.journal.store import StoreLocked
from support.merge_process import small_pages
from support.promotion_process import open_journal


def locked(error: StoreLocked) -> None:
    raise AssertionError(error)


def run(root: Path) -> None:
    """Both halves, as a gateway does them, then the pages of the log again."""
    small_pages()
    journal, _ = open_journal(root)
    vault = VaultKey.load(root / "vault.key")
    reseal(journal, vault, claimant="gateway-b", clock=FakeClock())
    delete_replaced(journal, vault, on_locked=locked)
    while write_log_page(journal, without=set()):
        pass


if __name__ == "__main__":
    run(Path(sys.argv[1]))
