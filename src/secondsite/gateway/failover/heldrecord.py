"""Held sources as records, one a machine: ``<state>/held/<machine>.json``, written before all else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from secondsite.base import files
from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.messages.failover import HeldMachine
from secondsite.gateway.messages.failovererrors import HeldRecordDamaged
from secondsite.model.ids import MachineId, machine_id
from secondsite.model.points import Claim, known_epoch

RECORD_BYTES_MAX = 64 * 1024


class HeldRecords:
    """The directory of records. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._lock = threading.RLock()
        files.remove_leftovers(directory)

    def save(self, held: HeldMachine) -> HeldMachine:
        """Make it durable."""
        with self._lock:
            files.replace_file(self._path(held.machine), msgspec.json.encode(held))
        return held

    def get(self, machine: MachineId) -> HeldMachine | None:
        """A machine's; None: it never was held. Raises HeldRecordDamaged."""
        path = self._path(machine)
        try:
            data = files.read_limited(path, size_bytes_max=RECORD_BYTES_MAX)
            return msgspec.json.decode(data, type=HeldMachine)
        except FileNotFoundError:
            return None
        except JSON_ERRORS as error:
            raise HeldRecordDamaged(path=path, why=str(error)) from None

    def change(self, machine: MachineId, **changes: Any) -> HeldMachine:
        """Change fields of one that is there."""
        with self._lock:
            held = self.get(machine)
            assert held is not None, "changed only what was found"
            return self.save(msgspec.structs.replace(held, **changes))

    def all(self) -> tuple[list[HeldMachine], list[HeldRecordDamaged]]:
        """Those that can be read, by name, and why the others cannot."""
        found, damaged = [], []
        # one that is being replaced has a temporary beside it, whose name begins with a dot
        for path in sorted(self._directory.glob("[0-9a-f]*.json")):
            try:
                held = self.get(machine_id(path.stem))
            except HeldRecordDamaged as error:
                damaged.append(error)
                continue
            if held is not None:
                found.append(held)
        return sorted(found, key=lambda held: (held.name, held.machine)), damaged

    def _path(self, machine: MachineId) -> Path:
        return self._directory / f"{machine}.json"


def known_after(held: HeldMachine, claim: Claim) -> int:
    """Up to which epoch it is known whose the machine is, once that claim was seen as well."""
    return max(held.known(), known_epoch(claim))
