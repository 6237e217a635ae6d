"""The server's own backups over its API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer, Job, Page


class BackupPlace(Answer, frozen=True, kw_only=True):
    """Where a backup went, or why it did not. gateway: empty for the server's own place."""

    gateway: str
    store: str
    problem: str


class ServerBackup(Answer, frozen=True, kw_only=True):
    """A backup of the server."""

    id: str
    name: str
    job: str
    made_at: str
    incarnation: int
    size: int
    sha256: str
    kept_at: str | None = None
    places: list[BackupPlace]


def backups(server: ServerClient) -> Iterator[ServerBackup]:
    """Those taken, the newest first."""
    return server.pages(at("server", "backups"), Page[ServerBackup])


def take_backup(server: ServerClient) -> Job:
    """Take one now."""
    return server.call("POST", at("server", "backups"), Job)


class Authority(Answer, frozen=True, kw_only=True):
    """An authority of the server."""

    id: str
    phase: str
    since: str
    fingerprint: str
    valid_until: str
    waits_for: list[str]


def authorities(server: ServerClient) -> list[Authority]:
    """All of them, oldest first."""
    return server.call("GET", at("server", "authorities"), Page[Authority]).value


def rotate_authority(server: ServerClient) -> list[Authority]:
    """Put another one in the place of the one that signs."""
    return server.call("POST", at("server", "authorities"), Page[Authority]).value
