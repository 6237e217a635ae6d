"""A server's backup on its way into a gateway's store: asked by a call, fetched by the gateway in parts.

    call PUT /v1/server-backups/{name}                            KeepBackup -> KeptBackup
    GET /api/v1/gateways/self/backups/{backup}/parts/{number}     bytes, PART_BYTES each but the last

    call PUT /v1/server-backups/{name}, copy: true       the same, for standby servers: in a place of its own

A call's body is small and a gateway opens every connection itself, so the content is fetched. In the store it
is the object `server/{server}/backups/{name}`, or `.../copies/{name}`, a sealed file
(`server.survival.container`); whoever has it without the server's master key has nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from secondsite.base.errors import InvalidInput
from secondsite.base.units import GIB, MIB

PATH_PARTS = "/api/v1/gateways/self/backups"
PART_BYTES = 1 * MIB
BACKUP_BYTES_MAX = 16 * GIB
STORE_PREFIX = "server/"

_NAME = re.compile(r"\d{8}t\d{6}z-[0-9a-f]{32}\Z")
_SERVER = re.compile(r"[0-9a-f]{32}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class KeepBackup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be kept. keep: how many of this server's backups, or copies, stay in the store."""

    backup: str  # its id
    server: str
    size: int
    sha256: str
    keep: int
    copy: bool = False  # for standby servers: made whenever something changed, the last ones kept


class KeptBackup(msgspec.Struct, frozen=True, kw_only=True):
    """It is in the store, durable and whole. removed: names of older ones that went."""

    store: str
    removed: tuple[str, ...] = ()


def backup_name(backup: str, made_at: datetime) -> str:
    """The name in a store; names sort by time."""
    return f"{made_at.astimezone(UTC):%Y%m%dt%H%M%Sz}-{backup}"


def backups_prefix(server: str) -> str:
    """Where a server's backups lie in a store."""
    return f"{STORE_PREFIX}{server}/backups/"


def copies_prefix(server: str) -> str:
    """Where copies for a server's standbys lie in a store."""
    return f"{STORE_PREFIX}{server}/copies/"


def check_keep(name: str, asked: KeepBackup) -> None:
    """Raise InvalidInput for what no server asks."""
    what = f"the backup {name[:80]!r}"
    if not _NAME.match(name) or not name.endswith(asked.backup) or len(asked.backup) != 32:
        raise InvalidInput(what=what, why="it is not a time and an id")
    if not _SERVER.match(asked.server) or not _SHA256.match(asked.sha256):
        raise InvalidInput(what=what, why="its server or its hash is none")
    if not 0 < asked.size <= BACKUP_BYTES_MAX or not 1 <= asked.keep <= 10_000:
        raise InvalidInput(what=what, why="its size, or how many are kept, is out of bounds")
