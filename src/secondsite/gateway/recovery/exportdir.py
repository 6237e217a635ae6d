"""An export's directory: what its process is told, what it says, and the lock that tells whether it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from secondsite.base import files
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.model.ids import DiskId, MachineId

SPEC_BYTES_MAX = 1024 * 1024

_T = TypeVar("_T")


class ExportRecordDamaged(SecondsiteError):
    """A file of an export's directory does not parse."""

    code = "export.record-damaged"
    outcome = Outcome.DAMAGED
    happened = "{path} does not say what is exported: {why}."
    cause = "The gateway's state directory lost or changed bytes, or the file was edited by hand."
    action = (
        "Shut off the machine that stands on this export, end its process (see the file log beside it), "
        "remove the directory, and release its point with `secondsite points release`."
    )


class SocketAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Who may connect to the sockets of exports."""

    mode: int = 0o600
    user: int = -1  # -1: as the process is
    group: int = -1


class ExportSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an export's process serves; all it needs to start again by itself."""

    id: str
    machine: MachineId
    machine_name: str
    point: int
    holder: str  # of the pin
    reason: str
    store_url: str
    store_credentials: str = ""  # a file; without one the environment's, which the process inherits
    key_file: str
    socket_path: str
    access: SocketAccess
    disks: dict[DiskId, int]  # size in bytes
    bases: dict[DiskId, str] = {}  # where a base lies now, if not where the store says
    ending: bool = False


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """What a serving process says of itself."""

    process: int
    error: dict[str, str] | None = None


def read_spec(directory: Path) -> ExportSpec | None:
    """The spec in an export's directory; None when it is gone. Raises ExportRecordDamaged."""
    with contextlib.suppress(FileNotFoundError):
        return _read(directory / "spec.json", ExportSpec)
    return None


def write_run(directory: Path, state: RunState) -> None:
    """Tell the gateway how the process does."""
    files.replace_file(directory / "run.json", msgspec.json.encode(state))


def read_run(directory: Path) -> RunState | None:
    """What the process said last; None: nothing yet. Raises ExportRecordDamaged."""
    with contextlib.suppress(FileNotFoundError):
        return _read(directory / "run.json", RunState)
    return None


def _read(path: Path, kind: type[_T]) -> _T:
    data = files.read_limited(path, size_bytes_max=SPEC_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=kind)
    except JSON_ERRORS as error:
        raise ExportRecordDamaged(path=path, why=error) from None


def take_lock(directory: Path) -> int | None:
    """Become the process that serves: a descriptor to keep open, or None when another one does."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_served(directory: Path) -> bool:
    """Whether a process serves this export (the kernel releases its lock however it ends)."""
    fd = take_lock(directory)
    if fd is None:
        return True
    os.close(fd)
    return False
