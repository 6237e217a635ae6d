"""All of identity, put together for one server: opened once, given to the API's routes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from cryptography import x509

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.identity.enrolment import Enrolment
from secondsite.server.identity.errors import GatewayRevoked
from secondsite.server.identity.gateways import GatewayIdentity, Gateways
from secondsite.server.identity.heartbeats import Contact, Heartbeats
from secondsite.server.identity.keys import RegistrationKeys
from secondsite.server.identity.vaults import Vaults
from secondsite.transfer import enrolment as wire
from secondsite.transfer.pki import URI_PREFIX
from secondsite.transfer.registration import server_url

MASTER_KEY_NAME = "master.key"


class Relearning(Protocol):
    """What a restored server learns back (`survival.relearn`)."""

    def certificate(self, certificate: x509.Certificate, name: str) -> bool:
        """Take a certificate into the books that was given out after the backup."""

    def revocations(self, pem: str) -> int:
        """Take a gateway's revocation list; how many entries were news. Raises InvalidInput."""


class Rotating(Protocol):
    """The authority's rotation (`survival.rotation`)."""

    def heard(self, gateway: str, certificate: x509.Certificate, trust: str, revocations: int) -> bool:
        """A gateway shows where it stands; True when its certificate is of an authority that goes."""


class Identity:
    """Vaults, keys, gateways and certificates of one server. `start` once, `close` at the end."""

    def __init__(
        self,
        database: Database,
        authority: ServerAuthority,
        clock: Clock,
        *,
        url: str,
        system_trust: bool,
        version: str,
    ) -> None:
        self._clock = clock
        self.url = server_url(url)
        self.system_trust = system_trust
        self.authority = authority
        self.heartbeats = Heartbeats(database, clock)
        self.vaults = Vaults(database, clock)
        self.keys = RegistrationKeys(database, authority=authority.fingerprint, clock=clock)
        self.gateways = Gateways(database, self.heartbeats, clock)
        self.relearning: Relearning | None = None
        self.rotation: Rotating | None = None
        self.enrolment = Enrolment(database, authority, clock, version=version)

    @classmethod
    def open(
        cls,
        database: Database,
        *,
        master_key: Path,
        url: str,
        clock: Clock,
        name: str = "secondsite",
        system_trust: bool = False,
        version: str = __version__,
    ) -> Identity:
        """Open what the database holds; the first start makes the master key and the authority.

        url: where gateways reach the server, for registration keys.
        system_trust: the listener shows a certificate of an authority that machines trust anyway.

        Raises MasterKeyMissing, MasterKeyUnusable or EnvelopeUnopened.
        """
        authority = ServerAuthority.open(database, master_key, name=name, clock=clock)
        return cls(database, authority, clock, url=url, system_trust=system_trust, version=version)

    def start(self) -> None:
        """Begin to write heartbeats down."""
        self.heartbeats.start()

    def close(self) -> None:
        """Write the last heartbeats down."""
        self.heartbeats.close()

    def identify(self, certificate_der: bytes) -> GatewayIdentity | None:
        """Who showed this certificate; TLS has checked its chain and dates. None: it names no gateway.

        Asked at every request, so that a revocation counts at once. Raises GatewayRevoked,
        GatewayUnregistered or GatewayRemoved.
        """
        certificate = x509.load_der_x509_certificate(certificate_der)
        name = _gateway_in(certificate)
        if name is None:
            return None
        if self.authority.issuer_of(certificate) is None:
            why = "its authority is retired, or none of this server's"
            raise GatewayRevoked(name=name, serial=f"{certificate.serial_number:x}", why=why)
        if self.relearning is not None:
            self.relearning.certificate(certificate, name)
        return self.gateways.identify(name, f"{certificate.serial_number:x}")

    def heartbeat(
        self,
        who: GatewayIdentity,
        heartbeat: wire.Heartbeat,
        *,
        address: str,
        certificate_der: bytes | None = None,
    ) -> wire.HeartbeatAnswer:
        """Take a gateway's word, and say what is wanted of it. Raises VersionRefused or InvalidInput.

        certificate_der: what it was shown with, for the authority's rotation.
        """
        now = self._clock.utc()
        contact = Contact(
            at=now,
            address=address,
            version=heartbeat.version,
            clock_seconds=wire.clock_difference(wire.parse_time(heartbeat.sent_at), now),
            refreshed=heartbeat.refreshed,
            protected=heartbeat.protected,
            points=heartbeat.points,
            health=heartbeat.health,
            url=heartbeat.url,
        )
        self.heartbeats.heard(who.id, contact)
        self.enrolment.check_version(who.name, heartbeat.version)
        renew = False
        if self.rotation is not None and certificate_der is not None:
            shown = x509.load_der_x509_certificate(certificate_der)
            renew = self.rotation.heard(who.id, shown, heartbeat.trust, heartbeat.revocation_number)
        return wire.HeartbeatAnswer(
            trust=self.authority.trust,
            renew=renew,
            server_time=wire.time_text(now),
            revocation_number=who.revocation_number,
            refresh=who.refresh_number,
            friendly_name=who.friendly_name,
        )

    def trust(self) -> wire.TrustAnswer:
        """The authorities to trust."""
        return wire.TrustAnswer(pem=self.authority.bundle)

    def take_revocations(self, known: wire.KnownRevocations) -> wire.RevocationsAnswer:
        """What a gateway knows to be revoked counts here too; the list of both. Raises InvalidInput."""
        if self.relearning is not None:
            self.relearning.revocations(known.pem)
        return self.revocations()

    def revocations(self) -> wire.RevocationsAnswer:
        """The newest revocation list."""
        number, pem = self.authority.revocation_list()
        return wire.RevocationsAnswer(number=number, pem=pem)


def _gateway_in(certificate: x509.Certificate) -> str | None:
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        found = [uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)]
        # two names would let one gateway choose which of them is checked
        return found[0] if len(found) == 1 else None
    return None
