"""Routes of people: how they come in, who they are, their tokens; users and the roles they hold."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request

from secondsite.server.api.access import (
    TheActor,
    TheServices,
    address_of,
    public,
    request_id_of,
    requires,
    requires_login,
)
from secondsite.server.api.bodies import (
    LogIn,
    MeView,
    NewPassword,
    NewTokenView,
    NewUser,
    OwnPassword,
    RoleName,
    SessionRules,
    SessionRulesView,
    SessionView,
    SetUp,
    TokenRequest,
    TokenView,
    UserChange,
    UserView,
)
from secondsite.server.api.errors import Forbidden
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import TokenPath, UserPath, VaultPath
from secondsite.server.api.services import Services
from secondsite.server.identity.errors import VaultUnknown
from secondsite.server.people.roles import EVERYWHERE, Actor, Caller, Grant, Operation, Role
from secondsite.server.people.tokens import Limit
from secondsite.server.people.users import PasswordElsewhere

router = APIRouter(prefix="/api/v1", tags=["people"])

Myself = Annotated[Caller, requires_login()]
UserReader = Annotated[Caller, requires(Operation.USER_READ)]
UserWriter = Annotated[Caller, requires(Operation.USER_WRITE)]
RoleWriter = Annotated[Caller, requires(Operation.ROLE_WRITE)]
LoginReader = Annotated[Caller, requires(Operation.LOGIN_READ)]
LoginWriter = Annotated[Caller, requires(Operation.LOGIN_WRITE)]
TokenWriter = Annotated[Caller, requires(Operation.TOKEN_WRITE)]


@router.post("/sessions", status_code=201, dependencies=[public()])
def log_in(body: LogIn, request: Request, services: TheServices) -> NewTokenView:
    """Log in with a password: a session's token, good for 12 hours, and for one hour without use."""
    outcome = "refused"
    try:
        made = services.logins.log_in(
            body.user_name, body.password, address=address_of(request), request_id=request_id_of(request)
        )
        outcome = "succeeded"
    finally:
        services.metrics.logins.labels(outcome).inc()
    return NewTokenView.new(made)


@router.post("/setup", status_code=201, dependencies=[public()])
def set_up(body: SetUp, request: Request, services: TheServices) -> NewTokenView:
    """Use the set-up token of a new server, once: an API token for its owner."""
    made = services.logins.set_up(
        body.setup_token,
        password=body.password,
        address=address_of(request),
        request_id=request_id_of(request),
    )
    return NewTokenView.new(made)


@router.delete("/sessions/current", status_code=204)
def log_out(caller: Myself, actor: TheActor, services: TheServices) -> None:
    """End the session, or the API token, that makes this request."""
    services.logins.log_out(actor, caller)


@router.get("/me")
def me(caller: Myself) -> MeView:
    """Who I am."""
    return MeView.of(caller)


@router.put("/me/password", status_code=204)
def set_own_password(body: OwnPassword, caller: Myself, actor: TheActor, services: TheServices) -> None:
    """Change my password; my other sessions end."""
    _unlimited(caller, "change the password")
    if services.users.get(caller.name).has_password:
        services.logins.confirm(caller.name, body.before, address=actor.address)
    elif services.users.comes_from_outside(caller.id):
        # it would still let them in when the provider no longer does
        raise PasswordElsewhere(user=caller.name)
    services.users.set_password(actor, caller.name, body.password, keep=caller.via.partition(":")[2])


@router.get("/me/sessions")
def list_own_sessions(caller: Myself, services: TheServices) -> Page[SessionView]:
    """My sessions, the newest last."""
    return _sessions(services, caller, caller.id)


@router.delete("/me/sessions", status_code=204)
def end_own_sessions(caller: Myself, actor: TheActor, services: TheServices) -> None:
    """End all of my sessions but the one that makes this request."""
    _unlimited(caller, "end sessions")
    services.sessions.end_all(actor, caller.id, caller.name, keep=caller.via.partition(":")[2])


@router.delete("/me/sessions/{token}", status_code=204)
def end_own_session(token: TokenPath, caller: Myself, actor: TheActor, services: TheServices) -> None:
    """End one of my sessions at once."""
    _unlimited(caller, "end sessions")
    services.sessions.end(actor, caller.id, caller.name, token)


@router.get("/sessions/rules")
def show_session_rules(caller: LoginReader, services: TheServices) -> SessionRulesView:  # noqa: ARG001
    """What holds for sessions."""
    return SessionRulesView(one_session=services.sessions.one_only())


