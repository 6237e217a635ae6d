"""Machines of a made-up site."""

from __future__ import annotations

from secondsite.fabrics.memory import MemoryFabric
from secondsite.model.ids import MachineId

SHOP = MachineId("5b1d6bd4-54a8-4f7c-9a3e-2f6a4b0c1d2e")
MAIL = MachineId("0a9b8c7d-6e5f-4a3b-8c1d-0e9f8a7b6c5d")
MIB = 1024 * 1024


def memory_fabric() -> MemoryFabric:
    """Two machines, one of two disks; nothing written yet."""
    fabric = MemoryFabric()
    fabric.add_machine("shop", {"vda": 8 * MIB, "vdb": 4 * MIB}, machine=SHOP)
    fabric.add_machine(
        "mail", {"vda": 4 * MIB}, machine=MAIL, unprotectable=["it has a passed-through device"]
    )
    return fabric
