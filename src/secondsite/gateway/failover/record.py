"""Failovers as records: what will be done is written first. ``<state>/failovers/<id>.json``."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from secondsite.base import files
from secondsite.base.parse import JSON_ERRORS
from secondsite.fabrics.base import Recovered
from secondsite.gateway.messages.failover import FailoverStatus, OldMachine
from secondsite.gateway.messages.failovererrors import (
    FailoverRecordDamaged,
    FailoverRecordUnwritten,
    FailoverUnknown,
)
from secondsite.gateway.recovery.injecting import Guest
from secondsite.model.failover import STANDING, FailoverEvent, FailoverState, after
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.outlook import Outlook

# What was seen of its machine: of one that was just started, or is gone, nothing.
UNSEEN: dict[str, Any] = {"console_at": None, "userspace_at": None, "verified": (), "verified_at": None}
RECORD_BYTES_MAX = 1024 * 1024
HOLDER = "failover:"
EXPORT = "failover-"


class FailoverRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The status, and what is needed to go on after a crash."""

    status: FailoverStatus
    wanted: str  # the point, as it was asked for
    autostart: bool = False
    name_asked: str | None = None
    recovered: Recovered | None = None
    asked: Outlook | None = None  # what the machine has to be, to be compared with what it is
    bases: dict[DiskId, str] = {}
    bytes_per_second: int | None = None  # of its flattening: as the failover was asked for, then the commit
    flattened: bool = False  # its disks need no export any more
    old_machine: OldMachine | None = None  # how the machine's former copy here goes
    room_made: bool = False  # it is gone, or there was none

    @property
    def holder(self) -> str:
        """Of the pin of its point."""
        return f"{HOLDER}{self.status.id}"

    @property
    def export(self) -> str:
        """The identity of the export of its point."""
        return f"{EXPORT}{self.status.id}-{self.status.point}"


class FailoverRecords:
    """The directory of records. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._lock = threading.RLock()
        files.remove_leftovers(directory)

    def save(self, record: FailoverRecord) -> None:
        """Make a record durable. Raises FailoverRecordUnwritten."""
        path = self._path(record.status.id)
        with self._lock:
            try:
                files.replace_file(path, msgspec.json.encode(record))
            except OSError as error:
                raise FailoverRecordUnwritten(path=path, why=error.strerror or error) from None

    def get(self, identity: str) -> FailoverRecord:
        """One record. Raises FailoverUnknown, FailoverRecordDamaged."""
        path = self._path(identity)
        if not identity.isalnum():
            raise FailoverUnknown(wanted=identity[:80])
        try:
            data = files.read_limited(path, size_bytes_max=RECORD_BYTES_MAX)
            return msgspec.json.decode(data, type=FailoverRecord)
        except FileNotFoundError:
            raise FailoverUnknown(wanted=identity[:80]) from None
        except JSON_ERRORS as error:
            raise FailoverRecordDamaged(path=path, why=str(error)) from None

    def all(self) -> list[FailoverRecord]:
        """Those that can be read, oldest first."""
        found = []
        for path in self._directory.glob("*.json"):
            try:
                found.append(self.get(path.stem))
            except (FailoverRecordDamaged, FailoverUnknown):
                continue
        return sorted(found, key=lambda record: (record.status.requested_at, record.status.id))

    def damaged(self) -> list[FailoverRecordDamaged]:
        """Why those cannot be read that cannot."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                self.get(path.stem)
            except FailoverRecordDamaged as error:
                found.append(error)
            except FailoverUnknown:
                continue
        return found

    def standing(self, machine: MachineId) -> FailoverRecord | None:
        """The one that is neither over nor failed, if any."""
        for record in self.all():
            if record.status.machine == machine and record.status.state in STANDING:
                return record
        return None

    def change(self, identity: str, **changes: Any) -> FailoverRecord:
        """Change fields of a record."""
        with self._lock:
            record = msgspec.structs.replace(self.get(identity), **changes)
            self.save(record)
            return record

    def tell(self, identity: str, **changes: Any) -> FailoverRecord:
        """Change fields of its status; not its state."""
        with self._lock:
            status = self.get(identity).status
            told = msgspec.structs.replace(status, **changes, serial=status.serial + 1)
            return self.change(identity, status=told)

    def tell_of(self, seen: FailoverStatus, **changes: Any) -> FailoverRecord:
        """Change fields of its status, unless its machine was started anew since it was seen."""
        with self._lock:
            found = self.get(seen.id)
            same = found.status.booted_at == seen.booted_at
            return self.tell(seen.id, **changes) if same else found

    def move(self, identity: str, event: FailoverEvent, **changes: Any) -> FailoverRecord:
        """Carry it to the state the event leads to. Raises FailoverTransition."""
        with self._lock:
            record = self.get(identity)
            state = after(record.status.state, event, record.status.machine_name)
            return self.tell(identity, state=state, **changes)

    def _path(self, identity: str) -> Path:
        return self._directory / f"{identity}.json"


def guests_of(records: FailoverRecords) -> list[Guest]:
    """The machines that run here by a failover and have something to take into their guests."""
    return [
        Guest(
            id=status.id,
            machine=status.machine,
            name=status.name,
            settings=status.settings,
            status=status.injection,
            recovered=record.recovered,
        )
        for record in records.all()
        if (status := record.status).state in (FailoverState.COMPLETED, FailoverState.COMMITTING)
        and status.settings is not None
        and status.injection is not None
        and record.recovered is not None
    ]
