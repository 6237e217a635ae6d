"""Reversals as records, one a machine: ``<state>/reversals/<machine>.json``, written before all else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pydantic

from secondsite.base import files
from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.common.desired import Protection, decode_hook, encode_hook
from secondsite.gateway.messages.adoption import AdoptImage
from secondsite.gateway.messages.reverse import ReverseState, ReverseStatus
from secondsite.gateway.messages.reverseerrors import ReverseDamaged
from secondsite.model.ids import DiskId, MachineId, machine_id

RECORD_BYTES_MAX = 1024 * 1024


class ReverseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The status, and what is needed to go on after a crash, or to take it back."""

    status: ReverseStatus
    images: dict[DiskId, AdoptImage] = {}
    protection: Protection | None = None  # of the machine here, as it was
    holding: bool = False  # the store said whose the machine is, which holds sources that were left behind
    known: int | None = None  # `Claim.known`, as far as more than the store here says it; None: not noted


class ReverseRecords:
    """The directory of records. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._lock = threading.RLock()
        files.remove_leftovers(directory)

    def save(self, record: ReverseRecord) -> ReverseRecord:
        """Make it durable."""
        with self._lock:
            data = msgspec.json.encode(record, enc_hook=encode_hook)
            files.replace_file(self._path(record.status.machine), data)
        return record

    def get(self, machine: MachineId) -> ReverseRecord | None:
        """A machine's; None: it never was reversed onto. Raises ReverseDamaged."""
        path = self._path(machine)
        try:
            data = files.read_limited(path, size_bytes_max=RECORD_BYTES_MAX)
            return msgspec.json.decode(data, type=ReverseRecord, dec_hook=decode_hook)
        except FileNotFoundError:
            return None
        except (*JSON_ERRORS, pydantic.ValidationError) as error:
            raise ReverseDamaged(path=path, why=str(error)) from None

    def at_work(self, machine: MachineId) -> ReverseRecord:
        """One that is there, since it is worked on."""
        record = self.get(machine)
        assert record is not None, "its record was written first"
        return record

    def status(self, machine: MachineId) -> ReverseStatus:
        """Of one that is there."""
        return self.at_work(machine).status

    def move(self, machine: MachineId, states: Sequence[ReverseState], to: ReverseState) -> bool:
        """From one of these states to another; False where it is in none of them."""
        with self._lock:
            found = self.status(machine).state in states
            if found:
                self.tell(machine, state=to, note="")
            return found

    def tell(self, machine: MachineId, **changes: Any) -> ReverseStatus:
        """Change fields of the status of one that is there."""
        with self._lock:
            record = self.at_work(machine)
            status = msgspec.structs.replace(record.status, **changes)
            return self.save(msgspec.structs.replace(record, status=status)).status

    def all(self) -> tuple[list[ReverseRecord], list[ReverseDamaged]]:
        """Those that can be read, and why the others cannot."""
        found, damaged = [], []
        for path in sorted(self._directory.glob("[0-9a-f]*.json")):
            try:
                record = self.get(machine_id(path.stem))
            except ReverseDamaged as error:
                damaged.append(error)
                continue
            if record is not None:
                found.append(record)
        return found, damaged

    def _path(self, machine: MachineId) -> Path:
        return self._directory / f"{machine}.json"
