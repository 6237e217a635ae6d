"""The journals of one store, each kept open: whoever shares them reads a chain whole once, then what is new.

A chain of a day's points at 5 s takes 0.4 s of processor time to read and some 50 MiB to keep.
"""

from __future__ import annotations

import threading

from secondsite.journal.chain import Journal
from secondsite.journal.keys import VaultKey
from secondsite.journal.store import ObjectStore
from secondsite.model.ids import MachineId


class OpenJournals:
    """Thread-safe, as its journals are."""

    def __init__(self, store: ObjectStore, vault: VaultKey) -> None:
        self._store = store
        self._vault = vault
        self._lock = threading.Lock()
        self._open: dict[MachineId, Journal] = {}

    def of(self, machine: MachineId) -> Journal:
        """The machine's; it remembers the records it has checked."""
        with self._lock:
            if machine not in self._open:
                self._open[machine] = Journal(self._store, machine, self._vault)
            return self._open[machine]

    def forget(self, machine: MachineId) -> None:
        """Its replica was deleted."""
        with self._lock:
            self._open.pop(machine, None)
