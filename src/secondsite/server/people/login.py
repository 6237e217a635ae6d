"""How somebody comes in: with a password, or, the very first time, with the set-up token.

The first start of a server makes the user `owner`, and a set-up token that lies in a file only the server's
user can read: who can read it owns the server's files anyway. It is good once, for an API token and a
password.
The file is written before the database knows its token: a crash in between leaves a file without a use, and
the next start makes another.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from sqlalchemy import Connection, insert, select, update

from secondsite.base.errors import Outcome
from secondsite.base.files import remove_file, replace_file
from secondsite.server.api.errors import HttpError, Unauthenticated
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_people import grants, tokens, users
from secondsite.server.database.values import fresh_id
from secondsite.server.people.audit import REFUSED, Audit
from secondsite.server.people.passwords import FailureLimit, Passwords
from secondsite.server.people.roles import EVERYWHERE, THE_SERVER, Actor, Caller, Role
from secondsite.server.people.sessions import Sessions
from secondsite.server.people.tokens import SESSION_HOURS, SETUP_DAYS, Kind, NewToken, Tokens

OWNER = "owner"
FIRST_TOKEN_DAYS = 365

# A person mistypes some times; a guesser gets 5 tries in 5 minutes, half a million a year for one name.
NAME_FAILURES_MAX = 5
# Several people behind one address, but no dictionary.
ADDRESS_FAILURES_MAX = 30
FAILURE_SECONDS = 300.0


class PasswordWrong(HttpError):
    """One sentence for every reason: which it was helps only who guesses."""

    code = "login.refused"
    outcome = Outcome.REFUSED
    status = 401
    happened = "The user name or the password is wrong."
    cause = "One of them is mistyped, the user has no password, or is disabled."
    action = "Try again, or ask an owner to set the password (`secondsite user password NAME`)."


class Logins:
    """Log-ins with a password, and the set-up of a new server."""

    def __init__(
        self, database: Database, audit: Audit, tokens_: Tokens, passwords: Passwords, *, setup_file: Path
    ) -> None:
        self._database = database
        self._audit = audit
        self._tokens = tokens_
        self._passwords = passwords
        self._setup_file = setup_file
        self._sessions = Sessions(database, audit, tokens_)
        clock = database.clock
        self._by_name = FailureLimit(failures_max=NAME_FAILURES_MAX, seconds=FAILURE_SECONDS, clock=clock)
        self._by_address = FailureLimit(
            failures_max=ADDRESS_FAILURES_MAX, seconds=FAILURE_SECONDS, clock=clock
        )

    def log_in(self, name: str, password: str, *, address: str, request_id: str) -> NewToken:
        """A session. Raises PasswordWrong, TooManyRequests or NotReady (too many at once)."""
        # name and address together: nobody can lock somebody else out from elsewhere
        self._by_address.begin(address)
        self._by_name.begin(f"{name}@{address}")
        with self._database.read() as connection:
            row = connection.execute(select(users).where(users.c.name == name)).mappings().one_or_none()
        kept = None if row is None or row["disabled"] else row["password"]
        matches = self._passwords.matches(kept, password)
        if row is None or not matches:
            self._audit.record(
                Actor(name, "password", address, request_id), "session.create", name, outcome=REFUSED
            )
            raise PasswordWrong
        self._by_address.succeeded(address)
        self._by_name.succeeded(f"{name}@{address}")
        again = self._passwords.keep(password) if kept and self._passwords.outdated(kept) else None

        def work(connection: Connection) -> NewToken:
            if again is not None:
                connection.execute(
                    update(users)
                    .where(users.c.id == row["id"], users.c.password == kept)
                    .values(password=again)
                )
            lasts = dt.timedelta(hours=SESSION_HOURS)
            made = self._sessions.open(connection, row["id"], lasts=lasts, address=address)
            actor = Actor(name, f"session:{made.token.id}", address, request_id)
            self._audit.append(connection, actor, "session.create", name)
            return made

        return self._database.run(work)

    def log_out(self, actor: Actor, caller: Caller) -> None:
        """End the session, or the API token, that the caller used."""
        token = caller.via.partition(":")[2]

        def work(connection: Connection) -> None:
            connection.execute(tokens.delete().where(tokens.c.id == token))
            self._audit.append(connection, actor, "session.end", caller.name, detail={"token": token})

        self._database.run(work)

    def confirm(self, name: str, password: str, *, address: str) -> None:
        """Check the password of somebody who is logged in already. Raises PasswordWrong, TooManyRequests."""
        self._by_name.begin(f"{name}@{address}")
        with self._database.read() as connection:
            kept = connection.execute(
                select(users.c.password).where(users.c.name == name)
            ).scalar_one_or_none()
        if not self._passwords.matches(kept, password):
            raise PasswordWrong
        self._by_name.succeeded(f"{name}@{address}")

    def prepare(self, *, again: bool = False) -> Path | None:
        """Make the first owner where there is no user; returns the file of the set-up token, if one was made.

        again: make another set-up token for the owner, as whoever runs the server may.
        """
        with self._database.read() as connection:
            if not again and connection.execute(select(users.c.id).limit(1)).first() is not None:
                return None
        try:
            with self._database.write() as connection:
                there = connection.execute(select(users.c.id).limit(1)).first() is not None
                if there and not again:
                    return None  # another server on this database was quicker
                made = self._setup_token(connection, self._owner(connection))
                # before the database keeps its digest: see above
                replace_file(self._setup_file, f"{made.text}\n".encode(), mode=0o600)
        except BaseException:
            remove_file(self._setup_file)
            raise
        return self._setup_file

    def _owner(self, connection: Connection) -> str:
        """The id of the user `owner`, made and given everything where it is not so."""
        owner = connection.execute(select(users.c.id).where(users.c.name == OWNER)).scalar_one_or_none()
        if owner is None:
            owner = fresh_id(self._database.clock)
            row = {"id": owner, "name": OWNER, "display_name": "Owner", "password": None, "disabled": 0}
            connection.execute(insert(users).values(**row, created_at=self._database.now()))
        connection.execute(update(users).where(users.c.id == owner).values(disabled=0))
        held = {"user_id": owner, "vault": EVERYWHERE, "role": Role.OWNER.value}
        same = (grants.c[name] == value for name, value in held.items())
        if connection.execute(select(grants.c.role).where(*same)).first() is None:
            connection.execute(insert(grants).values(held))
        return str(owner)

    def _setup_token(self, connection: Connection, owner: str) -> NewToken:
        connection.execute(
            tokens.delete().where(tokens.c.user_id == owner, tokens.c.kind == Kind.SETUP.value)
        )
        lasts = dt.timedelta(days=SETUP_DAYS)
        made = self._tokens.make(connection, owner, kind=Kind.SETUP, name="set-up", lasts=lasts, address="")
        self._audit.append(
            connection, THE_SERVER, "server.set-up-token", OWNER, detail={"token": made.token.id}
        )
        return made

    def set_up(self, text: str, *, password: str | None, address: str, request_id: str) -> NewToken:
        """Use the set-up token: an API token for the owner, and a password when one is given."""
        self._by_address.begin(address)
        caller = self._tokens.caller(text, kinds=frozenset({Kind.SETUP}))
        kept = None if password is None else self._passwords.keep(password)
        setup = caller.via.partition(":")[2]

        def work(connection: Connection) -> NewToken:
            used = connection.execute(
                update(tokens)
                .where(tokens.c.id == setup, tokens.c.revoked_at.is_(None))
                .values(revoked_at=self._database.now())
            ).rowcount
            if not used:
                raise Unauthenticated(why="its set-up token was used already")
            if kept is not None:
                connection.execute(update(users).where(users.c.id == caller.id).values(password=kept))
            made = self._tokens.make(
                connection,
                caller.id,
                kind=Kind.API,
                name="set-up",
                lasts=dt.timedelta(days=FIRST_TOKEN_DAYS),
                address=address,
            )
            actor = Actor(caller.name, caller.via, address, request_id)
            self._audit.append(
                connection, actor, "server.set-up", caller.name, detail={"token": made.token.id}
            )
            return made

        made = self._database.run(work)
        self._by_address.succeeded(address)
        remove_file(self._setup_file)
        return made
