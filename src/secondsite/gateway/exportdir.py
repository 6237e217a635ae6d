"""An export's directory: what its process is told, what it says, and the lock that tells whether it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from secondsite.base import files
from secondsite.model.ids import DiskId, MachineId

SPEC_BYTES_MAX = 1024 * 1024


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
    """The spec in an export's directory; None when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        data = files.read_limited(directory / "spec.json", size_bytes_max=SPEC_BYTES_MAX)
        return msgspec.json.decode(data, type=ExportSpec)
    return None


def write_run(directory: Path, state: RunState) -> None:
    """Tell the gateway how the process does."""
    files.replace_file(directory / "run.json", msgspec.json.encode(state))


def read_run(directory: Path) -> RunState | None:
    """What the process said last."""
    with contextlib.suppress(FileNotFoundError):
        data = files.read_limited(directory / "run.json", size_bytes_max=SPEC_BYTES_MAX)
        return msgspec.json.decode(data, type=RunState)
    return None


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
