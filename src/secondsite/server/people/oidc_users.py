"""Which user somebody is whom the provider names, and what they may do now."""

from __future__ import annotations

import re
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.server.database.engine import Database
from secondsite.server.database.tables_logins import oidc_grants, oidc_identities
from secondsite.server.database.tables_people import grants, users
from secondsite.server.database.values import fresh_id
from secondsite.server.people.audit import Audit
from secondsite.server.people.oidc_errors import OidcLoginWrong
from secondsite.server.people.oidc_settings import grants_for
from secondsite.server.people.oidc_tokens import Person
from secondsite.server.people.roles import EVERYWHERE, Actor, Grant, Role

NAME_CHARACTERS_MAX = 64
_NOT_IN_NAMES = re.compile(r"[^a-z0-9._@-]+")


@dataclass(frozen=True)
class NoRole:
    """Nothing is mapped to any of their groups."""

    who: str


@dataclass(frozen=True)
class KnownUser:
    """Who it is here."""

    id: str
    name: str


def known_user(
    connection: Connection, database: Database, audit: Audit, person: Person, actor: Actor
) -> KnownUser | NoRole:
    """The user with this issuer and subject, made where there is none, with the roles of their groups.

    Who has no role gets no user. Raises OidcLoginWrong for a user who is disabled.
    """
    wanted = grants_for(connection, person.groups)
    row = connection.execute(
        sa.select(users.c.id, users.c.name, users.c.disabled)
        .join(oidc_identities, oidc_identities.c.user_id == users.c.id)
        .where(oidc_identities.c.issuer == person.issuer, oidc_identities.c.subject == person.subject)
    ).one_or_none()
    if row is None:
        if not wanted:
            return NoRole(person.name or person.subject)
        user = _made(connection, database, audit, person, actor)
    elif row.disabled:
        raise OidcLoginWrong(why="the user is disabled on this server")
    else:
        user = KnownUser(row.id, row.name)
    _set_roles(connection, audit, user, wanted, actor)
    mine = (oidc_identities.c.issuer == person.issuer, oidc_identities.c.subject == person.subject)
    connection.execute(oidc_identities.update().where(*mine).values(seen_at=database.now()))
    held = connection.execute(sa.select(grants.c.role).where(grants.c.user_id == user.id).limit(1)).first()
    return NoRole(user.name) if held is None else user


def _made(
    connection: Connection, database: Database, audit: Audit, person: Person, actor: Actor
) -> KnownUser:
    user = KnownUser(fresh_id(database.clock), _free_name(connection, person))
    now = database.now()
    connection.execute(
        users.insert().values(
            id=user.id,
            name=user.name,
            display_name=person.display_name,
            password=None,
            disabled=0,
            created_at=now,
        )
    )
    connection.execute(
        oidc_identities.insert().values(
            issuer=person.issuer, subject=person.subject, user_id=user.id, seen_at=now
        )
    )
    detail = {"issuer": person.issuer, "subject": person.subject}
    audit.append(connection, actor, "user.create", user.name, detail=detail)
    return user


def _free_name(connection: Connection, person: Person) -> str:
    """What the provider calls them, as names are here; never the name of somebody who is there already."""
    wished = _NOT_IN_NAMES.sub("-", person.name.lower()).strip("._@-") or "user"
    wished = wished[: NAME_CHARACTERS_MAX - 6]
    taken = set(
        connection.execute(
            sa.select(users.c.name).where(users.c.name.startswith(wished, autoescape=True))
        ).scalars()
    )
    # the names that the log uses for what is no person
    taken |= {"server", "owner"}
    number = 1
    name = wished
    while name in taken:
        number += 1
        name = f"{wished}-{number}"
    return name


def _set_roles(
    connection: Connection, audit: Audit, user: KnownUser, wanted: frozenset[Grant], actor: Actor
) -> None:
    """Give what the groups give, take what they gave before; what people granted stays as it is."""

    def told(what: str, grant: Grant) -> None:
        vault = "" if grant.vault == EVERYWHERE else grant.vault
        detail = {"role": grant.role.value, "by": "groups at the OIDC provider"}
        audit.append(connection, actor, what, user.name, vault=vault, detail=detail)

    held = _grants(connection, grants, user)
    given = _grants(connection, oidc_grants, user)
    for grant in sorted(given - wanted):
        values = _row(user, grant)
        if grant == Grant(EVERYWHERE, Role.OWNER) and _last_owner(connection, user):
            continue  # without an owner nobody could give roles to anybody: it goes when there is another
        for table in (grants, oidc_grants):
            connection.execute(
                table.delete().where(*(table.c[name] == value for name, value in values.items()))
            )
        told("role.withdraw", grant)
    for grant in sorted(wanted - given - held):
        for table in (grants, oidc_grants):
            connection.execute(table.insert().values(_row(user, grant)))
        told("role.grant", grant)


def _grants(connection: Connection, table: sa.Table, user: KnownUser) -> frozenset[Grant]:
    query = sa.select(table.c.vault, table.c.role).where(table.c.user_id == user.id)
    return frozenset(Grant(row.vault, Role(row.role)) for row in connection.execute(query))


def _row(user: KnownUser, grant: Grant) -> dict[str, str]:
    return {"user_id": user.id, "vault": grant.vault, "role": grant.role.value}


def comes_from_outside(connection: Connection, user_id: str) -> bool:
    """Whether a provider says who it is: then the provider, not a password of ours, lets them in."""
    query = sa.select(oidc_identities.c.subject).where(oidc_identities.c.user_id == user_id)
    return connection.execute(query).first() is not None


def _last_owner(connection: Connection, user: KnownUser) -> bool:
    other = connection.execute(
        sa.select(users.c.id)
        .join(grants, grants.c.user_id == users.c.id)
        .where(
            grants.c.vault == EVERYWHERE,
            grants.c.role == Role.OWNER.value,
            users.c.disabled == 0,
            users.c.id != user.id,
        )
        .limit(1)
    ).first()
    return other is None
