"""What a standby keeps in its state directory, and which role a server has.

    STATE/role.json              version, role: active or standby; absent: active
    STATE/running.lock           held (flock) by a server's process
    STATE/standby/id             32 hexadecimal digits: this standby
    STATE/standby/lock           held (flock) while a copy is taken, or a takeover runs
    STATE/standby/copy.json      what was verified last (`summary.Summary`), and the name of its file
    STATE/standby/NAME.ssbk      its file: a backup as it lies in the store
    STATE/standby/status.json    what was seen last (`follower.Status`)
    STATE/standby/takeover.json  a takeover that has begun (`takeover.Intent`); gone when it is done

The role is a file of its own and no setting: it changes with a takeover, and a restart must not turn it back.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.base.files import create_file, read_limited, remove_file, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import MIB
from secondsite.server.standby.errors import ServerRuns, StandbyDamaged, TakeoverBusy

VERSION = 1
FILE_BYTES_MAX = 4 * MIB
T = TypeVar("T")


class Role(enum.Enum):
    """Of a server's state directory."""

    ACTIVE = "active"
    STANDBY = "standby"


class _RoleFile(msgspec.Struct, frozen=True):
    version: int
    role: Role


class StandbyFiles:
    """The files of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.directory = state_dir / "standby"

    def role(self) -> Role:
        """Raises StandbyDamaged: a role is never guessed."""
        found = load(self.state_dir / "role.json", _RoleFile)
        return found.role if found is not None else Role.ACTIVE

    def set_role(self, role: Role) -> None:
        """From now on, also after a restart."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        save(self.state_dir / "role.json", _RoleFile(VERSION, role))

    def id(self) -> str:
        """Who this is; made at the first time."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.directory / "id"
        create_file(path, secrets.token_hex(16).encode(), mode=0o600)
        return path.read_text().strip()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the copy and the takeover. Raises TakeoverBusy."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _held(self.directory / "lock", TakeoverBusy(directory=self.directory)):
            yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A server's process, for as long as it runs. Raises ServerRuns."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _held(self.state_dir / "running.lock", ServerRuns(directory=self.state_dir)):
            yield

    def read(self, name: str, kind: type[T]) -> T | None:
        """A file below standby/; None: there is none. Raises StandbyDamaged."""
        return load(self.directory / name, kind)

    def write(self, name: str, value: object) -> None:
        """Durable when this returns."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        save(self.directory / name, value)

    def remove(self, name: str) -> None:
        """Absent is fine."""
        remove_file(self.directory / name)

    def begun(self) -> bool:
        """Whether a takeover has begun and is not done."""
        return (self.directory / "takeover.json").exists()

    def copies(self) -> list[Path]:
        """Files of copies, those of interrupted fetches among them."""
        return sorted(self.directory.glob("*.ssbk*")) if self.directory.is_dir() else []


def load(path: Path, kind: type[T]) -> T | None:
    """A JSON file; None: there is none. Raises StandbyDamaged."""
    try:
        return msgspec.json.decode(read_limited(path, size_bytes_max=FILE_BYTES_MAX), type=kind)
    except FileNotFoundError:
        return None
    except JSON_ERRORS as error:
        raise StandbyDamaged(path=path, why=str(error)) from None


def save(path: Path, value: object) -> None:
    """A JSON file, durable, readable for its owner only."""
    replace_file(path, msgspec.json.encode(value) + b"\n", mode=0o600)


@contextlib.contextmanager
def _held(path: Path, busy: SecondsiteError) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
    finally:
        os.close(fd)
