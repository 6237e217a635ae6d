"""What an owner set: the OIDC provider, its client's secret as an envelope, and groups -> roles."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_logins import oidc_logins, oidc_provider, oidc_roles
from secondsite.server.identity.envelopes import MasterKey, Place
from secondsite.server.people.audit import Audit
from secondsite.server.people.oidc_errors import OidcNone
from secondsite.server.people.oidc_provider import Discovered, Provider, Settings
from secondsite.server.people.roles import EVERYWHERE, Actor, Grant, Role

SECRET_PLACE = Place("oidc_provider", "1", "secret_envelope")
EVERYBODY = "*"
_FIELDS = (
    "issuer",
    "client_id",
    "authority",
    "scopes",
    "groups_claim",
    "name_claim",
    "session_minutes",
)


@dataclass(frozen=True, order=True)
class Mapped:
    """Who is in the group (EVERYBODY: whoever logs in there) has the role."""

    group: str
    grant: Grant


class OidcSettings:
    """The provider's row, and the provider made of it."""

    def __init__(self, database: Database, audit: Audit, master: MasterKey) -> None:
        self._database = database
        self._audit = audit
        self._master = master
        self._made: tuple[str, Provider] | None = None

    def provider(self) -> Provider:
        """The provider as it is set now, with what is kept of it. Raises OidcNone."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(oidc_provider)).one_or_none()
        if row is None:
            raise OidcNone
        made = self._made
        if made is not None and made[0] == row.changed_at:
            return made[1]
        secret = None
        if row.secret_envelope is not None:
            envelope = base64.b64decode(row.secret_envelope)
            secret = self._master.open(SECRET_PLACE, envelope).decode()
        values = {name: getattr(row, name) for name in _FIELDS}
        provider = Provider(Settings(secret=secret, **values), self._database.clock)
        self._made = (row.changed_at, provider)
        return provider

    def set(self, actor: Actor, settings: Settings) -> Discovered:
        """Try the provider, and keep it where it works.

        Raises InvalidInput, OidcUnreachable or OidcRefused; nothing was changed then.
        """
        found = Provider(settings, self._database.clock).check()
        envelope = None
        if settings.secret is not None:
            envelope = base64.b64encode(self._master.seal(SECRET_PLACE, settings.secret.encode())).decode()
        values = {name: getattr(settings, name) for name in _FIELDS}

        def work(connection: Connection) -> None:
            connection.execute(oidc_provider.delete())
            connection.execute(
                oidc_provider.insert().values(
                    id=1, secret_envelope=envelope, changed_at=self._database.now(), **values
                )
            )
            # begun at another provider: must not end at this one
            connection.execute(oidc_logins.delete())
            self._audit.append(
                connection,
                actor,
                "oidc.set",
                settings.issuer,
                detail={"clientId": settings.client_id, "secret": settings.secret is not None},
            )

        self._database.run(work)
        return found

    def remove(self, actor: Actor) -> None:
        """Forget the provider; users it made stay, and come in with tokens only. Raises OidcNone."""

        def work(connection: Connection) -> None:
            issuer = connection.execute(sa.select(oidc_provider.c.issuer)).scalar_one_or_none()
            if issuer is None:
                raise OidcNone
            connection.execute(oidc_provider.delete())
            connection.execute(oidc_logins.delete())
            self._audit.append(connection, actor, "oidc.remove", issuer)

        self._database.run(work)

    def mapped(self) -> list[Mapped]:
        """Groups and their roles."""
        with self._database.read() as connection:
            return sorted(_mapped(connection))

    def map(self, actor: Actor, mapped: Mapped) -> None:
        """Give a group's people a role, from their next log-in on; one that is mapped stays."""

        def work(connection: Connection) -> None:
            if mapped in _mapped(connection):
                return
            connection.execute(oidc_roles.insert().values(_row(mapped)))
            self._tell(connection, actor, "oidc.map", mapped)

        self._database.run(work)

    def unmap(self, actor: Actor, mapped: Mapped) -> None:
        """Take it back, with their next log-in; one that is not mapped is fine."""

        def work(connection: Connection) -> None:
            same = (oidc_roles.c[name] == value for name, value in _row(mapped).items())
            if connection.execute(oidc_roles.delete().where(*same)).rowcount:
                self._tell(connection, actor, "oidc.unmap", mapped)

        self._database.run(work)

    def _tell(self, connection: Connection, actor: Actor, what: str, mapped: Mapped) -> None:
        vault = "" if mapped.grant.vault == EVERYWHERE else mapped.grant.vault
        detail = {"role": mapped.grant.role.value}
        self._audit.append(connection, actor, what, mapped.group, vault=vault, detail=detail)


def _mapped(connection: Connection) -> set[Mapped]:
    return {
        Mapped(row.claim, Grant(row.vault, Role(row.role)))
        for row in connection.execute(sa.select(oidc_roles))
    }


def grants_for(connection: Connection, groups: tuple[str, ...]) -> frozenset[Grant]:
    """The roles of somebody in these groups."""
    return frozenset(
        one.grant for one in _mapped(connection) if one.group == EVERYBODY or one.group in groups
    )


def _row(mapped: Mapped) -> dict[str, str]:
    return {"claim": mapped.group, "vault": mapped.grant.vault, "role": mapped.grant.role.value}
