"""Recovery points and test failovers of protected items over the server's API."""

from __future__ import annotations

from collections.abc import Iterator

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer, Job, Page
from secondsite.model.recovered import RecoveredSettings, to_object


class RecoveryPoint(Answer, frozen=True, kw_only=True):
    """A recovery point. trust: LastClean or InDoubt, where there is something to say."""

    number: int
    at: str
    committed_at: str
    consistency: str
    size_bytes: int
    changed_bytes: int
    sent_bytes: int
    disks: list[str]
    trust: str
    held: bool


def points(server: ServerClient, vault: str, named: str) -> Iterator[RecoveryPoint]:
    """The points of an item, newest first, as the gateway that keeps them tells them now."""
    return server.pages(at(*_of(vault, named), "recoveryPoints"), Page[RecoveryPoint])


def boot_test(
    server: ServerClient,
    vault: str,
    named: str,
    *,
    point: str = "latest",
    network: str = "isolated",
    name: str | None = None,
    settings: RecoveredSettings | None = None,
) -> Job:
    """Begin to boot the item's machine from a point, beside the original.

    settings: instead of those that are kept for it.
    """
    wanted: dict[str, object] = {"recoveryPoint": point, "network": network, "name": name}
    if settings is not None:
        wanted["settings"] = to_object(settings)
    return server.call("POST", at(*_of(vault, named), "testFailover"), Job, wanted)


def clean_up(server: ServerClient, vault: str, named: str, *, notes: str, force: bool = False) -> Job:
    """Begin to remove its test failover; notes: what was learnt. force: also one that is not told of."""
    body = {"notes": notes, "force": force}
    return server.call("POST", at(*_of(vault, named), "testFailoverCleanup"), Job, body)


def _of(vault: str, named: str) -> tuple[str, ...]:
    return ("vaults", vault, "replicationProtectedItems", named)
