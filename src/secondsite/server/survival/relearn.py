"""What a restored server learns back from its gateways: revocations, and certificates it gave out.

Between the backup and the restore the old server signed and revoked. Both left proof signed by the authority:
the revocation list that gateways keep, and the certificate a gateway shows.
"""

from __future__ import annotations

import datetime as dt
import hashlib

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import certificates, gateways, revocations
from secondsite.server.database.values import from_moment, moment
from secondsite.server.identity.authority import ServerAuthority, count_up
from secondsite.server.identity.states import GatewayState
from secondsite.server.survival.incarnation import Incarnation
from secondsite.transfer.certificates import LEAF_DAYS, SKEW, certificate_pem, public_bytes

# The clocks of the old and the new server differ by no more: gateways refuse one that is further off.
CLOCKS = dt.timedelta(minutes=10)
SERIALS_MAX = 10_000


class Relearning:
    """For one life of the server; does nothing in one that was not restored."""

    def __init__(
        self, database: Database, authority: ServerAuthority, state: Incarnation, clock: Clock
    ) -> None:
        self._database = database
        self._authority = authority
        self._clock = clock
        self._between: tuple[dt.datetime, dt.datetime] | None = None
        if state.backup_at is not None and state.restored_at is not None:
            begin, end = from_moment(state.backup_at), from_moment(state.restored_at)
            self._between = (begin - SKEW - CLOCKS, end - SKEW + CLOCKS)

    def certificate(self, certificate: x509.Certificate, name: str) -> bool:
        """Take a certificate of ours into the books that was given out after the backup; True when it was.

        TLS has checked that our authority signed it. One that is revoked, or of a gateway that is not
        registered, stays out.
        """
        if self._between is None:
            return False
        first, last = self._between
        if not first <= certificate.not_valid_before_utc <= last:
            return False
        serial = f"{certificate.serial_number:x}"
        public = certificate.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return False
        row = {
            "serial": serial,
            "public_key": hashlib.sha256(public_bytes(public)).hexdigest(),
            "pem": certificate_pem(certificate).decode(),
            "valid_from": moment(certificate.not_valid_before_utc),
            "valid_until": moment(certificate.not_valid_after_utc),
        }
        with self._database.read() as connection:
            if not _unknown(connection, serial, name):
                return False
        return self._database.run(lambda connection: _take(connection, row, name))

    def revocations(self, pem: str) -> int:
        """Take a list that a gateway has; returns how many of its entries were news.

        Raises InvalidInput when the authority did not sign it.
        """
        what = "the revocation list"
        try:
            listed = x509.load_pem_x509_crl(pem.encode())
        except ValueError:
            raise InvalidInput(what=what, why="it does not parse") from None
        if not self._authority.signed(listed):
            raise InvalidInput(what=what, why="it is not signed by this server's authority")
        serials = [f"{entry.serial_number:x}" for entry, _ in zip(listed, range(SERIALS_MAX), strict=False)]
        now = self._clock.utc()
        until = moment(now + dt.timedelta(days=LEAF_DAYS))

        def work(connection: Connection) -> int:
            known = set(
                connection.execute(
                    sa.select(revocations.c.serial).where(revocations.c.serial.in_(serials))
                ).scalars()
            )
            news = [serial for serial in dict.fromkeys(serials) if serial not in known]
            for serial in news:
                connection.execute(
                    revocations.insert().values(
                        serial=serial,
                        gateway_name=_name_of(connection, serial),
                        reason="it was revoked after the backup this server was restored from",
                        revoked_at=moment(now),
                        valid_until=until,
                    )
                )
            if news:
                count_up(connection)
            return len(news)

        return self._database.run(work)


def _unknown(connection: Connection, serial: str, name: str) -> bool:
    """Whether a registered gateway of that name is here, and nothing of the certificate."""
    registered = sa.select(gateways.c.id).where(
        gateways.c.name == name, gateways.c.state == GatewayState.REGISTERED.value
    )
    known = sa.select(certificates.c.serial).where(certificates.c.serial == serial)
    revoked = sa.select(revocations.c.serial).where(revocations.c.serial == serial)
    found = sa.select(registered.exists(), known.exists(), revoked.exists())
    return tuple(connection.execute(found).one()) == (True, False, False)


def _take(connection: Connection, row: dict[str, str], name: str) -> bool:
    if not _unknown(connection, row["serial"], name):
        return False
    gateway = connection.execute(sa.select(gateways.c.id).where(gateways.c.name == name)).scalar_one()
    connection.execute(certificates.insert().values(gateway_id=gateway, **row))
    return True


def _name_of(connection: Connection, serial: str) -> str:
    query = (
        sa.select(gateways.c.name)
        .join(certificates, certificates.c.gateway_id == gateways.c.id)
        .where(certificates.c.serial == serial)
    )
    return str(connection.execute(query).scalar_one_or_none() or "")
