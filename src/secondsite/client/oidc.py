"""Logging in at an OIDC provider over the server's API, and its settings: functions of a `ServerClient`."""

from __future__ import annotations

from urllib.parse import urlencode

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, NewToken


class BrowserLogin(Answer, frozen=True, kw_only=True):
    """A log-in that was begun with a browser on this machine."""

    id: str
    secret: str
    authorization_url: str
    state: str
    expires_at: str

    def __repr__(self) -> str:
        return f"BrowserLogin({self.id})"


class DeviceLogin(Answer, frozen=True, kw_only=True):
    """A log-in that was begun with a browser elsewhere."""

    id: str
    secret: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    interval_seconds: int
    expires_at: str

    def __repr__(self) -> str:
        return f"DeviceLogin({self.id})"


class DeviceAnswer(Answer, frozen=True, kw_only=True):
    """A session, or how long to wait before the next question."""

    wait_seconds: int | None
    token: NewToken | None


class GroupRole(Answer, frozen=True, kw_only=True):
    """Who is in the group (`*`: whoever logs in there) has the role on a vault (its id), or on everything."""

    group: str
    vault: str
    role: str


class Oidc(Answer, frozen=True, kw_only=True):
    """The provider that is set; never its client's secret."""

    issuer: str
    client_id: str
    has_secret: bool
    scopes: str
    groups_claim: str
    name_claim: str
    session_minutes: int
    own_authority: bool
    mappings: list[GroupRole]


def begin_login(server: ServerClient, redirect_uri: str) -> BrowserLogin:
    """Begin with a browser on this machine, which is sent back to `redirect_uri`."""
    return server.call("POST", at("oidc", "logins"), BrowserLogin, {"redirectUri": redirect_uri})


def finish_login(
    server: ServerClient, begun: BrowserLogin, *, code: str, state: str, issuer: str | None
) -> NewToken:
    """A session, for what the browser brought back."""
    body = {"secret": begun.secret, "code": code, "state": state, "issuer": issuer}
    return server.call("POST", at("oidc", "logins", begun.id), NewToken, body)


def begin_device(server: ServerClient) -> DeviceLogin:
    """Begin with a browser elsewhere."""
    return server.call("POST", at("oidc", "devices"), DeviceLogin)


def ask_device(server: ServerClient, begun: DeviceLogin) -> DeviceAnswer:
    """Whether the code was entered."""
    return server.call("POST", at("oidc", "devices", begun.id), DeviceAnswer, {"secret": begun.secret})


def oidc(server: ServerClient) -> Oidc:
    """The provider that is set."""
    return server.call("GET", at("oidc"), Oidc)


def set_oidc(server: ServerClient, settings: dict[str, str | int | None]) -> Oidc:
    """Set it: issuer, clientId, clientSecret, authority, scopes, groupsClaim, nameClaim, sessionMinutes."""
    return server.call(
        "PUT", at("oidc"), Oidc, {name: value for name, value in settings.items() if value is not None}
    )


def remove_oidc(server: ServerClient) -> None:
    """Forget it."""
    server.call("DELETE", at("oidc"), NONE)


def map_group(server: ServerClient, group: str, role: str, *, vault: str = "*") -> Oidc:
    """Give a group's people a role."""
    return server.call("POST", at("oidc", "mappings"), Oidc, {"group": group, "role": role, "vault": vault})


def unmap_group(server: ServerClient, group: str, role: str, *, vault: str = "*") -> Oidc:
    """Take it back."""
    query = urlencode({"group": group, "role": role, "vault": vault})
    return server.call("DELETE", f"{at('oidc', 'mappings')}?{query}", Oidc)
