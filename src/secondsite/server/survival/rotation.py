"""The server's authority takes another's place, with every gateway in touch all the while.

    Next      made; gateways are told to trust it beside the one in use
    Current   once every registered gateway trusts both and had time to take that up: it signs, the old one is
    Retiring  and gateways are told to take a certificate of the new one
    Retired   once every registered gateway shows one, and has a revocation list the new one signed

Each step is one transaction, taken when the last gateway has followed; a gateway that is away is waited for:
it would find a server it cannot know. Who is gone for good is unregistered or revoked.
"""

from __future__ import annotations

import datetime as dt
import threading

import msgspec
import sqlalchemy as sa
from cryptography import x509
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import authorities, gateways, registration_keys
from secondsite.server.database.tables_survival import authority_phases, gateway_trust
from secondsite.server.database.values import moment
from secondsite.server.identity.authority import Phase, ServerAuthority, add_authority, count_up
from secondsite.server.identity.states import GatewayState
from secondsite.transfer.certificates import fingerprint

NEXT_MADE = mark("authority.next-made")
SWITCHED = mark("authority.switched")
RETIRED = mark("authority.retired")

# A gateway takes up changed certificates within two looks a minute apart (`gateway.certificates`), then links
# of its own are made anew: what it trusts counts only after that.
SETTLE_SECONDS = 180.0
LOOK_SECONDS = 2.0


class RotationUnderWay(SecondsiteError):
    """One at a time."""

    code = "authority.rotation-under-way"
    outcome = Outcome.REFUSED
    happened = "The authority is being rotated already: {phase} since {since}."
    cause = "It waits for gateways that are away, or has just begun."
    action = (
        "See `secondsite server authority` for whom it waits; unregister a gateway that is gone for good."
    )


class AuthorityStatus(msgspec.Struct, frozen=True, rename="camel"):
    """One authority. waits_for: gateways that have not followed to where it goes on."""

    id: str
    phase: str
    since: str
    fingerprint: str  # SHA-256 of its certificate, hexadecimal
    valid_until: str
    waits_for: tuple[str, ...] = ()


