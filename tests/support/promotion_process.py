"""A promotion in a process of its own, to be killed at a mark.

``python -m support.promotion_process ROOT NUMBER``; see tests/fault/test_promotion_killed.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import FakeClock
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.promote import promote
from secondsite.journal.state import BaseState
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import DiskId
from support.journal_model import MACHINE


def open_journal(root: Path) -> tuple[Journal, KeyRing]:
    """The journal below `root`: store and vault.key."""
    store, vault = LocalStore(root / "store"), VaultKey.load(root / "vault.key")
    return Journal(store, MACHINE, vault), KeyRing(store, MACHINE, vault)


def base_path(root: Path, disk: DiskId) -> Path:
    """Where a disk's base lies; the directory is copied, so what the state says does not hold."""
    return root / f"{disk}.raw"


def run(root: Path, number: int) -> None:
    """Promote up to point `number`."""
    journal, keys = open_journal(root)

    def open_base(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        path = base_path(root, disk)
        return RawBase(path) if known else RawBase.create(path, size_bytes)

    promote(journal, number, keys, open_base, clock=FakeClock())


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
