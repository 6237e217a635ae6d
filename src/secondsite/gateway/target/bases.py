"""Where a store's bases lie and how they are opened: raw and qcow2 images in a pool of the target site."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import fsync_directory, remove_file, remove_leftovers
from secondsite.gateway.target.qcow2 import Qcow2Base, is_empty
from secondsite.journal.bases import BaseFailed, BaseImage, RawBase
from secondsite.journal.chain import Journal
from secondsite.journal.promote import OpenBase
from secondsite.journal.state import BaseState
from secondsite.journal.view import BaseOf
from secondsite.model.ids import DiskId, MachineId

BaseFormat = Literal["raw", "qcow2"]


class BaseMoved(SecondsiteError):
    """Nothing is where the base was last."""

    code = "base.moved"
    outcome = Outcome.NOT_FOUND
    happened = "The base of disk {disk} is not at {locator}."
    cause = "It was moved, its volume is not mounted, or this is another machine than the one that kept it."
    action = (
        "Say where it is now with --base {disk}=PATH; it is checked. See RUNBOOK.md, rescue without a server."
    )


def open_base(known: BaseState, moved: str | None = None) -> BaseImage:
    """A base the store knows, for reading; moved: where it lies now.

    Raises:
        BaseMoved: nothing is there. BaseFailed: it cannot be opened.
    """
    path = Path(moved or known.locator)
    if not path.exists():
        raise BaseMoved(disk=known.disk, locator=path)
    if known.format == "qcow2":
        return Qcow2Base(path, read_only=True)
    _check_raw(known)
    return RawBase(path, read_only=True)


def base_opener(journal: Journal, moved: Mapping[DiskId, str] | None = None) -> BaseOf:
    """Opens a machine's bases, read-only, where the store says they are now, or where they were moved to."""

    def of(disk: DiskId) -> BaseImage | None:
        known = journal.state().base(disk)
        return None if known is None else open_base(known, (moved or {}).get(disk))

    return of


def open_base_for_writing(known: BaseState) -> BaseImage:
    """A base the store knows, for promotion. Raises BaseFailed."""
    if known.format == "qcow2":
        return Qcow2Base(known.locator)
    _check_raw(known)
    return RawBase(known.locator)


def bases_under(directory: Path, base_format: BaseFormat = "raw") -> Callable[[Journal], OpenBase]:
    """Opens a journal's bases for writing, and makes new ones below `directory`, of the format given."""

    def of(journal: Journal) -> OpenBase:
        def open_or_make(disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
            if known is not None:
                return open_base_for_writing(known)
            return _make(directory, journal, disk, size_bytes, base_format)

        return open_or_make

    return of


def remove_images(
    directory: Path | None, machine: MachineId, known: Sequence[Path], *, alone: bool
) -> list[Path]:
    """Remove images of a machine that lie in its own directory; gone already is fine. Returns the others.

    alone: nothing else of the machine is to stay there, so the directory goes as well.
    """
    mine = directory / machine if directory is not None else None
    elsewhere = [path for path in known if path.parent != mine]
    if mine is None or not mine.is_dir():
        return elsewhere
    for path in known:
        if path.parent == mine:
            remove_file(path)
            remove_file(
                path.with_name(f".{path.name}.secondsite")
            )  # its identity, where it is kept beside it
    if alone:
        for path in sorted(mine.iterdir()):
            remove_file(path)
        with contextlib.suppress(OSError):  # somebody put a directory there
            mine.rmdir()
    return elsewhere


def _check_raw(known: BaseState) -> None:
    if known.format != "raw":
        why = f"its format is {known.format}, which this version does not know"
        raise BaseFailed(locator=known.locator, why=why)


def _make(
    directory: Path, journal: Journal, disk: DiskId, size_bytes: int, base_format: BaseFormat
) -> BaseImage:
    mine = directory / journal.machine
    mine.mkdir(parents=True, exist_ok=True, mode=0o711)
    fsync_directory(directory)  # what a base holds is nowhere else once its segments are gone
    # what a crash left before the state knew it: ours by its name, and empty by the order of promotion
    registered = {Path(base.locator) for base in journal.state().bases}
    # an identifier may hold dots: another disk's may begin as this one's
    own = re.compile(rf"{re.escape(disk)}\.[0-9a-f]{{8}}\.(raw|qcow2)")
    remove_leftovers(mine)
    for left in mine.iterdir():
        if own.fullmatch(left.name) and left not in registered and _holds_nothing(left):
            left.unlink()
    path = mine / f"{disk}.{secrets.token_hex(4)}.{base_format}"
    if base_format == "qcow2":
        return Qcow2Base.create(path, size_bytes)
    return RawBase.create(path, size_bytes)


def _holds_nothing(path: Path) -> bool:
    if path.suffix == ".raw":
        return path.stat().st_blocks == 0
    return is_empty(path)
