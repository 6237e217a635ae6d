"""A promotion in a process of its own, to be killed at a mark.

``python -m support.promotion_process ROOT NUMBER [qcow2]``; see tests/fault/test_promotion_killed.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import FakeClock
from secondsite.gateway.target.qcow2 import Qcow2Base
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


def base_path(root: Path, disk: DiskId, base_format: str = "raw") -> Path:
    """Where a disk's base lies; the directory is copied, so what the state says does not hold."""
    return root / f"{disk}.{base_format}"


def open_base(path: Path, *, read_only: bool = False) -> BaseImage:
    """An existing base, its format told from its name."""
    if path.suffix == ".qcow2":
        return Qcow2Base(path, read_only=read_only)
    return RawBase(path, read_only=read_only)


def run(root: Path, number: int, base_format: str = "raw") -> None:
    """Promote up to point `number`."""
    journal, keys = open_journal(root)

    def opened(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        path = base_path(root, disk, base_format)
        if known:
            return open_base(path)
        kind = Qcow2Base if base_format == "qcow2" else RawBase
        return kind.create(path, size_bytes)

    promote(journal, number, keys, opened, clock=FakeClock())


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
