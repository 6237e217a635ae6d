"""Users and the roles they hold. There is always an owner of everything who can log in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection, RowMapping, delete, exc, insert, select, update

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_people import grants, tokens, users
from secondsite.server.database.values import fresh_id
from secondsite.server.people.audit import Audit
from secondsite.server.people.oidc_users import comes_from_outside
from secondsite.server.people.passwords import Passwords
from secondsite.server.people.roles import EVERYWHERE, Actor, Grant, Role
from secondsite.server.people.tokens import Kind

T = TypeVar("T")


class UserUnknown(SecondsiteError):
    """No such user."""

    code = "user.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no user {user}."
    cause = "The name is mistyped, or the user was removed."
    action = "List users with `secondsite user list`."


class UserExists(SecondsiteError):
    """Names are never given twice."""

    code = "user.exists"
    outcome = Outcome.REFUSED
    happened = "There is a user {user} already."
    cause = "Somebody was quicker, or the name was used before."
    action = "Choose another name, or change that user's roles with `secondsite user grant`."


class LastOwner(SecondsiteError):
    """Nobody could undo it."""

    code = "user.last-owner"
    outcome = Outcome.REFUSED
    happened = "{user} stays an owner who can log in: there is no other."
    cause = "Without an owner of everything nobody could give roles to anybody."
    action = "Make somebody else an owner first: `secondsite user grant NAME owner`."


class PasswordElsewhere(SecondsiteError):
    """Who is let in by a provider has no second way in that the provider does not know of."""

    code = "user.password-elsewhere"
    outcome = Outcome.REFUSED
    happened = "{user} logs in at the OIDC provider and sets no password here."
    cause = "A password of this server's would still let them in when the provider no longer does."
    action = "Change the password at the provider, or ask an owner (`secondsite user password NAME`)."


@dataclass(frozen=True)
class User:
    """A person, or a program that has a token."""

    id: str
    name: str
    display_name: str
    has_password: bool
    disabled: bool
    created_at: str
    roles: tuple[Grant, ...] = field(default=())


class Users:
    """All changes to users, each with its row in the audit log."""

    def __init__(self, database: Database, audit: Audit, passwords: Passwords) -> None:
        self._database = database
        self._audit = audit
        self._passwords = passwords

    def page(self, *, after: str | None, limit: int) -> list[User]:
        """Users by name."""
        query = select(users).order_by(users.c.name).limit(limit)
        if after is not None:
            query = query.where(users.c.name > after)
        with self._database.read() as connection:
            return _with_roles(connection, connection.execute(query).mappings().all())

    def get(self, name: str) -> User:
        """One user. Raises UserUnknown."""
        with self._database.read() as connection:
            return _find(connection, name)

    def create(self, actor: Actor, name: str, *, display_name: str, password: str | None) -> User:
        """A new user, with no role yet. Raises UserExists."""
        kept = None if password is None else self._passwords.keep(password)

        def work(connection: Connection) -> User:
            row = {
                "id": fresh_id(self._database.clock),
                "name": name,
                "display_name": display_name,
                "password": kept,
                "disabled": 0,
                "created_at": self._database.now(),
            }
            connection.execute(insert(users).values(row))
            self._audit.append(connection, actor, "user.create", name, detail={"displayName": display_name})
            return _find(connection, name)

        try:
            return self._database.run(work)
        except exc.IntegrityError:
            raise UserExists(user=name) from None

    def change(
        self, actor: Actor, name: str, *, display_name: str | None = None, disabled: bool | None = None
    ) -> User:
        """Change what is given. A disabled user's tokens and sessions stop at once.

        Raises UserUnknown or LastOwner.
        """

        def work(connection: Connection, user: User) -> None:
            detail: dict[str, str | int | bool | None] = {}
            if display_name is not None:
                detail["displayName"] = display_name
                connection.execute(
                    update(users).where(users.c.id == user.id).values(display_name=display_name)
                )
            if disabled is not None:
                detail["disabled"] = disabled
                connection.execute(update(users).where(users.c.id == user.id).values(disabled=int(disabled)))
                if disabled:
                    self._end_sessions(connection, user)
            self._audit.append(connection, actor, "user.change", name, detail=detail)

        return self._changed(name, work)

    def set_password(self, actor: Actor, name: str, password: str, *, keep: str | None = None) -> None:
        """Give a user a password; their sessions end, but the one to keep. Raises UserUnknown."""
        kept = self._passwords.keep(password)

        def work(connection: Connection, user: User) -> None:
            connection.execute(update(users).where(users.c.id == user.id).values(password=kept))
            self._end_sessions(connection, user, keep=keep)
            self._audit.append(connection, actor, "user.password", name)

        self._changed(name, work)

    def remove(self, actor: Actor, name: str) -> None:
        """Remove a user with tokens and roles; the log keeps the name. Raises UserUnknown or LastOwner."""

        def work(connection: Connection) -> None:
            user = _find(connection, name)
            connection.execute(delete(users).where(users.c.id == user.id))
            _check_owner(connection, user)
            self._audit.append(connection, actor, "user.remove", name)

        self._database.run(work)

    def grant(self, actor: Actor, name: str, grant: Grant) -> User:
        """Give a role; a role that is held stays. Raises UserUnknown."""

        def work(connection: Connection, user: User) -> None:
            if grant in user.roles:
                return
            row = {"user_id": user.id, "vault": grant.vault, "role": grant.role.value}
            connection.execute(insert(grants).values(row))
            self._tell(connection, actor, "role.grant", name, grant)

        return self._changed(name, work)

    def withdraw(self, actor: Actor, name: str, grant: Grant) -> User:
        """Take a role; one that is not held is fine. Raises UserUnknown or LastOwner."""

        def work(connection: Connection, user: User) -> None:
            if grant not in user.roles:
                return
            connection.execute(
                delete(grants).where(
                    grants.c.user_id == user.id,
                    grants.c.vault == grant.vault,
                    grants.c.role == grant.role.value,
                )
            )
            self._tell(connection, actor, "role.withdraw", name, grant)

        return self._changed(name, work)

    def _tell(self, connection: Connection, actor: Actor, what: str, name: str, grant: Grant) -> None:
        vault = "" if grant.vault == EVERYWHERE else grant.vault
        self._audit.append(connection, actor, what, name, vault=vault, detail={"role": grant.role.value})

    def _changed(self, name: str, work: Callable[[Connection, User], None]) -> User:
        def whole(connection: Connection) -> User:
            user = _find(connection, name)
            work(connection, user)
            _check_owner(connection, user)
            return _find(connection, name)

        return self._database.run(whole)

    def comes_from_outside(self, user_id: str) -> bool:
        """Whether an OIDC provider says who it is."""
        with self._database.read() as connection:
            return comes_from_outside(connection, user_id)

    def _end_sessions(self, connection: Connection, user: User, *, keep: str | None = None) -> None:
        gone = delete(tokens).where(tokens.c.user_id == user.id, tokens.c.kind == Kind.SESSION.value)
        connection.execute(gone if keep is None else gone.where(tokens.c.id != keep))


def _check_owner(connection: Connection, changed: User) -> None:
    """Raise LastOwner (which undoes the change) when it leaves no owner of everything who is not disabled."""
    if Grant(EVERYWHERE, Role.OWNER) not in changed.roles:
        return
    left = connection.execute(
        select(users.c.id)
        .join(grants, grants.c.user_id == users.c.id)
        .where(grants.c.vault == EVERYWHERE, grants.c.role == Role.OWNER.value, users.c.disabled == 0)
        .limit(1)
    ).first()
    if left is None:
        raise LastOwner(user=changed.name)


def _find(connection: Connection, name: str) -> User:
    row = connection.execute(select(users).where(users.c.name == name)).mappings().one_or_none()
    if row is None:
        raise UserUnknown(user=name)
    return _with_roles(connection, [row])[0]


def _with_roles(connection: Connection, rows: Sequence[RowMapping]) -> list[User]:
    held: dict[str, list[Grant]] = {row["id"]: [] for row in rows}
    found = connection.execute(select(grants).where(grants.c.user_id.in_(held))).mappings()
    for row in found:
        held[row["user_id"]].append(Grant(row["vault"], Role(row["role"])))
    return [
        User(
            id=row["id"],
            name=row["name"],
            display_name=row["display_name"],
            has_password=row["password"] is not None,
            disabled=bool(row["disabled"]),
            created_at=row["created_at"],
            roles=tuple(sorted(held[row["id"]])),
        )
        for row in rows
    ]
