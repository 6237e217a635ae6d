"""Sessions over the server's API, as functions of a `ServerClient`. user None: my own."""

from __future__ import annotations

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, Page


class Session(Answer, frozen=True, kw_only=True):
    """A log-in that is alive. current: the one that makes the request."""

    id: str
    address: str
    created_at: str
    expires_at: str
    used_at: str | None = None
    current: bool


class SessionRules(Answer, frozen=True, kw_only=True):
    """What holds for sessions. one_session: a log-in ends the user's other sessions."""

    one_session: bool


def sessions(server: ServerClient, user: str | None = None) -> list[Session]:
    """Those that are alive, the newest last."""
    return server.call("GET", at(*_whose(user), "sessions"), Page[Session]).value


def end_session(server: ServerClient, session: str, user: str | None = None) -> None:
    """End one at once."""
    server.call("DELETE", at(*_whose(user), "sessions", session), NONE)


def end_sessions(server: ServerClient, user: str | None = None) -> None:
    """End all; of one's own all but the one in use."""
    server.call("DELETE", at(*_whose(user), "sessions"), NONE)


def session_rules(server: ServerClient) -> SessionRules:
    """What holds."""
    return server.call("GET", at("sessions", "rules"), SessionRules)


def change_session_rules(server: ServerClient, *, one_session: bool) -> SessionRules:
    """Say what is to hold."""
    return server.call("PUT", at("sessions", "rules"), SessionRules, {"oneSession": one_session})


def _whose(user: str | None) -> tuple[str, ...]:
    return ("me",) if user is None else ("users", user)
