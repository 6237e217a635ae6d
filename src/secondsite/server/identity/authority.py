"""The server's certificate authority: one for all servers of a database, its key an envelope.

The key is opened once, at the start, and stays in memory. The revocation list is built from the database
when its number has grown.
"""

from __future__ import annotations

import base64
import datetime as dt
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import authorities, revocations
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

ROW = "1"
SERVER_URI_PREFIX = "secondsite:server:"


class ServerAuthority:
    """Signs for gateways and servers. Thread-safe."""

    def __init__(self, database: Database, signer: Signer, master: MasterKey, clock: Clock) -> None:
        self._database = database
        self._signer = signer
        self._clock = clock
        self.master = master
        self.pem = certificate_pem(signer.certificate).decode()
        self.fingerprint = fingerprint(signer.certificate)
        self._lock = threading.Lock()
        self._list: tuple[int, str] | None = None

    @classmethod
    def open(cls, database: Database, master_key: Path, *, name: str, clock: Clock) -> ServerAuthority:
        """The database's authority; made, with the master key, at the very first start.

        Raises:
            MasterKeyMissing: the authority is there and the master key's file is not.
            MasterKeyUnusable: the file is readable for others, or damaged.
            EnvelopeUnopened: the file is of another database.
        """
        with database.read() as connection:
            found = connection.execute(select(authorities.c.id)).one_or_none()
        master = open_master_key(master_key, create=found is None)
        if found is None:
            database.run(lambda connection: _create(connection, master, name, clock))
        with database.read() as connection:
            row = connection.execute(select(authorities).where(authorities.c.id == ROW)).one()
        plain = master.open(_place(), base64.b64decode(row.key_envelope))
        key = serialization.load_der_private_key(plain, password=None)
        certificate = x509.load_pem_x509_certificate(row.certificate.encode())
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise EnvelopeUnopened(place=_place(), why="the key is not the certificate's")
        return cls(database, Signer(certificate, key), master, clock)

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
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sign_leaf(
            self._signer,
            key.public_key(),
            names=names,
            uri=SERVER_URI_PREFIX + name,
            usages=SERVER_USAGES,
            now=self._clock.utc(),
            days=LEAF_DAYS,
        )
        return Leaf(certificate_pem(certificate), key_pem(key), certificate.serial_number)

    def revocation_number(self) -> int:
        """Of the newest list; grows with every revocation."""
        with self._database.read() as connection:
            return int(connection.execute(select(authorities.c.revocation_number)).scalar_one())

    def revocation_list(self) -> tuple[int, str]:
        """The newest list's number and its PEM."""
        number = self.revocation_number()
        with self._lock:
            if self._list is not None and self._list[0] == number:
                return self._list
        now = self._clock.utc()
        with self._database.read() as connection:
            number = int(connection.execute(select(authorities.c.revocation_number)).scalar_one())
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


def count_up(connection: Connection) -> None:
    """A revocation was written: everybody's list is old from the end of this transaction on."""
    number = authorities.c.revocation_number
    connection.execute(update(authorities).values(revocation_number=number + 1))


def _place() -> Place:
    return Place("authorities", ROW, "key_envelope")


def _create(connection: Connection, master: MasterKey, name: str, clock: Clock) -> None:
    if connection.execute(select(authorities.c.id)).one_or_none() is not None:
        return  # another server was first
    now = clock.utc()
    signer = new_signer(name, now)
    plain = signer.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    connection.execute(
        insert(authorities).values(
            id=ROW,
            certificate=certificate_pem(signer.certificate).decode(),
            key_envelope=base64.b64encode(master.seal(_place(), plain)).decode(),
            revocation_number=1,
            created_at=moment(now),
        )
    )
