"""Giving an item up by force, over a server's API."""

from __future__ import annotations

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Job


def forget(server: ServerClient, vault: str, named: str, *, confirm: str) -> Job:
    """Begin to give it up. confirm: what cannot be excluded, word for word."""
    path = at("vaults", vault, "replicationProtectedItems", named, "forget")
    return server.call("POST", path, Job, {"confirm": confirm})
