"""Logging in at an OIDC provider: begun by a client, ended by it with what the provider gave it.

    client                    server                     provider
      begin(redirect)  ──────>  state, nonce, verifier kept, sealed
      <── id, secret, address of the provider
      browser  ──────────────────────────────────────────>  the person proves who they are
      <── code, state, perhaps iss (to the client's own port on loopback)
      finish(id, secret, code, state) ─>  code + verifier ─>  ID token
      <── a session

A begun log-in counts once, for its maker alone (its secret), for ten minutes. Whoever comes is matched by
issuer and subject; a name is only what a new user is called.
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_logins import oidc_logins
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.envelopes import MasterKey, Place
from secondsite.server.people.audit import REFUSED, Audit
from secondsite.server.people.oidc_errors import OidcLoginWrong, OidcNoRole
from secondsite.server.people.oidc_provider import Pending, Provider
from secondsite.server.people.oidc_settings import OidcSettings
from secondsite.server.people.oidc_tokens import Person, read_id_token
from secondsite.server.people.oidc_users import NoRole, known_user
from secondsite.server.people.passwords import FailureLimit
from secondsite.server.people.roles import Actor
from secondsite.server.people.sessions import Sessions
from secondsite.server.people.tokens import NewToken

BEGUN_MINUTES = 10
DEVICE_SECONDS_MAX = 1800
DEVICE_SECONDS_MIN = 1
SLOWER_SECONDS = 5  # RFC 8628, section 3.5
# Somebody who begins log-ins in a loop fills a table and asks the provider.
BEGUN_MAX = 30
BEGUN_SECONDS = 300.0
# RFC 8252: a program's redirect is its own port on loopback, which no other machine reaches.
_REDIRECT = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost):[0-9]{1,5}/callback\Z")


class Kind(enum.StrEnum):
    """How the person comes to the provider."""

    CODE = "code"
    DEVICE = "device"


class _Kept(msgspec.Struct, frozen=True):
    """What is sealed in a begun log-in."""

    state: str = ""
    nonce: str = ""
    verifier: str = ""
    redirect: str = ""
    device_code: str = ""


@dataclass(frozen=True)
class Begun:
    """A log-in that was begun. secret: proves to `finish` who began it."""

    id: str
    secret: str
    expires_at: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id})"


@dataclass(frozen=True, repr=False)
class BegunCode(Begun):
    """With a browser on this machine. url: where it begins; state: what must come back."""

    url: str
    state: str


@dataclass(frozen=True, repr=False)
class BegunDevice(Begun):
    """With a browser elsewhere: the person opens the address and enters the code."""

    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    interval_seconds: int


@dataclass(frozen=True)
class Wait:
    """Not yet: ask again in so many seconds."""

    seconds: int


class OidcLogins:
    """Log-ins at the provider that is set."""

    def __init__(
        self, database: Database, audit: Audit, sessions: Sessions, master: MasterKey, settings: OidcSettings
    ) -> None:
        self._database = database
        self._audit = audit
        self._sessions = sessions
        self._master = master
        self._settings = settings
        self._by_address = FailureLimit(failures_max=BEGUN_MAX, seconds=BEGUN_SECONDS, clock=database.clock)

    def begin(self, redirect: str, *, address: str) -> BegunCode:
        """Begin with a browser. Raises InvalidInput, OidcNone, OidcUnreachable or TooManyRequests."""
        if not _REDIRECT.match(redirect):
            raise InvalidInput(
                what=f"the redirect {redirect[:100]!r}", why="it is not http://127.0.0.1:PORT/callback"
            )
        self._by_address.begin(address)
        kept = _Kept(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            redirect=redirect,
        )
        url = self._settings.provider().authorization_url(
            redirect=redirect, state=kept.state, nonce=kept.nonce, verifier=kept.verifier
        )
        begun = self._keep(Kind.CODE, kept, BEGUN_MINUTES * 60, 0)
        return BegunCode(begun.id, begun.secret, begun.expires_at, url, kept.state)

    def begin_device(self, *, address: str) -> BegunDevice:
        """Begin without one. Raises as `begin`, and OidcNoDevices or OidcRefused."""
        self._by_address.begin(address)
        found = self._settings.provider().begin_device()
        lasts = min(max(found.expires_in, 60), DEVICE_SECONDS_MAX)
        interval = max(found.interval, DEVICE_SECONDS_MIN)
        begun = self._keep(Kind.DEVICE, _Kept(device_code=found.device_code), lasts, interval)
        return BegunDevice(
            begun.id,
            begun.secret,
            begun.expires_at,
            found.user_code,
            found.verification_uri,
            found.verification_uri_complete,
            interval,
        )

    def _keep(self, kind: Kind, kept: _Kept, seconds: int, interval: int) -> Begun:
        now = self._database.clock.utc()
        identity, secret = secrets.token_hex(16), secrets.token_urlsafe(32)
        envelope = self._master.seal(_place(identity), msgspec.json.encode(kept))
        expires = moment(now + dt.timedelta(seconds=seconds))

        def work(connection: Connection) -> None:
            connection.execute(oidc_logins.delete().where(oidc_logins.c.expires_at < moment(now)))
            connection.execute(
                oidc_logins.insert().values(
                    id=identity,
                    kind=kind.value,
                    digest=_digest(secret),
                    envelope=base64.b64encode(envelope).decode(),
                    expires_at=expires,
                    interval_seconds=interval,
                )
            )

        self._database.run(work)
        return Begun(identity, secret, expires)

    def finish(
        self, login: str, secret: str, *, code: str, state: str, issuer: str | None, actor: Actor
    ) -> NewToken:
        """A session for what the provider gave the client. actor: from where; its name is not known yet.

        Raises OidcLoginWrong, OidcNoRole, OidcNone, OidcRefused or OidcUnreachable.
        """
        # taken before anything is tried: what came once counts never again, whatever becomes of it
        kept = self._open(self._taken(login, secret, Kind.CODE))
        provider = self._settings.provider()
        try:
            self._check_answer(provider, kept, state, issuer)
            token = provider.redeem(code, redirect=kept.redirect, verifier=kept.verifier)
            person = read_id_token(token, provider, nonce=kept.nonce, now=self._database.clock.utc())
        except SecondsiteError as error:
            self._refused(actor, error)
            raise
        return self._let_in(provider, person, actor)

    def _check_answer(self, provider: Provider, kept: _Kept, state: str, issuer: str | None) -> None:
        if not hmac.compare_digest(kept.state.encode(), state.encode()):
            raise OidcLoginWrong(why="the answer belongs to another log-in")
        if issuer is None and provider.discovered().authorization_response_iss_parameter_supported:
            raise OidcLoginWrong(why="the answer does not say which provider it is from")
        if issuer is not None and issuer != provider.settings.issuer:
            raise OidcLoginWrong(why="the answer is another provider's")  # RFC 9207: mix-up

    def finish_device(self, login: str, secret: str, *, actor: Actor) -> NewToken | Wait:
        """A session, once the person has entered the code. Raises as `finish`."""
        row = self._row(login, secret, Kind.DEVICE)
        now = self._database.clock.utc()
        if row.asked_at is not None:
            left = row.interval_seconds - (now - from_moment(row.asked_at)).total_seconds()
            if left > 0:
                return Wait(int(left) + 1)
        provider = self._settings.provider()
        try:
            token = provider.redeem_device(self._open(row).device_code)
            if isinstance(token, Pending):
                return self._later(row, slower=token.slower)
            self._taken(login, secret, Kind.DEVICE)
            person = read_id_token(token, provider, nonce=None, now=now)
        except SecondsiteError as error:
            self._refused(actor, error)
            raise
        return self._let_in(provider, person, actor)

    def _later(self, row: Row[tuple[object, ...]], *, slower: bool) -> Wait:
        seconds = row.interval_seconds + (SLOWER_SECONDS if slower else 0)
        values = {"asked_at": self._database.now(), "interval_seconds": seconds}
        with self._database.write(alone=False) as connection:
            connection.execute(oidc_logins.update().where(oidc_logins.c.id == row.id).values(**values))
        return Wait(seconds)

    def _row(self, login: str, secret: str, kind: Kind) -> Row[tuple[object, ...]]:
        with self._database.read() as connection:
            query = sa.select(oidc_logins).where(oidc_logins.c.id == login, oidc_logins.c.kind == kind.value)
            row = connection.execute(query).one_or_none()
        # compared also when there is none: the time taken tells nothing
        same = hmac.compare_digest(row.digest if row else _digest(""), _digest(secret))
        if row is None or not same or row.expires_at <= self._database.now():
            raise OidcLoginWrong(why="it was not begun here, took too long, or was used already")
        return row

    def _taken(self, login: str, secret: str, kind: Kind) -> Row[tuple[object, ...]]:
        row = self._row(login, secret, kind)
        gone = self._database.run(
            lambda connection: (
                connection.execute(oidc_logins.delete().where(oidc_logins.c.id == login)).rowcount
            )
        )
        if not gone:
            raise OidcLoginWrong(why="it was used already")
        return row

    def _open(self, row: Row[tuple[object, ...]]) -> _Kept:
        plain = self._master.open(_place(str(row.id)), base64.b64decode(str(row.envelope)))
        return msgspec.json.decode(plain, type=_Kept)

    def _let_in(self, provider: Provider, person: Person, actor: Actor) -> NewToken:
        def work(connection: Connection) -> NewToken | NoRole:
            user = known_user(connection, self._database, self._audit, person, actor)
            if isinstance(user, NoRole):
                return user
            lasts = dt.timedelta(minutes=provider.settings.session_minutes)
            made = self._sessions.open(connection, user.id, lasts=lasts, address=actor.address)
            who = Actor(user.name, f"session:{made.token.id}", actor.address, actor.request_id)
            detail = {"issuer": person.issuer, "subject": person.subject}
            self._audit.append(connection, who, "session.create", user.name, detail=detail)
            return made

        try:
            found = self._database.run(work)
        except SecondsiteError as error:
            self._refused(actor, error, person)
            raise
        if isinstance(found, NoRole):
            refused = OidcNoRole(who=found.who, groups=", ".join(person.groups)[:200] or "they are in none")
            self._refused(actor, refused, person)
            raise refused
        self._by_address.succeeded(actor.address)
        return found

    def _refused(self, actor: Actor, error: SecondsiteError, person: Person | None = None) -> None:
        detail = {"code": error.code, "why": str(error.fields.get("why", ""))[:300]}
        if person is not None:
            detail |= {"issuer": person.issuer, "subject": person.subject}
        self._audit.record(
            actor, "session.create", person.name if person else "", outcome=REFUSED, detail=detail
        )


def _place(login: str) -> Place:
    return Place("oidc_logins", login, "envelope")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
