"""Pins: what keeps a point from being promoted away while somebody reads it.

A pin is in the store, in the machine's own compare-and-set record, before the first byte of the point is
served, and leaves it only after the last reader is gone (rule 6). It has no end of its own: the holder is a
record of ours that survives restarts, and an operator sees it in `secondsite status`.
"""

from __future__ import annotations

from collections.abc import Callable

from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model.ids import MachineId


class Pins:
    """Takes and releases pins; both may be repeated."""

    def __init__(
        self, store: ObjectStore, vault: VaultKey, journal: Callable[[MachineId], Journal] | None = None
    ) -> None:
        """journal: hands out journals that are kept open; without it each pin reads the whole chain anew."""
        self._journal = journal or (lambda machine: Journal(store, machine, vault))

    def take(self, machine: MachineId, point: int, *, holder: str, reason: str) -> None:
        """Keep `point` readable. Raises when it does not exist or is below the floor already."""
        self._journal(machine).pin(point, holder=holder, reason=reason, until=None)

    def release(self, machine: MachineId, *, holder: str) -> None:
        """Let go; a holder without a pin is fine."""
        self._journal(machine).unpin(holder)
