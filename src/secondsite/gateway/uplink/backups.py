"""Keeps backups of the server in this gateway's store: fetched in parts, checked, then visible at once."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.uplink.enrolclient import ServerClient
from secondsite.journal.store import ObjectExists, ObjectStore, StagedObject, StoreLocked
from secondsite.model.events import EventSink, Severity
from secondsite.transfer.backups import (
    PART_BYTES,
    PATH_PARTS,
    KeepBackup,
    KeptBackup,
    backups_prefix,
    check_keep,
    copies_prefix,
)


class BackupCopyWrong(SecondsiteError):
    """What came is not what was announced."""

    code = "server-backup.copy-wrong"
    outcome = Outcome.UNAVAILABLE
    happened = "The backup {name} of the server did not arrive as it was announced: {why}."
    cause = "It was changed on its way, or the server took it back meanwhile."
    action = "Nothing: it is asked for again, and the next one follows within the hour."


class NoStoreForBackups(SecondsiteError):
    """This gateway keeps no replicas."""

    code = "server-backup.no-store"
    outcome = Outcome.REFUSED
    happened = "This gateway has no store to keep a backup of the server in."
    cause = "Its configuration names none; the other site's gateway may have one."
    action = "Nothing, where another gateway keeps it; else add `store` to this one's configuration."


@dataclass
class ServerBackups:
    """Of one gateway with a store and a server. Thread-safe; one copy at a time."""

    store: ObjectStore
    open_client: Callable[[], ServerClient]
    events: EventSink

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def take(self, name: str, asked: KeepBackup) -> KeptBackup:
        """Have the backup in the store, and the oldest ones beyond `keep` out of it. Again is fine.

        Raises InvalidInput, BackupCopyWrong, or what store and server raise; bytes so far are kept for the
        next try.
        """
        check_keep(name, asked)
        prefix = copies_prefix(asked.server) if asked.copy else backups_prefix(asked.server)
        with self._lock:
            with contextlib.suppress(ObjectExists):  # it is there: the answer was lost
                self._copy(name, prefix + name, asked)
            removed = self._thin(prefix, asked.keep, quiet=asked.copy)
        return KeptBackup(store=self.store.url, removed=tuple(removed))

    def _copy(self, name: str, key: str, asked: KeepBackup) -> None:
        staged = self.store.stage(key)
        client = self.open_client()
        try:
            digest = _hash_so_far(staged, name)
            while staged.offset < asked.size:
                path = f"{PATH_PARTS}/{asked.backup}/parts/{staged.offset // PART_BYTES}"
                part = client.request("GET", path, None)
                left = asked.size - staged.offset
                if len(part) != min(PART_BYTES, left):
                    staged.discard()
                    raise BackupCopyWrong(name=name, why=f"a part has {len(part)} bytes")
                digest.update(part)
                staged.append(part)
            if staged.offset != asked.size or digest.hexdigest() != asked.sha256:
                staged.discard()
                raise BackupCopyWrong(name=name, why="its hash is another")
            staged.publish()
        finally:
            client.close()
            staged.close()
        if (
            asked.copy
        ):  # one a minute while somebody works: no event each, the server tells when they are late
            return
        text = f"backup {name} of the server is in {self.store.url}: {asked.size} bytes"
        self.events.emit("server-backup.kept", Severity.INFORMATION, text)

    def _thin(self, prefix: str, keep: int, *, quiet: bool) -> list[str]:
        names = list(self.store.list(prefix))
        removed = []
        for key in names[: max(0, len(names) - keep)]:
            with contextlib.suppress(StoreLocked):  # it goes another time
                self.store.delete(key)
                removed.append(key.removeprefix(prefix))
        if removed and not quiet:
            text = f"{len(removed)} old backups of the server were removed; the newest {keep} stay"
            self.events.emit("server-backup.removed", Severity.INFORMATION, text)
        return removed


def _hash_so_far(staged: StagedObject, name: str) -> hashlib._Hash:
    digest = hashlib.sha256()
    if staged.offset % PART_BYTES:  # a part was cut off in the middle: staged bytes go whole parts at a time
        staged.discard()
        raise BackupCopyWrong(name=name, why="an earlier try was cut in the middle of a part")
    for start in range(0, staged.offset, PART_BYTES):
        digest.update(staged.read_back(start, PART_BYTES))
    return digest
