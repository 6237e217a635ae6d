"""A merge, its deletions and the pages after it in a process of its own, to be killed at a mark.

``python -m support.merge_process ROOT AFTER LAST``; see tests/fault/test_merge_killed.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import FakeClock
from secondsite.journal import chain_load, log_pages, page_catalog, page_write, pages
from secondsite.journal.merge import NotMergeable, abandon, merge
from secondsite.journal.page_write import delete_pages, write_log_page, write_page
from secondsite.journal.sweep import delete_retired, garbage
from support.promotion_process import open_journal


def small_pages() -> None:
    """Pages of few records, here and in whoever reads them."""
    for module in (pages, page_catalog, page_write):
        module.LEVELS = (4, 16)  # type: ignore[attr-defined]
    for module in (log_pages, chain_load, page_write):
        module.RECORDS = 4  # type: ignore[attr-defined]


def run(root: Path, after: int, last: int) -> None:
    """What the upkeep of a journal does, once."""
    small_pages()
    journal, keys = open_journal(root)
    clock = FakeClock()
    abandon(journal)
    try:
        merge(journal, after, last, keys, clock=clock)
    except NotMergeable:
        assert any(span.last == last for span in journal.state().spans), "done by the process before"
    delete_pages(journal)
    delete_retired(journal, clock=clock)
    for name in garbage(journal):
        journal.store.delete(name)
    while write_log_page(journal, without=set()) or write_page(journal, keys, without=set()):
        pass


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
