"""Backup and restore without a running server: on its machine, with its configuration and its master key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import create_file, read_limited
from secondsite.server.config import ServerConfig
from secondsite.server.database.engine import open_database
from secondsite.server.identity.envelopes import FILE_BYTES_MAX, MasterKey, open_master_key
from secondsite.server.identity.service import MASTER_KEY_NAME
from secondsite.server.survival.dump import Dumped, dump_to
from secondsite.server.survival.restore import Restored, restore_from


@dataclass(frozen=True)
class RestoredServer:
    """A restore, and where it went."""

    restored: Restored
    database: str
    master_key: Path


def backup_to_file(config: ServerConfig, out: Path, clock: Clock | None = None) -> Dumped:
    """Write a backup of a server's state, also while it runs.

    Raises MasterKeyMissing, MasterKeyUnusable, DatabaseUnavailable, SchemaUnknown or InvalidInput.
    """
    master = open_master_key(config.state_dir / MASTER_KEY_NAME, create=False)
    database = open_database(config.database_url(), clock or SystemClock())
    try:
        return dump_to(database, master, out)
    except FileExistsError:
        raise InvalidInput(what=f"the file {out}", why="it exists already") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(what=f"the file {out}", why="there is no such directory") from None
    finally:
        database.close()


def restore_server(
    config: ServerConfig, backup: Path, master_key: Path, clock: Clock | None = None
) -> RestoredServer:
    """Bring a backup into the empty database of `config`, and its master key into the state directory.

    Cut anywhere it may be run again. Raises what `restore` raises, MasterKeyUnusable, InvalidInput.
    """
    master = open_master_key(master_key, create=False)
    kept = _keep_master_key(config, master_key, master)
    database = open_database(config.database_url(), clock or SystemClock())
    try:
        return RestoredServer(restore_from(database, master, backup), database.where, kept)
    finally:
        database.close()


def _keep_master_key(config: ServerConfig, source: Path, master: MasterKey) -> Path:
    """The key at its place, before the database that needs it; never over another."""
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = config.state_dir / MASTER_KEY_NAME
    create_file(path, read_limited(source, size_bytes_max=FILE_BYTES_MAX), mode=0o600)
    if open_master_key(path, create=False).id != master.id:
        why = f"it is another one than {source}; move it away if it is of no use"
        raise InvalidInput(what=f"the master key {path}", why=why)
    return path
