"""The server's certificate authority: one for all servers of a database; two in a rotation.

The key is opened once, at the start, and stays in memory. The revocation list is built from the database
when its number has grown.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import authorities, revocations
from secondsite.server.database.tables_survival import authority_phases
from secondsite.server.database.values import moment
from secondsite.server.identity.envelopes import EnvelopeUnopened, MasterKey, Place, open_master_key
from secondsite.transfer.certificates import (
    GATEWAY_USAGES,
    LEAF_DAYS,
    SERVER_USAGES,
    Signer,
    certificate_pem,
    fingerprint,
    key_pem,
    new_signer,
    sign_leaf,
    sign_revocations,
)
from secondsite.transfer.pki import URI_PREFIX, Leaf
from secondsite.transfer.trust import issued_by, signed_by, trust_id

ROW = "1"
SERVER_URI_PREFIX = "secondsite:server:"


class Phase(enum.StrEnum):
    """Where an authority stands while another takes its place."""

    NEXT = "Next"  # gateways learn to trust it; it signs nothing yet
    CURRENT = "Current"  # it signs
    RETIRING = "Retiring"  # it signs nothing any more; what it signed counts
    RETIRED = "Retired"  # nothing it signed counts


@dataclass(frozen=True)
class Known:
    """One authority of the database."""

    id: str
    phase: Phase
    signer: Signer

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether it signed a certificate."""
        return issued_by(certificate, self.signer.certificate)


class ServerAuthority:
    """Signs for gateways and servers. Thread-safe; `look` follows what other servers of the database do."""

    def __init__(self, database: Database, known: list[Known], master: MasterKey, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.master = master
        self._lock = threading.Lock()
        self._list: tuple[int, str] | None = None
        self.on_change: list[Callable[[], None]] = []
        self._take(known)

    def _take(self, known: list[Known]) -> None:
        current = next(one for one in known if one.phase is Phase.CURRENT)
        self._known, self._current, self._signer = known, current, current.signer
        self.pem = certificate_pem(current.signer.certificate).decode()
        self.fingerprint = fingerprint(current.signer.certificate)
        others = [one for one in known if one.phase in {Phase.NEXT, Phase.RETIRING}]
        trusted = [current, *others]
        self.bundle = "".join(certificate_pem(one.signer.certificate).decode() for one in trusted)
        self.trust = trust_id(one.signer.certificate for one in trusted)
        self._list = None

    @classmethod
    def open(cls, database: Database, master_key: Path, *, name: str, clock: Clock) -> ServerAuthority:
        """The database's authority; made, with the master key, at the very first start.

        Raises:
            MasterKeyMissing: the authority is there and the master key's file is not.
            MasterKeyUnusable: the file is readable for others, or damaged.
            EnvelopeUnopened: the file is of another database.
        """
        with database.read() as connection:
            found = connection.execute(select(authorities.c.id)).first()
        master = open_master_key(master_key, create=found is None)
        if found is None:
            database.run(lambda connection: _create(connection, master, name, clock))
        return cls(database, load_authorities(database, master), master, clock)

    def signing(self) -> str:
        """Names the one that signs now: SHA-256 of its certificate, hexadecimal."""
        return self.fingerprint.hex()

    @property
    def current(self) -> str:
        """The id of the one that signs."""
        return self._current.id

    def look(self) -> bool:
        """Read again where each authority stands; True when that changed."""
        known = load_authorities(self._database, self.master)
        if [(one.id, one.phase) for one in known] == [(one.id, one.phase) for one in self._known]:
            return False
        with self._lock:
            self._take(known)
        for told in self.on_change:
            told()
        return True

    def issuer_of(self, certificate: x509.Certificate) -> Known | None:
        """Which authority that counts signed a certificate."""
        counting = (one for one in self._known if one.phase is not Phase.RETIRED)
        return next((one for one in counting if one.issued(certificate)), None)

    def certificate_for_gateway(self, name: str, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """A leaf for the gateway `name`, good as server and as client, for 30 days."""
        return sign_leaf(
            self._signer,
            public,
            names=[name],
            uri=URI_PREFIX + name,
            usages=GATEWAY_USAGES,
            now=self._clock.utc(),
        )

    def server_leaf(self, name: str, names: list[str]) -> Leaf:
        """A key and a certificate for a server's own listener, reached by `names`, for 30 days."""
        return server_leaf(self._signer, name, names, self._clock)

    def sign(self, message: bytes) -> bytes:
        """A signature of the authority over something of our own protocol."""
        return signature_by(self._signer, message)

    def proves(self, signature: bytes, message: bytes) -> bool:
        """Whether an authority of this server signed `message`."""
        for one in self._known:
            with contextlib.suppress(InvalidSignature):
                one.signer.key.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))
                return True
        return False

    def signed(self, listed: x509.CertificateRevocationList) -> bool:
        """Whether a revocation list is of this server's, by whichever of its authorities."""
        return signed_by(listed, [one.signer.certificate for one in self._known])

    def revocation_number(self) -> int:
        """Of the newest list; grows with every revocation."""
        with self._database.read() as connection:
            return _number(connection)

    def revocation_list(self) -> tuple[int, str]:
        """The newest list's number and its PEM."""
        number = self.revocation_number()
        with self._lock:
            if self._list is not None and self._list[0] == number:
                return self._list
        now = self._clock.utc()
        with self._database.read() as connection:
            number = _number(connection)
            # a day more than the certificate itself: the clocks of those who read the list differ
            wanted = revocations.c.valid_until > moment(now - dt.timedelta(days=1))
            query = select(revocations.c.serial).where(wanted).order_by(revocations.c.serial)
            serials = [int(serial, 16) for serial in connection.execute(query).scalars()]
        listed = sign_revocations(self._signer, serials, now=now, number=number)
        made = (number, listed.public_bytes(serialization.Encoding.PEM).decode())
        with self._lock:
            if self._list is None or self._list[0] <= number:
                self._list = made
        return made


