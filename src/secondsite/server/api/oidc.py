"""Routes of logging in at an OIDC provider, and of saying which provider and which roles."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field

from secondsite.server.api.access import (
    TheActor,
    TheServices,
    address_of,
    public,
    request_id_of,
    requires,
)
from secondsite.server.api.bodies import NewTokenView, RoleName, VaultName
from secondsite.server.api.errors import NotReady
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.services import Services
from secondsite.server.people.oidc_login import OidcLogins, Wait
from secondsite.server.people.oidc_provider import Settings
from secondsite.server.people.oidc_settings import Mapped, OidcSettings
from secondsite.server.people.roles import EVERYWHERE, Actor, Caller, Grant, Operation, Role

router = APIRouter(prefix="/api/v1/oidc", tags=["oidc"])

Reader = Annotated[Caller, requires(Operation.LOGIN_READ)]
Writer = Annotated[Caller, requires(Operation.LOGIN_WRITE)]
LoginPath = Annotated[str, Path(alias="login", pattern=r"^[0-9a-f]{32}$", description="A begun log-in's id.")]
_PLAIN = r"^[^\u0000-\u001f\u007f]*$"
_Url = Annotated[str, Field(min_length=1, max_length=512, pattern=_PLAIN)]
_Claim = Annotated[str, Field(min_length=1, max_length=100, pattern=_PLAIN)]
# what a provider or a client made: opaque, printable ASCII (RFC 6749, appendix A)
_Opaque = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[\x20-\x7e]*$")]
_GROUP_PATTERN = r"^[^\u0000-\u001f\u007f]+$"


class BrowserLogin(Model):
    """A log-in with a browser on the client's machine, which listens at this address on loopback."""

    redirect_uri: Annotated[str, Field(max_length=100, pattern=_PLAIN)]


class BrowserLoginView(View):
    """A log-in that was begun. secret: to end it with; state: what the answer must hold."""

    id: str
    secret: str
    authorization_url: str
    state: str
    expires_at: str


class BrowserAnswer(Model):
    """What the browser brought back. issuer: the answer's `iss`, where it has one (RFC 9207)."""

    secret: _Opaque
    code: _Opaque
    state: _Opaque
    issuer: _Url | None = None


class DeviceLoginView(View):
    """A log-in with a browser elsewhere: open the address there, and enter the code."""

    id: str
    secret: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    interval_seconds: int
    expires_at: str


class DeviceQuestion(Model):
    """Whether the code was entered."""

    secret: _Opaque


class DeviceAnswer(View):
    """A session, or how long to wait before the next question."""

    wait_seconds: int | None
    token: NewTokenView | None


class ProviderSettings(Model):
    """An OIDC provider, tried before it is kept. Without clientSecret the client is a public one."""

    issuer: _Url
    client_id: Annotated[str, Field(min_length=1, max_length=200, pattern=_PLAIN)]
    client_secret: _Opaque | None = None
    authority: Annotated[str, Field(max_length=64 * 1024)] = Field(
        default="", description="PEM of whom its TLS is trusted by, where the system's own do not do."
    )
    scopes: Annotated[str, Field(max_length=500, pattern=r"^openid( [\x21-\x7e]+)*$")] = "openid profile"
    groups_claim: _Claim = "groups"
    name_claim: _Claim = "preferred_username"
    session_minutes: Annotated[int, Field(ge=5, le=1440)] = 720


class GroupRoleView(View):
    """Who is in the group (`*`: whoever logs in there) has the role on a vault (its id), or on everything."""

    group: str
    vault: str
    role: str


class OidcView(View):
    """The provider that is set; never its client's secret."""

    issuer: str
    client_id: str
    has_secret: bool
    scopes: str
    groups_claim: str
    name_claim: str
    session_minutes: int
    own_authority: bool
    mappings: list[GroupRoleView]


class GroupRole(Model):
    """A group of the provider, and the role its people have."""

    group: Annotated[str, Field(min_length=1, max_length=255, pattern=_GROUP_PATTERN)]
    role: RoleName
    vault: VaultName = EVERYWHERE


def _logins(services: Services) -> OidcLogins:
    if services.oidc is None:
        raise NotReady(why="it has no master key")
    return services.oidc


def _settings(services: Services) -> OidcSettings:
    if services.oidc_settings is None:
        raise NotReady(why="it has no master key")
    return services.oidc_settings


def _somebody(request: Request) -> Actor:
    return Actor("", "oidc", address_of(request), request_id_of(request))