class Rotation:
    """Of one server's database. Thread-safe."""

    def __init__(self, database: Database, authority: ServerAuthority, name: str, clock: Clock) -> None:
        self._database = database
        self._authority = authority
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._looked = clock.monotonic()
        self._told: dict[str, tuple[str, str, int]] = {}  # by gateway, what is written already

    def begin(self, connection: Connection) -> str:
        """Make the next authority; its id. Raises RotationUnderWay."""
        under_way = sa.select(authority_phases).where(
            authority_phases.c.phase.in_([Phase.NEXT.value, Phase.RETIRING.value])
        )
        found = connection.execute(under_way).first()
        if found is not None:
            raise RotationUnderWay(phase=found.phase, since=found.since)
        row = str(connection.execute(sa.select(sa.func.count()).select_from(authorities)).scalar_one() + 1)
        number = connection.execute(sa.select(sa.func.max(authorities.c.revocation_number))).scalar_one()
        now = self._clock.utc()
        name = f"{self._name} {row}"  # another subject: certificates name their issuer by it
        add_authority(connection, self._authority.master, row, name, now, revocation_number=number)
        self._set(connection, row, Phase.NEXT)
        crash_point(NEXT_MADE)
        return row

    def heard(self, gateway: str, certificate: x509.Certificate, trust: str, revocations: int) -> bool:
        """A gateway shows where it stands; True when its certificate is of an authority that goes."""
        self._look()
        issuer = self._authority.issuer_of(certificate)
        said = (trust, issuer.id if issuer is not None else "", revocations)
        if self._told.get(gateway) != said:
            self._database.run(lambda connection: self._write(connection, gateway, said))
            with self._lock:
                self._told[gateway] = said
        return issuer is not None and issuer.phase is Phase.RETIRING

    def advance(self) -> bool:
        """Go on where every gateway has followed; True when it did."""
        changed = self._database.run(self._advance)
        if changed:
            self._authority.look()
        return changed

    def status(self) -> list[AuthorityStatus]:
        """Every authority, oldest first."""
        query = sa.select(authorities, authority_phases.c.phase, authority_phases.c.since).select_from(
            authorities.outerjoin(authority_phases, authority_phases.c.authority == authorities.c.id)
        )
        found = []
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(authorities.c.created_at, authorities.c.id)):
                certificate = x509.load_pem_x509_certificate(row.certificate.encode())
                phase = Phase(row.phase or Phase.CURRENT)
                found.append(
                    AuthorityStatus(
                        id=row.id,
                        phase=phase.value,
                        since=row.since or row.created_at,
                        fingerprint=fingerprint(certificate).hex(),
                        valid_until=moment(certificate.not_valid_after_utc),
                        waits_for=tuple(self._behind(connection, phase)),
                    )
                )
        return found

    def _advance(self, connection: Connection) -> bool:
        phases = {row.phase: row.authority for row in connection.execute(sa.select(authority_phases))}
        if Phase.NEXT in phases:
            if self._behind(connection, Phase.NEXT):
                return False
            self._switch(connection, phases[Phase.NEXT])
            crash_point(SWITCHED)
            return True
        if Phase.RETIRING in phases:
            if self._behind(connection, Phase.RETIRING):
                return False
            self._set(connection, phases[Phase.RETIRING], Phase.RETIRED)
            crash_point(RETIRED)
            return True
        return False

    def _switch(self, connection: Connection, following: str) -> None:
        old = self._current(connection)
        self._set(connection, old, Phase.RETIRING)
        self._set(connection, following, Phase.CURRENT)
        # a list signed by the new one: the old one's does not count any more once it is retired
        count_up(connection)
        # keys name the authority of their time: a gateway that enrols with one would not know the server
        now = moment(self._clock.utc())
        active = registration_keys.c.revoked_at.is_(None) & (registration_keys.c.ends_at > now)
        connection.execute(registration_keys.update().where(active).values(revoked_at=now))

    def _behind(self, connection: Connection, phase: Phase) -> list[str]:
        """Registered gateways that have not followed, or not for long enough."""
        if phase not in {Phase.NEXT, Phase.RETIRING}:
            return []
        edge = moment(self._clock.utc() - dt.timedelta(seconds=SETTLE_SECONDS))
        followed = gateway_trust.c.since <= edge
        if phase is Phase.NEXT:
            followed &= gateway_trust.c.trust == self._authority.trust
        else:
            number = sa.select(sa.func.max(authorities.c.revocation_number)).scalar_subquery()
            followed &= gateway_trust.c.issuer == self._current(connection)
            followed &= gateway_trust.c.revocations >= number
        query = (
            sa.select(gateways.c.name)
            .outerjoin(gateway_trust, gateway_trust.c.gateway_id == gateways.c.id)
            .where(gateways.c.state == GatewayState.REGISTERED.value)
            .where(sa.not_(sa.func.coalesce(followed, sa.false())))
        )
        return list(connection.execute(query.order_by(gateways.c.name)).scalars())

    def _current(self, connection: Connection) -> str:
        phased = sa.select(authority_phases.c.authority).where(
            authority_phases.c.phase != Phase.CURRENT.value
        )
        current = sa.select(authorities.c.id).where(authorities.c.id.not_in(phased))
        return str(connection.execute(current).scalar_one())

    def _set(self, connection: Connection, authority: str, phase: Phase) -> None:
        connection.execute(authority_phases.delete().where(authority_phases.c.authority == authority))
        values = {"authority": authority, "phase": phase.value, "since": moment(self._clock.utc())}
        connection.execute(authority_phases.insert().values(values))

    def _write(self, connection: Connection, gateway: str, said: tuple[str, str, int]) -> None:
        trust, issuer, revocations = said
        make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        values = {"trust": trust, "issuer": issuer, "revocations": revocations}
        first = make(gateway_trust).values(gateway_id=gateway, **values, since=moment(self._clock.utc()))
        new = first.excluded
        changed = sa.or_(*(gateway_trust.c[name] != new[name] for name in values))
        connection.execute(
            first.on_conflict_do_update(
                index_elements=[gateway_trust.c.gateway_id],
                set_={name: new[name] for name in (*values, "since")},
                where=changed,
            )
        )

    def _look(self) -> None:
        """Another server of this database may have gone on."""
        now = self._clock.monotonic()
        with self._lock:
            if now - self._looked < LOOK_SECONDS:
                return
            self._looked = now
        self._authority.look()