def server_leaf(signer: Signer, name: str, names: list[str], clock: Clock) -> Leaf:
    """A key and a certificate for a server's listener, reached by `names`, for 30 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = sign_leaf(
        signer,
        key.public_key(),
        names=names,
        uri=SERVER_URI_PREFIX + name,
        usages=SERVER_USAGES,
        now=clock.utc(),
        days=LEAF_DAYS,
    )
    return Leaf(certificate_pem(certificate), key_pem(key), certificate.serial_number)


def signature_by(signer: Signer, message: bytes) -> bytes:
    """A signature of an authority over something of our own protocol."""
    return signer.key.sign(message, ec.ECDSA(hashes.SHA256()))


def count_up(connection: Connection) -> None:
    """A revocation was written: everybody's list is old from the end of this transaction on."""
    number = authorities.c.revocation_number
    connection.execute(update(authorities).values(revocation_number=number + 1))


def _number(connection: Connection) -> int:
    # of all authorities it is the same: it counts what was revoked, not who signs the list
    return int(connection.execute(select(func.max(authorities.c.revocation_number))).scalar_one())


def load_authorities(database: Database, master: MasterKey) -> list[Known]:
    """Every authority of a database, oldest first. Raises EnvelopeUnopened."""
    joined = authorities.outerjoin(authority_phases, authority_phases.c.authority == authorities.c.id)
    query = select(authorities, authority_phases.c.phase).select_from(joined)
    with database.read() as connection:
        rows = connection.execute(query.order_by(authorities.c.created_at, authorities.c.id)).all()
    return [
        open_authority(master, row.id, row.certificate, row.key_envelope, Phase(row.phase or Phase.CURRENT))
        for row in rows
    ]


def open_authority(master: MasterKey, row: str, pem: str, envelope: str, phase: Phase) -> Known:
    """An authority as a row of a database has it. Raises EnvelopeUnopened."""
    plain = master.open(_place(row), base64.b64decode(envelope))
    key = serialization.load_der_private_key(plain, password=None)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise EnvelopeUnopened(place=_place(row), why="the key is not the certificate's")
    return Known(row, phase, Signer(certificate, key))


def _place(row: str) -> Place:
    return Place("authorities", row, "key_envelope")


def _create(connection: Connection, master: MasterKey, name: str, clock: Clock) -> None:
    if connection.execute(select(authorities.c.id)).first() is None:  # else another server was first
        add_authority(connection, master, ROW, name, clock.utc(), revocation_number=1)


def add_authority(
    connection: Connection,
    master: MasterKey,
    row: str,
    name: str,
    now: dt.datetime,
    *,
    revocation_number: int,
) -> None:
    """Make an authority, its key an envelope."""
    signer = new_signer(name, now)
    plain = signer.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    connection.execute(
        insert(authorities).values(
            id=row,
            certificate=certificate_pem(signer.certificate).decode(),
            key_envelope=base64.b64encode(master.seal(_place(row), plain)).decode(),
            revocation_number=revocation_number,
            created_at=moment(now),
        )
    )
