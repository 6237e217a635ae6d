"""What a gateway is to do: the protections, in one JSON file that is replaced whole.

The file is the gateway's desired state; a server will fill the same structure later. The loops converge to it
after every change and at every start, so a crash between writing it and acting on it costs nothing.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.model.ids import DiskId, MachineId, machine_id
from secondsite.model.machines import Mapping

VERSION = 1
FILE_BYTES_MAX = 16 * MIB


class DesiredDamaged(SecondsiteError):
    """The file does not parse."""

    code = "desired.damaged"
    outcome = Outcome.DAMAGED
    happened = "The desired state {path} cannot be read: {why}."
    cause = "It was edited by hand, or its volume was damaged."
    action = (
        "Correct it or restore it from a copy; else protect the machines again. See RUNBOOK.md, gateway lost."
    )


class Protection(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One machine that is to be protected."""

    machine: MachineId
    name: str
    peer: str
    disks: tuple[DiskId, ...] | None = None  # None: all
    copy_frequency_seconds: float = 5.0
    application_consistent_frequency_seconds: float | None = None
    compression_level: int = 1
    mapping: Mapping = Mapping()
    # False: it is being unprotected; the entry stays until everything of ours is removed
    enabled: bool = True


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    protections: tuple[Protection, ...] = ()


class DesiredState:
    """The file. Thread-safe; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises DesiredDamaged."""
        self._path = path
        self._lock = threading.Lock()
        self._protections = {p.machine: p for p in self._read()}

    def all(self) -> list[Protection]:
        """Every protection, by name."""
        with self._lock:
            return sorted(self._protections.values(), key=lambda p: (p.name, p.machine))

    def get(self, machine: MachineId) -> Protection | None:
        """One of them."""
        with self._lock:
            return self._protections.get(machine)

    def put(self, protection: Protection) -> None:
        """Add or replace one; durable when this returns."""
        with self._lock:
            changed = {**self._protections, protection.machine: protection}
            self._write(changed)
            self._protections = changed

    def remove(self, machine: MachineId) -> None:
        """Take one out; absent is fine."""
        with self._lock:
            changed = {m: p for m, p in self._protections.items() if m != machine}
            self._write(changed)
            self._protections = changed

    def _read(self) -> tuple[Protection, ...]:
        try:
            data = read_limited(self._path, size_bytes_max=FILE_BYTES_MAX)
            found = msgspec.json.decode(data, type=_File)
        except FileNotFoundError:
            return ()
        except JSON_ERRORS as error:
            raise DesiredDamaged(path=self._path, why=str(error)) from None
        if found.version != VERSION:
            raise DesiredDamaged(path=self._path, why=f"its version is {found.version}, not {VERSION}")
        for protection in found.protections:
            machine_id(protection.machine)
        return found.protections

    def _write(self, protections: dict[MachineId, Protection]) -> None:
        file = _File(version=VERSION, protections=tuple(protections.values()))
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path, msgspec.json.format(msgspec.json.encode(file)))