@router.post("/logins", status_code=201, dependencies=[public()])
def begin_oidc_login(body: BrowserLogin, request: Request, services: TheServices) -> BrowserLoginView:
    """Begin to log in at the provider, with a browser on this machine."""
    begun = _logins(services).begin(body.redirect_uri, address=address_of(request))
    return BrowserLoginView(
        id=begun.id,
        secret=begun.secret,
        authorization_url=begun.url,
        state=begun.state,
        expires_at=begun.expires_at,
    )


@router.post("/logins/{login}", status_code=201, dependencies=[public()])
def finish_oidc_login(
    login: LoginPath, body: BrowserAnswer, request: Request, services: TheServices
) -> NewTokenView:
    """End it with what the browser brought back: a session. It counts once, whatever comes of it."""
    outcome = "refused"
    try:
        made = _logins(services).finish(
            login,
            body.secret,
            code=body.code,
            state=body.state,
            issuer=body.issuer,
            actor=_somebody(request),
        )
        outcome = "succeeded"
    finally:
        services.metrics.logins.labels(outcome).inc()
    return NewTokenView.new(made)


@router.post("/devices", status_code=201, dependencies=[public()])
def begin_device_login(request: Request, services: TheServices) -> DeviceLoginView:
    """Begin to log in at the provider, with a browser elsewhere."""
    return DeviceLoginView.model_validate(_logins(services).begin_device(address=address_of(request)))


@router.post("/devices/{login}", dependencies=[public()])
def ask_device_login(
    login: LoginPath, body: DeviceQuestion, request: Request, services: TheServices
) -> DeviceAnswer:
    """A session, once the person has entered the code."""
    found = _logins(services).finish_device(login, body.secret, actor=_somebody(request))
    if isinstance(found, Wait):
        return DeviceAnswer(wait_seconds=found.seconds, token=None)
    services.metrics.logins.labels("succeeded").inc()
    return DeviceAnswer(wait_seconds=None, token=NewTokenView.new(found))


@router.get("")
def show_oidc(caller: Reader, services: TheServices) -> OidcView:  # noqa: ARG001
    """The provider that is set."""
    return _view(services)


@router.put("")
def set_oidc(body: ProviderSettings, caller: Writer, actor: TheActor, services: TheServices) -> OidcView:  # noqa: ARG001
    """Set the provider; it is tried first, and nothing is changed when it does not work."""
    settings = Settings(
        issuer=body.issuer,
        client_id=body.client_id,
        secret=body.client_secret,
        authority=body.authority,
        scopes=body.scopes,
        groups_claim=body.groups_claim,
        name_claim=body.name_claim,
        session_minutes=body.session_minutes,
    )
    _settings(services).set(actor, settings)
    return _view(services)


@router.delete("", status_code=204)
def remove_oidc(caller: Writer, actor: TheActor, services: TheServices) -> None:  # noqa: ARG001
    """Forget the provider; users and their roles stay."""
    _settings(services).remove(actor)


@router.post("/mappings")
def map_oidc(body: GroupRole, caller: Writer, actor: TheActor, services: TheServices) -> OidcView:  # noqa: ARG001
    """Give a group's people a role, from their next log-in on."""
    _settings(services).provider()  # there must be one whose groups they are
    _settings(services).map(actor, _mapped(services, body.group, body.vault, body.role))
    return _view(services)


@router.delete("/mappings")
def unmap_oidc(  # noqa: PLR0917 - called by name, by the framework
    group: Annotated[str, Query(min_length=1, max_length=255, pattern=_GROUP_PATTERN)],
    role: Literal["owner", "contributor", "operator", "approver", "reader"],
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
    vault: Annotated[str, Query(min_length=1, max_length=100, pattern=_PLAIN)] = EVERYWHERE,
) -> OidcView:
    """Take it back, with their next log-in."""
    _settings(services).unmap(actor, _mapped(services, group, vault, role))
    return _view(services)


def _mapped(services: Services, group: str, vault: str, role: str) -> Mapped:
    where = EVERYWHERE if vault == EVERYWHERE else services.vault_id(vault)
    return Mapped(group, Grant(where, Role(role)))


def _view(services: Services) -> OidcView:
    settings = _settings(services)
    found = settings.provider().settings
    return OidcView(
        issuer=found.issuer,
        client_id=found.client_id,
        has_secret=found.secret is not None,
        scopes=found.scopes,
        groups_claim=found.groups_claim,
        name_claim=found.name_claim,
        session_minutes=found.session_minutes,
        own_authority=bool(found.authority),
        mappings=[
            GroupRoleView(group=one.group, vault=one.grant.vault, role=one.grant.role.value)
            for one in settings.mapped()
        ],
    )
