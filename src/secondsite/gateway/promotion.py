"""Where first copies become bases: raw images under a directory of the target pool."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from secondsite.base.files import fsync_directory
from secondsite.journal.bases import BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.promote import OpenBase
from secondsite.journal.state import BaseState
from secondsite.model.ids import DiskId


def bases_under(directory: Path) -> Callable[[Journal], OpenBase]:
    """Opens a journal's bases for writing, and makes them below `directory`."""

    def of(journal: Journal) -> OpenBase:
        def open_base(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
            if known is not None:
                return RawBase(known.locator)
            return _make(directory, journal, disk, size_bytes)

        return open_base

    return of


def _make(directory: Path, journal: Journal, disk: DiskId, size_bytes: int) -> BaseImage:
    mine = directory / journal.machine
    mine.mkdir(parents=True, exist_ok=True, mode=0o711)
    fsync_directory(directory)  # what a base holds is nowhere else once its segments are gone
    # what a crash left before the state knew it: ours by its place, and empty by the order of promotion
    registered = {Path(base.locator) for base in journal.state().bases}
    for left in mine.glob(f"{disk}.*.raw"):
        if left not in registered and left.stat().st_blocks == 0:
            left.unlink()
    return RawBase.create(mine / f"{disk}.{secrets.token_hex(4)}.raw", size_bytes)
