"""Backups of servers in a store: what is there, and one of them as a file."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.units import MIB
from secondsite.journal.store import ObjectMissing, ObjectStore
from secondsite.journal.stores import open_store
from secondsite.server.survival.container import HEADER, read_head
from secondsite.server.survival.errors import BackupDamaged
from secondsite.transfer.backups import BACKUP_BYTES_MAX, STORE_PREFIX

COPY_BYTES = 8 * MIB
KINDS = ("backups", "copies")


class BackupNotInStore(SecondsiteError):
    """None, or more than one server's."""

    code = "server-backup.not-in-store"
    outcome = Outcome.NOT_FOUND
    happened = "The store {store} has no backup to restore: {why}."
    cause = "Another store holds them, or backups of several servers lie there."
    action = "See `secondsite server backups --store URL`, and name one of them with --backup."


class StoredBackup(msgspec.Struct, frozen=True, rename="camel"):
    """A backup in a store, as its header says: not yet checked."""

    name: str
    server: str
    made_at: str
    incarnation: int
    size: int
    master_key: str  # id of the key that opens it
    problem: str = ""
    kind: str = "backups"  # or copies: made for standby servers, whenever something changed

    @property
    def key(self) -> str:
        """Its name in the store."""
        return f"{STORE_PREFIX}{self.server}/{self.kind}/{self.name}"


def stored_backups(
    store: ObjectStore, known: Mapping[str, StoredBackup] | None = None
) -> Iterator[StoredBackup]:
    """Every one, by server, oldest first. known: by their keys, what was read before and never changes."""
    for key in store.list(STORE_PREFIX):
        server, kind, name = [*key.removeprefix(STORE_PREFIX).split("/", 2), "", ""][:3]
        if kind not in KINDS or not name:
            continue
        if known is not None and key in known:
            yield known[key]
            continue
        try:
            size = store.size(key)
            head = read_head(io.BytesIO(store.read(key, 0, HEADER.size)), name)
        except ObjectMissing:  # the oldest one went meanwhile
            continue
        except (BackupDamaged, EOFError) as error:
            yield StoredBackup(name, server, "", 0, size, "", str(error), kind)
            continue
        made = datetime.fromtimestamp(head.made_at / 1_000_000, UTC).isoformat()
        yield StoredBackup(name, server, made, head.incarnation, size, head.master.hex(), kind=kind)


def choose(store: ObjectStore, wanted: str | None) -> StoredBackup:
    """The named one, or the newest where all are of one server. Raises BackupNotInStore."""
    found = list(stored_backups(store))
    if wanted is not None:
        found = [one for one in found if one.name == wanted]
        if not found:
            raise BackupNotInStore(store=store.url, why=f"none is named {wanted}")
        return found[0]
    sound = [one for one in found if not one.problem]
    if not sound:
        raise BackupNotInStore(store=store.url, why="there is none that can be read")
    if len({one.server for one in sound}) > 1:
        raise BackupNotInStore(store=store.url, why="there are backups of several servers")
    # a restored server's count more than what an older life of it left behind later
    return max(sound, key=lambda one: (one.incarnation, one.made_at))


@contextlib.contextmanager
def fetched(url: str, wanted: str | None, credentials: Path | None, directory: Path) -> Iterator[Path]:
    """A backup of a store as a file in `directory`, for the block. Raises BackupNotInStore, BackupDamaged."""
    store = open_store(url, create=False, credentials=credentials)
    try:
        chosen = choose(store, wanted)
        if chosen.size > BACKUP_BYTES_MAX:
            raise BackupDamaged(what=chosen.name, why=f"it has {chosen.size} bytes")
        with tempfile.TemporaryDirectory(prefix="restore-", dir=directory) as made:
            path = Path(made) / chosen.name
            with path.open("wb") as file:
                copy_object(store, chosen.key, chosen.size, file)
            yield path
    finally:
        store.close()


def copy_object(store: ObjectStore, key: str, size: int, file: BinaryIO) -> None:
    """An object's bytes into a file. Raises what the store raises."""
    file.writelines(
        store.read(key, start, min(COPY_BYTES, size - start)) for start in range(0, size, COPY_BYTES)
    )
