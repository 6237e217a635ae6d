"""Tokens: what proves who one is. API tokens, sessions and set-up tokens differ in how they end.

    ssa_<id>_<secret>    an API token
    sss_<id>_<secret>    a session, from a log-in with a password
    sse_<id>_<secret>    a set-up token: good for one thing, once

The secret has 256 random bits, so that its plain SHA-256 is kept: there is nothing to guess. A token is shown
once, when it is made.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, insert, select, update

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.api.errors import Unauthenticated
from secondsite.server.database.engine import Database
from secondsite.server.database.errors import DatabaseBusy, DatabaseUnavailable
from secondsite.server.database.tables_people import grants, tokens, users
from secondsite.server.database.values import from_moment, moment
from secondsite.server.people.audit import Audit
from secondsite.server.people.roles import Actor, Caller, Grant, Role

SESSION_HOURS = 12
SESSION_IDLE_MINUTES = 60
SETUP_DAYS = 7
# When a use is written down at the earliest after the last one: not a write for every request.
USED_MINUTES = 5
TOKENS_OF_A_USER_MAX = 100

_TEXT = re.compile(r"(ss[ase])_([0-9a-f]{16})_([A-Za-z0-9_-]{43})\Z")


class Kind(enum.StrEnum):
    """What a token is good for; the value stands in the database."""

    API = "api"
    SESSION = "session"
    SETUP = "setup"


_PREFIXES = {Kind.API: "ssa", Kind.SESSION: "sss", Kind.SETUP: "sse"}


class TokenUnknown(SecondsiteError):
    """No such token."""

    code = "token.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "{user} has no token {token}."
    cause = "It was removed, or belongs to somebody else."
    action = "List tokens with `secondsite token list`."


class TokensTooMany(SecondsiteError):
    """A script in a loop."""

    code = "token.too-many"
    outcome = Outcome.REFUSED
    happened = "{user} has {number} tokens already."
    cause = "A script makes a token at every run."
    action = "Remove those that are not used (`secondsite token list`, `secondsite token remove`)."


@dataclass(frozen=True)
class Token:
    """A token without its secret."""

    id: str
    kind: Kind
    name: str
    vault: str | None
    role: Role | None
    address: str
    created_at: str
    expires_at: str
    used_at: str | None
    revoked_at: str | None


@dataclass(frozen=True)
class NewToken:
    """A token and its text, which is shown once and kept nowhere."""

    token: Token
    text: str

    def __repr__(self) -> str:
        return f"NewToken({self.token.id})"


@dataclass(frozen=True)
class Limit:
    """What a token allows of what its user may do; None: all of it."""

    vault: str | None = None
    role: Role | None = None


NO_LIMIT = Limit()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Tokens:
    """Makes tokens, and says who somebody with a token is."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit

    def make(
        self,
        connection: Connection,
        user_id: str,
        *,
        kind: Kind,
        name: str,
        lasts: dt.timedelta,
        address: str,
        limit: Limit = NO_LIMIT,
    ) -> NewToken:
        """A new token, in the caller's transaction."""
        now = self._database.clock.utc()
        token, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        row = {
            "id": token,
            "kind": kind.value,
            "user_id": user_id,
            "name": name,
            "digest": _digest(secret),
            "vault": limit.vault,
            "role": limit.role.value if limit.role else None,
            "address": address,
            "created_at": moment(now),
            "expires_at": moment(now + lasts),
            "used_at": None,
            "revoked_at": None,
        }
        connection.execute(insert(tokens).values(row))
        found = connection.execute(select(tokens).where(tokens.c.id == token)).mappings().one()
        return NewToken(_token(found), f"{_PREFIXES[kind]}_{token}_{secret}")

    def create(
        self, actor: Actor, user_id: str, user: str, *, name: str, days: int, limit: Limit = NO_LIMIT
    ) -> NewToken:
        """An API token of a user. Raises TokensTooMany."""

        def work(connection: Connection) -> NewToken:
            there = connection.execute(
                select(tokens.c.id).where(tokens.c.user_id == user_id, tokens.c.kind == Kind.API.value)
            ).all()
            if len(there) >= TOKENS_OF_A_USER_MAX:
                raise TokensTooMany(user=user, number=len(there))
            made = self.make(
                connection,
                user_id,
                kind=Kind.API,
                name=name,
                lasts=dt.timedelta(days=days),
                address=actor.address,
                limit=limit,
            )
            self._audit.append(
                connection,
                actor,
                "token.create",
                user,
                vault=limit.vault or "",
                detail={
                    "token": made.token.id,
                    "name": name,
                    "expiresAt": made.token.expires_at,
                    "role": limit.role.value if limit.role else None,
                },
            )
            return made

        return self._database.run(work)

    def of(self, user_id: str, kind: Kind = Kind.API, *which: ColumnElement[bool]) -> list[Token]:
        """A user's tokens of a kind, the newest last. which: further conditions on the table's columns."""
        query = (
            select(tokens)
            .where(tokens.c.user_id == user_id, tokens.c.kind == kind.value, *which)
            .order_by(tokens.c.created_at, tokens.c.id)
        )
        with self._database.read() as connection:
            return [_token(row) for row in connection.execute(query).mappings()]

    def remove(self, actor: Actor, user_id: str, user: str, token: str) -> None:
        """End a token at once. Raises TokenUnknown."""

        def work(connection: Connection) -> None:
            gone = connection.execute(
                delete(tokens).where(tokens.c.id == token, tokens.c.user_id == user_id)
            ).rowcount
            if not gone:
                raise TokenUnknown(user=user, token=token)
            self._audit.append(connection, actor, "token.remove", user, detail={"token": token})

        self._database.run(work)

    def caller(self, text: str, *, kinds: frozenset[Kind] = frozenset({Kind.API, Kind.SESSION})) -> Caller:
        """Who holds this token. Raises Unauthenticated, whose text never holds any of it."""
        match = _TEXT.match(text)
        if match is None:
            raise Unauthenticated(why="what it sent is not a token of this server")
        prefix, token, secret = match.groups()
        # one query, a row a grant: every request asks it
        columns = (
            users.c.name.label("user_name"),
            users.c.disabled,
            grants.c.vault.label("granted_vault"),
            grants.c.role.label("granted_role"),
        )
        joined = tokens.join(users, users.c.id == tokens.c.user_id)
        joined = joined.outerjoin(grants, grants.c.user_id == tokens.c.user_id)
        found = self._database.rows(select(tokens, *columns).select_from(joined).where(tokens.c.id == token))
        row = found[0]._mapping if found else None  # noqa: SLF001 - the documented name of a row as a mapping
        # compared also when there is none: the time taken tells nothing
        same = hmac.compare_digest(row["digest"] if row else _digest(""), _digest(secret))
        if row is None or not same or _PREFIXES[Kind(row["kind"])] != prefix:
            raise Unauthenticated(why="its token is not known")
        kind = Kind(row["kind"])
        if kind not in kinds:
            raise Unauthenticated(why="a set-up token is good for `secondsite login` only, once")
        self._check(row, kind)
        held = [(one.granted_vault, one.granted_role) for one in found if one.granted_role is not None]
        self._used(row)
        return Caller(
            id=row["user_id"],
            name=row["user_name"],
            via=f"{kind.value}:{token}",
            grants=frozenset(Grant(vault, Role(role)) for vault, role in held),
            vault_limit=row["vault"],
            role_limit=Role(row["role"]) if row["role"] else None,
        )

    def _check(self, row: RowMapping, kind: Kind) -> None:
        now = self._database.clock.utc()
        if row["disabled"]:
            raise Unauthenticated(why=f"the user {row['user_name']} is disabled")
        if row["revoked_at"] is not None:
            raise Unauthenticated(why="its token was used up or revoked")
        if from_moment(row["expires_at"]) <= now:
            raise Unauthenticated(why="its token has expired")
        last = from_moment(row["used_at"] or row["created_at"])
        if kind is Kind.SESSION and now - last > dt.timedelta(minutes=SESSION_IDLE_MINUTES):
            raise Unauthenticated(why="its session was idle for too long")

    def _used(self, row: RowMapping) -> None:
        now = self._database.clock.utc()
        if row["used_at"] is not None and now - from_moment(row["used_at"]) < dt.timedelta(
            minutes=USED_MINUTES
        ):
            return
        # when it was used is for people, and for idle sessions: a busy database must not refuse the request
        with (
            contextlib.suppress(DatabaseBusy, DatabaseUnavailable),
            self._database.write(alone=False) as connection,
        ):
            connection.execute(
                update(tokens)
                .where(and_(tokens.c.id == row["id"], tokens.c.revoked_at.is_(None)))
                .values(used_at=moment(now))
            )

    def sweep(self) -> int:
        """Remove sessions and set-up tokens that ended; returns how many. API tokens stay, shown as ended."""
        with self._database.write(alone=False) as connection:
            return connection.execute(
                delete(tokens).where(
                    tokens.c.kind != Kind.API.value, tokens.c.expires_at < self._database.now()
                )
            ).rowcount


def _token(row: RowMapping) -> Token:
    return Token(
        id=row["id"],
        kind=Kind(row["kind"]),
        name=row["name"],
        vault=row["vault"],
        role=Role(row["role"]) if row["role"] else None,
        address=row["address"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        used_at=row["used_at"],
        revoked_at=row["revoked_at"],
    )
