"""Opening what a point holds: its disks over their bases, and the machine's definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.gateway.target.bases import base_opener
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.manifest import open_definition
from secondsite.journal.view import PointView, open_view
from secondsite.model.ids import DiskId
from secondsite.model.machines import Definition
from secondsite.model.points import Point


class KeyFileMissing(SecondsiteError):
    """No file, or it cannot be read."""

    code = "key.file-unreadable"
    outcome = Outcome.NOT_FOUND
    happened = "The key file {path} cannot be read: {why}."
    cause = "The name is mistyped, the medium that holds it is not there, or it belongs to another user."
    action = "Give the file that holds the recovery key; without the key no replica can be opened."


def load_key(path: Path) -> VaultKey:
    """The vault key in a file.

    Raises:
        KeyFileMissing: there is none, or it cannot be read.
        KeyFileInvalid: it is damaged or another file.
    """
    try:
        return VaultKey.load(path)
    except OSError as error:
        raise KeyFileMissing(path=path, why=error.strerror or error) from None


def open_point_view(
    journal: Journal,
    number: int,
    vault: VaultKey,
    *,
    moved: Mapping[DiskId, str] | None = None,
) -> PointView:
    """The disks of a point, read-only. Pin the point before; close the view after.

    moved: where bases lie now, by disk; the others lie where the store says.

    Raises:
        BaseMoved: a base is not where it should be.
        BaseMismatch: a file is there, but not the base.
        PointUnknown: there is no such point.
    """
    state = journal.state()
    moved = moved or {}
    known = {base.disk for base in state.bases}
    for disk in moved:
        if disk not in known:
            why = f"disk {disk} of the machine has no base, everything is in the journal"
            raise InvalidInput(what=f"--base {disk}", why=why)

    keys = KeyRing(journal.store, journal.machine, vault)
    return open_view(journal, number, keys, bases=base_opener(journal, moved))


def open_point_definition(vault: VaultKey, point: Point) -> Definition:
    """The machine's definition as of a point. Raises what a wrong key or a damaged record raises."""
    return open_definition(point.definition, vault, point.machine)
