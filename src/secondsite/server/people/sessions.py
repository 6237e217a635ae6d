"""Sessions: who is logged in from where, ended by themselves or by others, one a user where it is set so."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_logins import login_settings
from secondsite.server.database.tables_people import tokens
from secondsite.server.database.values import moment
from secondsite.server.people.audit import Audit
from secondsite.server.people.roles import Actor
from secondsite.server.people.tokens import SESSION_IDLE_MINUTES, Kind, NewToken, Token, Tokens, TokenUnknown

ROW = 1


class Sessions:
    """The sessions of one database."""

    def __init__(self, database: Database, audit: Audit, tokens_: Tokens) -> None:
        self._database = database
        self._audit = audit
        self._tokens = tokens_

    def open(self, connection: Connection, user_id: str, *, lasts: dt.timedelta, address: str) -> NewToken:
        """A new one, in the caller's transaction; the user's others end where there may be one only."""
        if _one(connection):
            self.end_others(connection, user_id, keep=None)
        return self._tokens.make(
            connection, user_id, kind=Kind.SESSION, name="session", lasts=lasts, address=address
        )

    def end_others(self, connection: Connection, user_id: str, *, keep: str | None) -> int:
        """End a user's sessions but one; how many ended."""
        gone = sa.delete(tokens).where(tokens.c.user_id == user_id, tokens.c.kind == Kind.SESSION.value)
        return connection.execute(gone if keep is None else gone.where(tokens.c.id != keep)).rowcount

    def of(self, user_id: str) -> list[Token]:
        """A user's sessions that are alive, the newest last."""
        now = self._database.clock.utc()
        idle = moment(now - dt.timedelta(minutes=SESSION_IDLE_MINUTES))
        used = sa.func.coalesce(tokens.c.used_at, tokens.c.created_at)
        return self._tokens.of(user_id, Kind.SESSION, tokens.c.expires_at > moment(now), used >= idle)

    def end(self, actor: Actor, user_id: str, user: str, session: str) -> None:
        """End one at once. Raises TokenUnknown."""

        def work(connection: Connection) -> None:
            gone = sa.delete(tokens).where(
                tokens.c.id == session, tokens.c.user_id == user_id, tokens.c.kind == Kind.SESSION.value
            )
            if not connection.execute(gone).rowcount:
                raise TokenUnknown(user=user, token=session)
            self._audit.append(connection, actor, "session.end", user, detail={"token": session})

        self._database.run(work)

    def end_all(self, actor: Actor, user_id: str, user: str, *, keep: str | None = None) -> int:
        """End all of a user's sessions but one; how many."""

        def work(connection: Connection) -> int:
            ended = self.end_others(connection, user_id, keep=keep)
            self._audit.append(connection, actor, "session.end", user, detail={"sessions": ended})
            return ended

        return self._database.run(work)

    def one_only(self) -> bool:
        """Whether a user may have one session only."""
        with self._database.read() as connection:
            return _one(connection)

    def set_one_only(self, actor: Actor, *, one: bool) -> None:
        """Say whether a log-in ends the user's other sessions."""

        def work(connection: Connection) -> None:
            connection.execute(login_settings.delete())
            connection.execute(login_settings.insert().values(id=ROW, one_session=int(one)))
            self._audit.append(connection, actor, "login.write", "sessions", detail={"oneSession": one})

        self._database.run(work)


def _one(connection: Connection) -> bool:
    return bool(connection.execute(sa.select(login_settings.c.one_session)).scalar_one_or_none())
