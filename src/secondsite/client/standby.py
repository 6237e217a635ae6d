"""Active and standby server over the API, as functions of a `ServerClient`."""

from __future__ import annotations

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, Page


class StandbyServer(Answer, frozen=True, kw_only=True):
    """A standby server, or the one that was active before (role Former)."""

    id: str
    name: str
    url: str
    role: str
    seen_at: str
    copy_name: str
    current_at: str | None = None
    lag_seconds: float | None = None
    late_seconds: int = 0
    late_since: str | None = None


class HandOver(Answer, frozen=True, kw_only=True):
    """How far a planned switch-over is: None, Stopping, Copying, HandedOver."""

    state: str
    since: str | None = None
    waits_for: list[str]
    copy_name: str
    stores: list[str]
    problem: str


def standbys(server: ServerClient) -> list[StandbyServer]:
    """All that are known."""
    return server.call("GET", at("server", "standbys"), Page[StandbyServer]).value


def forget(server: ServerClient, standby: str) -> None:
    """Forget one."""
    server.call("DELETE", at("server", "standbys", standby), NONE)


def hand_over(server: ServerClient) -> HandOver:
    """Begin a planned switch-over."""
    return server.call("POST", at("server", "hand-over"), HandOver)


def hand_over_status(server: ServerClient) -> HandOver:
    """How far it is."""
    return server.call("GET", at("server", "hand-over"), HandOver)


def take_back(server: ServerClient) -> HandOver:
    """Go on at this server."""
    return server.call("DELETE", at("server", "hand-over"), HandOver)
