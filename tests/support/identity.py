"""Identity without HTTP: a server's services and a gateway's side of enrolment, for tests."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secondsite import __version__
from secondsite.base.clock import FakeClock
from secondsite.server.database.engine import Database
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.identity.service import Identity
from secondsite.transfer import enrolment as wire
from secondsite.transfer.certificates import request_for
from secondsite.transfer.registration import RegistrationKey

URL = "https://server.example:8443"
DAY = 86400.0


def open_identity(
    database: Database, directory: Path, clock: FakeClock, *, version: str = __version__
) -> Identity:
    """What a server's start opens; a second call is another server of the same database."""
    return Identity.open(database, master_key=directory / "master.key", url=URL, clock=clock, version=version)


class NewGateway:
    """A gateway's side: a key pair and what it says. Each field of a request can be said otherwise."""

    def __init__(self, identity: Identity, name: str = "gateway-a") -> None:
        self.identity = identity
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())

    def request(self, key: RegistrationKey, clock: FakeClock, **said: str) -> wire.Enrol:
        """A whole request, with a new nonce."""
        nonce = self.identity.enrolment.challenge(wire.Hello(key_id=key.id)).nonce
        fields = {
            "key_id": key.id,
            "nonce": nonce,
            "name": self.name,
            "friendly_name": self.name,
            "site": "site a",
            "version": __version__,
            "sent_at": wire.time_text(clock.utc()),
            "request": request_for(self.key, self.name).decode(),
            "proof": "-",
        } | said
        return prove(wire.Enrol(**fields), key)

    def enrol(self, key: RegistrationKey, clock: FakeClock, **said: str) -> wire.Enrolled:
        """Enrol."""
        return self.identity.enrolment.enrol(self.request(key, clock, **said))

    def renew(self, who: GatewayIdentity, clock: FakeClock, *, ahead: float = 0.0) -> wire.Enrolled:
        """Ask for the next certificate, for a new key pair."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        sent_at = wire.time_text(clock.utc() + timedelta(seconds=ahead))
        pem = request_for(self.key, self.name).decode()
        renew = wire.Renew(version=__version__, sent_at=sent_at, request=pem)
        return self.identity.enrolment.renew(who, renew)


def prove(enrol: wire.Enrol, key: RegistrationKey) -> wire.Enrol:
    """The request with its proof."""
    signature = key.sign(wire.proof_message(enrol))
    return enrol.model_copy(update={"proof": wire.encode_proof(signature)})


def der(pem: str) -> bytes:
    """A certificate as a listener sees it."""
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


def serials(pem: str) -> set[int]:
    """What is on a revocation list."""
    return {entry.serial_number for entry in x509.load_pem_x509_crl(pem.encode())}


def heartbeat(clock: FakeClock, **said: object) -> wire.Heartbeat:
    """A gateway lives."""
    fields = {"version": __version__, "sent_at": wire.time_text(clock.utc())} | said
    return wire.Heartbeat.model_validate(fields)
