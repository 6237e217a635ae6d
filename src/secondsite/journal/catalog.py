"""Which machines a store has something of."""

from __future__ import annotations

from collections.abc import Iterator

from secondsite.journal.names import MACHINES, machine_prefix
from secondsite.journal.store import ObjectStore
from secondsite.model.ids import MachineId, machine_id


def machines(store: ObjectStore) -> list[MachineId]:
    """Every machine the store has something of. Costs one step per machine, not per object."""
    found: list[MachineId] = []
    after = ""
    while True:
        name = next(_first(store, after), None)
        if name is None:
            return found
        machine = machine_id(name.split("/")[1])
        found.append(machine)
        after = machine_prefix(machine)[:-1] + "0"  # "0" is the character after "/"


def _first(store: ObjectStore, after: str) -> Iterator[str]:
    yield from store.list(MACHINES, after=after)
