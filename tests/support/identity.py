"""Identity without HTTP: a server's services and a gateway's side of enrolment, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secondsite import __version__
from secondsite.base.clock import Clock, SystemClock
from secondsite.gateway.common.enrolfiles import Membership
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.server.config import Limits, ServerConfig
from secondsite.server.config import Listen as ServerListen
from secondsite.server.database.engine import Database
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.identity.service import Identity
from secondsite.server.main import Server
from secondsite.transfer import enrolment as wire
from secondsite.transfer.certificates import request_for
from secondsite.transfer.registration import RegistrationKey
from support.server import cheap_passwords

URL = "https://server.example:8443"
DAY = 86400.0


def open_identity(
    database: Database, directory: Path, clock: Clock, *, version: str = __version__
) -> Identity:
    """What a server's start opens; a second call is another server of the same database."""
    return Identity.open(database, master_key=directory / "master.key", url=URL, clock=clock, version=version)


class NewGateway:
    """A gateway's side: a key pair and what it says. Each field of a request can be said otherwise."""

    def __init__(self, identity: Identity, name: str = "gateway-a") -> None:
        self.identity = identity
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())

    def request(self, key: RegistrationKey, clock: Clock, **said: str) -> wire.Enrol:
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
        return prove(wire.Enrol.model_validate(fields), key)

    def enrol(self, key: RegistrationKey, clock: Clock, **said: str) -> wire.Enrolled:
        """Enrol."""
        return self.identity.enrolment.enrol(self.request(key, clock, **said))

    def renew(self, who: GatewayIdentity, clock: Clock, *, ahead: float = 0.0) -> wire.Enrolled:
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


def heartbeat(clock: Clock, **said: object) -> wire.Heartbeat:
    """A gateway lives."""
    fields = {"version": __version__, "sent_at": wire.time_text(clock.utc())} | said
    return wire.Heartbeat.model_validate(fields)


class OffsetClock(SystemClock):
    """The machine's clocks, the time of day moved by `offset`: for servers whose threads really wait."""

    offset = timedelta(0)

    def utc(self) -> datetime:
        return super().utc() + self.offset

    @contextlib.contextmanager
    def moved(self, **by: float) -> Iterator[None]:
        """Somewhere else in time, for a while."""
        before, self.offset = self.offset, self.offset + timedelta(**by)
        try:
            yield
        finally:
            self.offset = before


@dataclass
class Served:
    """A whole server with its real TLS listener on loopback."""

    server: Server
    clock: OffsetClock
    url: str

    @property
    def identity(self) -> Identity:
        services = self.server.services
        assert services is not None
        assert services.identity is not None
        return services.identity

    def key(self, *, again: str | None = None) -> RegistrationKey:
        """A registration key of the vault "North"."""
        if not self.identity.vaults.all():
            self.identity.vaults.create("North")
        made, _ = self.identity.keys.create("North", url=self.url, by="maria", for_gateway=again)
        return made

    def enrol(
        self, directory: Path, name: str = "gateway-a", key: RegistrationKey | None = None
    ) -> Membership:
        """As the command does it."""
        member = NewMember(name=name, friendly_name=name, site="site a")
        return enrol(key or self.key(), member, directory, way=Way(self.url), clock=self.clock)


@contextlib.contextmanager
def served(state_dir: Path, database: str | None = None) -> Iterator[Served]:
    """A server that answers, until the end of the block."""
    clock = OffsetClock()
    config = ServerConfig(
        state_dir=state_dir,
        database=database,
        listen=ServerListen(host="127.0.0.1", port=0),
        limits=Limits(stop_seconds=2),
    )
    server = Server(config, clock=clock, passwords=cheap_passwords())
    server.start()
    try:
        assert server.address is not None
        yield Served(server, clock, f"https://127.0.0.1:{server.address[1]}")
    finally:
        server.stop()
