"""What the people's routes take and give."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from secondsite.model.auditlog import Entry
from secondsite.server.api.schemas import Label, Model, Password, Text, UserName, View
from secondsite.server.people.roles import Caller, Grant
from secondsite.server.people.tokens import NewToken, Token
from secondsite.server.people.users import User

RoleName = Literal["owner", "contributor", "operator", "approver", "reader"]
Days = Annotated[int, Field(ge=1, le=3650)]
VaultName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")]


class RoleView(View):
    """A role on a vault (its id), or on everything (`*`)."""

    vault: str
    role: str

    @classmethod
    def of(cls, grant: Grant) -> RoleView:
        """As it goes out."""
        return cls(vault=grant.vault, role=grant.role.value)


class UserView(View):
    """A user; never anything of the password but whether there is one."""

    id: str
    name: str
    display_name: str
    has_password: bool
    disabled: bool
    created_at: str
    roles: list[RoleView]

    @classmethod
    def of(cls, user: User) -> UserView:
        """As it goes out."""
        return cls(
            id=user.id,
            name=user.name,
            display_name=user.display_name,
            has_password=user.has_password,
            disabled=user.disabled,
            created_at=user.created_at,
            roles=[RoleView.of(grant) for grant in user.roles],
        )


class TokenView(View):
    """A token, without its secret."""

    id: str
    name: str
    vault: str | None = None
    role: str | None = None
    created_at: str
    expires_at: str
    used_at: str | None = None

    @classmethod
    def of(cls, token: Token) -> TokenView:
        """As it goes out."""
        return cls(
            id=token.id,
            name=token.name,
            vault=token.vault,
            role=token.role.value if token.role else None,
            created_at=token.created_at,
            expires_at=token.expires_at,
            used_at=token.used_at,
        )


class SessionView(View):
    """A log-in that is alive. current: the one that makes this request."""

    id: str
    address: str
    created_at: str
    expires_at: str
    used_at: str | None = None
    current: bool

    @classmethod
    def of(cls, token: Token, via: str) -> SessionView:
        """As it goes out."""
        return cls(
            id=token.id,
            address=token.address,
            created_at=token.created_at,
            expires_at=token.expires_at,
            used_at=token.used_at,
            current=via == f"session:{token.id}",
        )


class SessionRules(Model):
    """What holds for sessions. oneSession: a log-in ends the user's other sessions."""

    one_session: bool


class SessionRulesView(View):
    """What holds for sessions."""

    one_session: bool


class NewTokenView(TokenView):
    """A token with its text: shown this once."""

    text: str

    @classmethod
    def new(cls, made: NewToken) -> NewTokenView:
        """As it goes out."""
        return cls(**TokenView.of(made.token).model_dump(by_alias=False), text=made.text)


class MeView(View):
    """Who the caller is, and what the token in use allows at most."""

    id: str
    name: str
    via: str
    roles: list[RoleView]
    vault_limit: str | None = None
    role_limit: str | None = None

    @classmethod
    def of(cls, caller: Caller) -> MeView:
        """As it goes out."""
        return cls(
            id=caller.id,
            name=caller.name,
            via=caller.via,
            roles=[RoleView.of(grant) for grant in sorted(caller.grants)],
            vault_limit=caller.vault_limit,
            role_limit=caller.role_limit.value if caller.role_limit else None,
        )


class AuditView(View):
    """One row of the audit log. digest: over the digest before and this row; seal: with the server's key."""

    number: int
    at: str
    actor: str
    via: str
    address: str
    request: str
    operation: str
    vault: str
    target: str
    outcome: str
    detail: dict[str, str | int | bool | None]
    digest: str
    seal: str

    @classmethod
    def of(cls, entry: Entry) -> AuditView:
        """As it goes out."""
        return cls.model_validate(entry)


class AuditVerified(View):
    """The whole log holds. Keep number and digest elsewhere: they are the anchor for another time."""

    entries: int
    digest: str


class LogIn(Model):
    """A user and the password."""

    user_name: UserName
    password: Annotated[str, Field(min_length=1, max_length=256)]


class SetUp(Model):
    """The set-up token, and the owner's password where one is wanted."""

    setup_token: Annotated[str, Field(min_length=1, max_length=200)]
    password: Password | None = None


class NewUser(Model):
    """A user to make; without a password it logs in with tokens only."""

    name: UserName
    display_name: Text = ""
    password: Password | None = None


class UserChange(Model):
    """What is not given stays."""

    display_name: Text | None = None
    disabled: bool | None = None


class NewPassword(Model):
    """A password for somebody."""

    password: Password


class OwnPassword(Model):
    """A password for oneself; the one before is asked where there is one."""

    password: Password
    before: Annotated[str, Field(max_length=256)] = ""


class TokenRequest(Model):
    """A token to make. vault and role limit what it allows, whatever its user may do."""

    name: Label
    days: Days = 90
    vault: VaultName | None = None
    role: RoleName | None = None
