"""Failing protected items over, over the server's API. What changes one gives its job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

from secondsite.client.client import ServerClient, at
from secondsite.client.items import HeldMachine
from secondsite.client.messages import Answer, Job, Page


class Check(Answer, frozen=True, kw_only=True):
    """One thing looked at before; what fails says why and what to do."""

    name: str
    passed: bool
    required: bool
    cause: str
    action: str


class FailoverPreview(Answer, frozen=True, kw_only=True):
    """What a failover would do and cost now; confirm: what a person has to say to begin it."""

    recovery_point: int
    recovery_point_at: str
    consistency: str
    expected_loss_seconds: float
    writer: str
    cannot_be_excluded: str
    confirm: str
    checks: list[Check]


def preview(
    server: ServerClient,
    vault: str,
    named: str,
    *,
    point: str = "latest",
    network: str = "mapped",
    name: str | None = None,
) -> FailoverPreview:
    """Look at what an unplanned failover would need and lose, at the target now."""
    asked = {"recoveryPoint": point, "network": network, "name": name}
    query = urlencode({key: text for key, text in asked.items() if text is not None})
    return server.call("GET", f"{at(*_of(vault, named), 'unplannedFailover')}?{query}", FailoverPreview)


def preview_move(
    server: ServerClient, vault: str, named: str, *, network: str = "mapped", name: str | None = None
) -> FailoverPreview:
    """Look at what a planned failover would need, at both sites now."""
    asked = {"network": network, "name": name}
    query = urlencode({key: text for key, text in asked.items() if text is not None})
    return server.call("GET", f"{at(*_of(vault, named), 'plannedFailover')}?{query}", FailoverPreview)


def move(server: ServerClient, vault: str, named: str, wanted: Mapping[str, object]) -> Job:
    """Begin a planned failover (`PlannedBody`)."""
    return server.call("POST", at(*_of(vault, named), "plannedFailover"), Job, wanted)


def fail_over(server: ServerClient, vault: str, named: str, wanted: Mapping[str, object]) -> Job:
    """Begin an unplanned failover (`UnplannedBody`)."""
    return server.call("POST", at(*_of(vault, named), "unplannedFailover"), Job, wanted)


def change_point(server: ServerClient, vault: str, named: str, *, point: str, confirm: str) -> Job:
    """Run what was taken over on another point."""
    wanted = {"recoveryPoint": point, "confirm": confirm}
    return server.call("POST", at(*_of(vault, named), "applyRecoveryPoint"), Job, wanted)


def commit(
    server: ServerClient,
    vault: str,
    named: str,
    *,
    confirm: str,
    bytes_per_second: int | None = None,
    delete_points: bool = True,
) -> Job:
    """Keep what was taken over."""
    wanted = {"confirm": confirm, "bytesPerSecond": bytes_per_second, "deletePoints": delete_points}
    return server.call("POST", at(*_of(vault, named), "failoverCommit"), Job, wanted)


def roll_back(server: ServerClient, vault: str, named: str, *, confirm: str) -> Job:
    """Give it back to its source."""
    return server.call("POST", at(*_of(vault, named), "failoverCancel"), Job, {"confirm": confirm})


def held(server: ServerClient, vault: str, *, everything: bool = False) -> Iterator[HeldMachine]:
    """Machines of a vault that are held at their sources; everything: also those that were decided."""
    path = at("vaults", vault, "heldMachines") + ("?everything=true" if everything else "")
    return server.pages(path, Page[HeldMachine])


def release_held(server: ServerClient, vault: str, named: str, *, confirm: str) -> Job:
    """Let a held machine run again."""
    return server.call("POST", at(*_of(vault, named), "heldRelease"), Job, {"confirm": confirm})


def discard_held(
    server: ServerClient,
    vault: str,
    named: str,
    *,
    confirm: str,
    remove: str = "nothing",
    provider: str | None = None,
) -> Job:
    """Shut a held machine off for good. provider: the gateway that holds it; None: the item's source."""
    wanted = {"confirm": confirm, "remove": remove}
    if provider is not None:  # a server of an earlier version refuses what it does not know
        wanted["provider"] = provider
    return server.call("POST", at(*_of(vault, named), "heldDiscard"), Job, wanted)


def _of(vault: str, named: str) -> tuple[str, ...]:
    return ("vaults", vault, "replicationProtectedItems", named)