@router.put("/sessions/rules")
def change_session_rules(
    body: SessionRules,
    caller: LoginWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> SessionRulesView:
    """Say what holds for sessions; those that are open stay until the next log-in."""
    services.sessions.set_one_only(actor, one=body.one_session)
    return SessionRulesView(one_session=body.one_session)


@router.get("/me/tokens")
def list_own_tokens(caller: Myself, services: TheServices) -> Page[TokenView]:
    """My API tokens."""
    return Page(value=[TokenView.of(token) for token in services.tokens.of(caller.id)])


@router.post("/me/tokens", status_code=201)
def create_own_token(
    body: TokenRequest, caller: Myself, actor: TheActor, services: TheServices
) -> NewTokenView:
    """Make an API token for myself. Its text is in this answer only."""
    _unlimited(caller, "make tokens")
    return _create(services, actor, caller.id, caller.name, body)


@router.delete("/me/tokens/{token}", status_code=204)
def remove_own_token(token: TokenPath, caller: Myself, actor: TheActor, services: TheServices) -> None:
    """End one of my API tokens at once."""
    _unlimited(caller, "remove tokens")
    services.tokens.remove(actor, caller.id, caller.name, token)


@router.get("/users")
def list_users(page: AskedPage, caller: UserReader, services: TheServices) -> Page[UserView]:  # noqa: ARG001
    """Users by name."""
    found = services.users.page(after=page.after_text(), limit=page.limit)
    link = page.link(found[-1].name) if len(found) == page.limit else None
    return Page(value=[UserView.of(user) for user in found], next_link=link)


@router.post("/users", status_code=201)
def create_user(
    body: NewUser,
    caller: UserWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> UserView:
    """Make a user, with no role yet."""
    made = services.users.create(actor, body.name, display_name=body.display_name, password=body.password)
    return UserView.of(made)


@router.get("/users/{user}")
def show_user(user: UserPath, caller: UserReader, services: TheServices) -> UserView:  # noqa: ARG001
    """One user."""
    return UserView.of(services.users.get(user))


@router.patch("/users/{user}")
def change_user(
    user: UserPath,
    body: UserChange,
    caller: UserWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> UserView:
    """Change a user; a disabled one's tokens and sessions stop at once."""
    return UserView.of(
        services.users.change(actor, user, display_name=body.display_name, disabled=body.disabled)
    )


@router.delete("/users/{user}", status_code=204)
def remove_user(user: UserPath, caller: UserWriter, actor: TheActor, services: TheServices) -> None:  # noqa: ARG001
    """Remove a user with tokens and roles; the audit log keeps the name."""
    services.users.remove(actor, user)


@router.put("/users/{user}/password", status_code=204)
def set_password(
    user: UserPath,
    body: NewPassword,
    caller: UserWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> None:
    """Give a user a password; their sessions end."""
    services.users.set_password(actor, user, body.password)


@router.put("/users/{user}/roles/{vault}/{role}")
def grant_role(  # noqa: PLR0917 - called by name, by the framework
    user: UserPath,
    vault: VaultPath,
    role: RoleName,
    caller: RoleWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> UserView:
    """Give a user a role on a vault, or on everything (`*`)."""
    return UserView.of(services.users.grant(actor, user, _grant(services, vault, role)))


@router.delete("/users/{user}/roles/{vault}/{role}")
def withdraw_role(  # noqa: PLR0917 - called by name, by the framework
    user: UserPath,
    vault: VaultPath,
    role: RoleName,
    caller: RoleWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> UserView:
    """Take a role from a user; one that is not held is fine."""
    try:
        held = _grant(services, vault, role)
    except VaultUnknown:
        held = Grant(vault, Role(role))  # the vault is gone, the role on its id may still be held
    return UserView.of(services.users.withdraw(actor, user, held))


@router.get("/users/{user}/sessions")
def list_sessions(user: UserPath, caller: TokenWriter, services: TheServices) -> Page[SessionView]:
    """A user's sessions, the newest last."""
    return _sessions(services, caller, services.users.get(user).id)


@router.delete("/users/{user}/sessions", status_code=204)
def end_sessions(user: UserPath, caller: TokenWriter, actor: TheActor, services: TheServices) -> None:  # noqa: ARG001
    """End all of a user's sessions at once."""
    services.sessions.end_all(actor, services.users.get(user).id, user)


@router.delete("/users/{user}/sessions/{token}", status_code=204)
def end_session(
    user: UserPath,
    token: TokenPath,
    caller: TokenWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> None:
    """End one of a user's sessions at once."""
    services.sessions.end(actor, services.users.get(user).id, user, token)


@router.get("/users/{user}/tokens")
def list_tokens(user: UserPath, caller: TokenWriter, services: TheServices) -> Page[TokenView]:  # noqa: ARG001
    """A user's API tokens."""
    return Page(value=[TokenView.of(token) for token in services.tokens.of(services.users.get(user).id)])


@router.post("/users/{user}/tokens", status_code=201)
def create_token(
    user: UserPath,
    body: TokenRequest,
    caller: TokenWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> NewTokenView:
    """Make an API token for a user, for example one that is a program. Its text is in this answer only."""
    found = services.users.get(user)
    return _create(services, actor, found.id, found.name, body)


@router.delete("/users/{user}/tokens/{token}", status_code=204)
def remove_token(
    user: UserPath,
    token: TokenPath,
    caller: TokenWriter,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> None:
    """End a user's API token at once."""
    services.tokens.remove(actor, services.users.get(user).id, user, token)


def _sessions(services: Services, caller: Caller, user_id: str) -> Page[SessionView]:
    return Page(value=[SessionView.of(one, caller.via) for one in services.sessions.of(user_id)])


def _create(services: Services, actor: Actor, user_id: str, user: str, body: TokenRequest) -> NewTokenView:
    vault = None if body.vault is None else services.vault_id(body.vault)
    limit = Limit(vault, Role(body.role) if body.role else None)
    return NewTokenView.new(
        services.tokens.create(actor, user_id, user, name=body.name, days=body.days, limit=limit)
    )


def _grant(services: Services, vault: str, role: str) -> Grant:
    return Grant(EVERYWHERE if vault == EVERYWHERE else services.vault_id(vault), Role(role))


def _unlimited(caller: Caller, what: str) -> None:
    """A limited token must not make itself an unlimited one."""
    if caller.vault_limit is not None or caller.role_limit is not None:
        raise Forbidden(who=caller.name, operation=what, where="with a token that is limited", roles="none")
