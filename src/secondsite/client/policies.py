"""Replication policies over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

import msgspec

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, Page


class Window(Answer, frozen=True, kw_only=True):
    """Between two times of day, at most so many bytes a second; None: no limit."""

    from_: str = msgspec.field(name="from")
    until: str
    bytes_per_second: float | None = None


class FirstCopy(Answer, frozen=True, kw_only=True):
    """When the first copy begins."""

    mode: str = "now"
    at: str | None = None


class Settings(Answer, frozen=True, kw_only=True):
    """What a policy asks for."""

    copy_frequency_seconds: float
    rpo_threshold_seconds: float
    retention: str
    application_consistent_frequency_seconds: float | None = None
    compression_level: int | None = None
    bandwidth: list[Window]
    first_copy: FirstCopy
    delete_replica_on_disable: bool


class Policy(Answer, frozen=True, kw_only=True):
    """A replication policy."""

    id: str
    vault: str
    friendly_name: str
    description: str
    revision: int
    settings: Settings
    encryption: str
    retention_text: str
    recovery_points: int
    warnings: list[str]
    protected_items: int
    failback_policy: str | None = None
    failback_of: str | None = None
    created_at: str
    created_by: str
    changed_at: str
    changed_by: str


class Preset(Answer, frozen=True, kw_only=True):
    """Settings that fit together."""

    name: str
    title: str
    description: str
    settings: Settings
    retention_text: str
    recovery_points: int


class Revision(Answer, frozen=True, kw_only=True):
    """What a policy said from a moment on."""

    revision: int
    settings: Settings
    at: str
    by: str


class WindowKept(Answer, frozen=True, kw_only=True):
    """What one window of a retention lists. every_seconds 0: every point."""

    every_seconds: float
    reach_seconds: float
    recovery_points: int
    point_bytes: int | None = None


class Measured(Answer, frozen=True, kw_only=True):
    """What a gateway measured of a machine."""

    provider: str
    machine: str
    machine_name: str
    seconds: float
    stored_bytes_per_day: float | None = None
    recovery_points: int
    stored_bytes: int
    stored_bytes_at_most: int | None = None


class Estimate(Answer, frozen=True, kw_only=True):
    """What a retention keeps, and what that costs where measured."""

    retention: str
    retention_text: str
    recovery_points: int
    windows: list[WindowKept]
    measured: Measured | None = None


def policies(server: ServerClient, vault: str | None = None) -> Iterator[Policy]:
    """Policies by name, of one vault or of all I may see; failback policies included."""
    where = at("replicationPolicies") if vault is None else at(*_of(vault))
    return server.pages(where, Page[Policy])


def presets(server: ServerClient) -> Iterator[Preset]:
    """Sets of settings to make policies of."""
    return server.pages(at("replicationPolicyPresets"), Page[Preset])


def policy(server: ServerClient, vault: str, name: str) -> Policy:
    """One policy, by id or name."""
    return server.call("GET", at(*_of(vault, name)), Policy)


def revisions(server: ServerClient, vault: str, name: str) -> Iterator[Revision]:
    """What it said, the newest first."""
    return server.pages(at(*_of(vault, name), "revisions"), Page[Revision])


def create_policy(
    server: ServerClient,
    vault: str,
    name: str,
    *,
    preset: str | None = None,
    description: str = "",
    settings: Mapping[str, object] | None = None,
) -> Policy:
    """Make a policy of a preset; settings, named as in the API, go over it."""
    body = {
        "friendlyName": name,
        "description": description,
        "preset": preset,
        "settings": dict(settings or {}),
    }
    return server.call("POST", at(*_of(vault)), Policy, body)


def change_policy(
    server: ServerClient,
    vault: str,
    name: str,
    *,
    to: str | None = None,
    description: str | None = None,
    settings: Mapping[str, object] | None = None,
    revision: int | None = None,
) -> Policy:
    """Change what is given. revision: refuse unless the policy is at it."""
    body = {
        "friendlyName": to,
        "description": description,
        "settings": dict(settings or {}),
        "revision": revision,
    }
    return server.call("PATCH", at(*_of(vault, name)), Policy, body)


def copy_policy(server: ServerClient, vault: str, name: str, to: str) -> Policy:
    """Another one with the same settings."""
    return server.call("POST", at(*_of(vault, name), "copy"), Policy, {"friendlyName": to})


def delete_policy(server: ServerClient, vault: str, name: str) -> None:
    """Delete one that no item uses."""
    server.call("DELETE", at(*_of(vault, name)), NONE)


def estimate(
    server: ServerClient,
    vault: str,
    name: str,
    *,
    provider: str | None = None,
    machine: str | None = None,
    retention: str | None = None,
) -> Estimate:
    """What it keeps; and stores, of a machine a gateway keeps. retention: another than its own."""
    asked = {"provider": provider, "machine": machine, "retention": retention}
    query = urlencode({key: text for key, text in asked.items() if text is not None})
    return server.call("GET", f"{at(*_of(vault, name), 'estimate')}?{query}", Estimate)


def _of(vault: str, *name: str) -> tuple[str, ...]:
    return ("vaults", vault, "replicationPolicies", *name)
