"""Protecting items in the other direction, over the server's API. What changes one gives its job."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from secondsite.client.client import ServerClient, at
from secondsite.client.itemfailovers import Check
from secondsite.client.items import SiteMapping
from secondsite.client.messages import Answer, Job


class ReprotectPreview(Answer, frozen=True, kw_only=True):
    """What protecting in the other direction would do; confirm: what a person says, empty: nothing."""

    direction: str
    provider: str
    target_provider: str
    policy_id: str | None
    rpo_threshold_seconds: float
    retention: str
    mapping: SiteMapping | None
    old_disks_bytes: int | None
    confirm: str
    checks: list[Check]


def preview(server: ServerClient, vault: str, named: str, *, target: str | None = None) -> ReprotectPreview:
    """Look at what it would do, as it is preset, and at what is in the way at the old site now."""
    query = "" if target is None else f"?{urlencode({'targetProvider': target})}"
    return server.call("GET", at(*_of(vault, named), "reprotect") + query, ReprotectPreview)


def reprotect(server: ServerClient, vault: str, named: str, wanted: Mapping[str, object]) -> Job:
    """Begin it (`ReprotectBody`)."""
    return server.call("POST", at(*_of(vault, named), "reprotect"), Job, wanted)


def fail_back(server: ServerClient, vault: str, named: str, wanted: Mapping[str, object]) -> Job:
    """Begin to move the machine back to its first site (`FailbackBody`)."""
    return server.call("POST", at(*_of(vault, named), "failback"), Job, wanted)


def complete_migration(server: ServerClient, vault: str, named: str, *, confirm: str) -> Job:
    """Keep the machine for good where it was taken over."""
    return server.call("POST", at(*_of(vault, named), "completeMigration"), Job, {"confirm": confirm})


def _of(vault: str, named: str) -> tuple[str, ...]:
    return ("vaults", vault, "replicationProtectedItems", named)
