"""How items did over time, over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from secondsite.client.client import ServerClient, at
from secondsite.client.messages import Answer, Page


class RpoDay(Answer, frozen=True, kw_only=True):
    """One day, UTC. hours_missed: clock hours in which the objective was missed at any time."""

    day: str
    met_seconds: float
    missed_seconds: float
    unknown_seconds: float
    hours_missed: int


class Missed(Answer, frozen=True, kw_only=True):
    """A time in which the newest point was older than the objective."""

    since: str
    until: str


class RpoHistory(Answer, frozen=True, kw_only=True):
    """How an item did."""

    item: str
    name: str
    threshold_seconds: float
    days: list[RpoDay]
    missed: list[Missed]


class HealthChange(Answer, frozen=True, kw_only=True):
    """From this moment on an item's health was this."""

    at: str
    health: str
    code: str
    note: str


def rpo_history(server: ServerClient, vault: str, item: str, *, days: int = 30) -> RpoHistory:
    """When an item missed its objective."""
    query = urlencode({"days": str(days)})
    return server.call("GET", f"{_of(vault, item)}/rpoHistory?{query}", RpoHistory)


def health_history(server: ServerClient, vault: str, item: str) -> Iterator[HealthChange]:
    """How an item's health changed, youngest first."""
    return server.pages(f"{_of(vault, item)}/healthHistory", Page[HealthChange])


def _of(vault: str, item: str) -> str:
    return at("vaults", vault, "replicationProtectedItems", item)
