"""All of identity, put together for one server: opened once, given to the API's routes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cryptography import x509

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.server.database.engine import Database
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.identity.enrolment import Enrolment
from secondsite.server.identity.gateways import GatewayIdentity, Gateways
from secondsite.server.identity.heartbeats import Contact, Heartbeats
from secondsite.server.identity.keys import RegistrationKeys
from secondsite.server.identity.vaults import Vaults
from secondsite.transfer import enrolment as wire
from secondsite.transfer.pki import URI_PREFIX
from secondsite.transfer.registration import server_url

MASTER_KEY_NAME = "master.key"


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
        return self.gateways.identify(name, f"{certificate.serial_number:x}")

    def heartbeat(
        self, who: GatewayIdentity, heartbeat: wire.Heartbeat, *, address: str
    ) -> wire.HeartbeatAnswer:
        """Take a gateway's word, and say what is wanted of it. Raises VersionRefused or InvalidInput."""
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
        )
        self.heartbeats.heard(who.id, contact)
        self.enrolment.check_version(who.name, heartbeat.version)
        return wire.HeartbeatAnswer(
            server_time=wire.time_text(now),
            revocation_number=who.revocation_number,
            refresh=who.refresh_number,
            friendly_name=who.friendly_name,
        )

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
