"""Enrolment and renewal: who gets a certificate, and why not.

A nonce needs no memory until it is used: it carries its own age and a code that only servers with this master
key can make. So whoever proves nothing writes nothing. A used nonce is remembered until its age refuses it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.model.versions import UPDATE_ORDER, Fit, Version, fit
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_identity import (
    certificates,
    enrolment_proofs,
    gateways,
    registration_keys,
    vaults,
)
from secondsite.server.database.values import fresh_id, moment
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.identity.errors import (
    EnrolmentReplayed,
    GatewayNameTaken,
    RegistrationKeyForAnother,
    RegistrationKeyRefused,
    TooManyCertificates,
    VersionRefused,
)
from secondsite.server.identity.gateways import GatewayIdentity, revoke_certificates
from secondsite.server.identity.keys import KeyRecord, find_key
from secondsite.server.identity.states import GatewayEvent, GatewayState, after
from secondsite.server.identity.vaults import Note, friendly_name, no_note
from secondsite.transfer import enrolment as wire
from secondsite.transfer.certificates import certificate_pem, public_bytes, public_key_of_request
from secondsite.transfer.pki import gateway_name
from secondsite.transfer.registration import proves

# A gateway renews every 20 days; a restore, a re-enrolment and retries with new keys leave a few more.
CERTIFICATES_MAX = 20
_NONCE = struct.Struct("<d16s16s")  # issued at, random, code


class Enrolment:
    """Answers what gateways ask about themselves. Thread-safe."""

    def __init__(
        self, database: Database, authority: ServerAuthority, clock: Clock, *, version: str = __version__
    ) -> None:
        """version: the server's, as the version rule sees it (tests)."""
        self._database = database
        self._authority = authority
        self._clock = clock
        self._version = Version.parse(version)
        self._nonce_key = authority.master.derive("enrolment nonces 1")
        # told of each gateway that was let in (its id), and whether what it has is to be known here at once
        self.on_enrolled: Callable[[Connection, str, bool], None] = lambda *_: None

    def authority(self) -> wire.AuthorityAnswer:
        """The certificate a new gateway compares with its key's fingerprint, and our time."""
        return wire.AuthorityAnswer(certificate=self._authority.pem, server_time=self._time())

    def challenge(self, hello: wire.Hello) -> wire.Challenge:
        """A nonce for one use of a key, whether there is such a key or not."""
        issued, random = self._clock.utc().timestamp(), secrets.token_bytes(16)
        raw = _NONCE.pack(issued, random, self._code(hello.key_id, issued, random))
        return wire.Challenge(
            nonce=base64.urlsafe_b64encode(raw).decode().rstrip("="), server_time=self._time()
        )

    def enrol(self, enrol: wire.Enrol, *, note: Note = no_note) -> wire.Enrolled:
        """A certificate for a gateway that proves a registration key.

        Sent again with another nonce and the same key pair (the answer was lost): the same certificate.

        Raises:
            RegistrationKeyRefused, RegistrationKeyExpired, RegistrationKeyRevoked, RegistrationKeyForAnother,
            EnrolmentReplayed, ClockOff, VersionRefused, GatewayNameTaken, InvalidInput.
        """
        now = self._clock.utc()
        self._check_nonce(enrol, now)
        with self._database.read() as connection:
            key = find_key(connection, enrol.key_id)
        signature = wire.decode_proof(enrol.proof)
        if key is None or not proves(key.public, signature, wire.proof_message(enrol)):
            raise RegistrationKeyRefused
        self._use_nonce(enrol.nonce, now)
        key.check_usable(now)
        wire.check_clocks(wire.parse_time(enrol.sent_at), now)
        gateway_name(enrol.name)
        self.check_version(enrol.name, enrol.version)
        public = public_key_of_request(enrol.request.encode())
        friendly_name(enrol.site, "the site")
        friendly_name(enrol.friendly_name)

        def work(connection: Connection) -> str:
            self._admit(connection, key, enrol, public, now)
            note(connection, key.vault_id, enrol.name)
            return self._certificate(connection, enrol.name, public, now)

        return self._answer(enrol.name, self._database.run(work))

    def renew(self, who: GatewayIdentity, renew: wire.Renew) -> wire.Enrolled:
        """The next certificate of a registered gateway. Raises ClockOff, VersionRefused, InvalidInput."""
        now = self._clock.utc()
        wire.check_clocks(wire.parse_time(renew.sent_at), now)
        self.check_version(who.name, renew.version)
        public = public_key_of_request(renew.request.encode())
        pem = self._database.run(lambda connection: self._certificate(connection, who.name, public, now))
        return self._answer(who.name, pem)

    def version_fit(self, version: str) -> Fit:
        """How a gateway's version stands to ours."""
        return fit(self._version, Version.parse(version))

    def check_version(self, name: str, version: str) -> Fit:
        """How a gateway's version stands to ours. Raises VersionRefused when the two do not work together."""
        found = self.version_fit(version)
        if not found.works:
            new = found is Fit.TOO_NEW
            raise VersionRefused(
                name=name,
                gateway=version,
                server=self._version,
                how="newer" if new else "too old",
                what="the server" if new else "the gateway",
                order=", then ".join(UPDATE_ORDER),
            )
        return found

    def _admit(
        self,
        connection: Connection,
        key: KeyRecord,
        enrol: wire.Enrol,
        public: ec.EllipticCurvePublicKey,
        now: datetime,
    ) -> None:
        """The gateway's row, new or again. Raises what the key or the name forbids."""
        # the key may have been revoked, or its vault deleted, since it was read
        again = find_key(connection, key.id)
        if again is None:
            raise RegistrationKeyRefused
        again.check_usable(now)
        if key.for_gateway is not None and key.for_gateway != enrol.name:
            raise RegistrationKeyForAnother(expected=key.for_gateway, name=enrol.name)
        row = connection.execute(select(gateways).where(gateways.c.name == enrol.name)).one_or_none()
        if row is None:
            gateway = fresh_id(self._clock)
            _register(connection, key, enrol, gateway, now)
            self.on_enrolled(connection, gateway, enrol.publish == "all")
            return
        registered = row.state == GatewayState.REGISTERED.value
        if registered and row.key_id == key.id and _has_certificate(connection, row.id, public):
            return  # the answer was lost on its way
        if key.for_gateway is None or row.vault_id != key.vault_id:
            raise GatewayNameTaken(name=enrol.name)
        target = after(enrol.name, GatewayState(row.state), GatewayEvent.ENROLLED)
        assert target is not None
        revoke_certificates(connection, row.id, enrol.name, why="it was enrolled again", now=now)
        values = {
            "state": target.value,
            "state_reason": "",
            "state_since": moment(now),
            "site": enrol.site,
            "version": enrol.version,
            "key_id": key.id,
        }
        connection.execute(update(gateways).where(gateways.c.id == row.id).values(**values))
        self.on_enrolled(connection, row.id, enrol.publish == "all")
        _count_use(connection, key)

    def _certificate(
        self, connection: Connection, name: str, public: ec.EllipticCurvePublicKey, now: datetime
    ) -> str:
        """The certificate (PEM) of a gateway for this key pair: the one it has, or a new one."""
        gateway = connection.execute(select(gateways.c.id).where(gateways.c.name == name)).scalar_one()
        digest = hashlib.sha256(public_bytes(public)).hexdigest()
        mine = certificates.c.gateway_id == gateway
        connection.execute(delete(certificates).where(mine, certificates.c.valid_until < moment(now)))
        query = select(certificates.c.pem).where(mine, certificates.c.public_key == digest)
        known = connection.execute(query).scalar_one_or_none()
        if known is not None:
            return str(known)
        count = connection.execute(select(func.count()).select_from(certificates).where(mine)).scalar_one()
        if count >= CERTIFICATES_MAX:
            raise TooManyCertificates(name=name, count=count)
        made = self._authority.certificate_for_gateway(name, public)
        pem = certificate_pem(made).decode()
        connection.execute(
            insert(certificates).values(
                serial=f"{made.serial_number:x}",
                gateway_id=gateway,
                public_key=digest,
                pem=pem,
                valid_from=moment(made.not_valid_before_utc),
                valid_until=moment(made.not_valid_after_utc),
            )
        )
        return pem

    def _answer(self, name: str, pem: str) -> wire.Enrolled:
        joined = gateways.join(vaults, vaults.c.id == gateways.c.vault_id)
        until = select(certificates.c.valid_until).where(certificates.c.pem == pem).scalar_subquery()
        query = select(gateways.c.id, vaults.c.friendly_name, until.label("until")).select_from(joined)
        with self._database.read() as connection:
            row = connection.execute(query.where(gateways.c.name == name)).one()
        return wire.Enrolled(
            gateway_id=row.id,
            name=name,
            vault=row.friendly_name,
            certificate=pem,
            authority=self._authority.pem,
            revocations=self._authority.revocation_list()[1],
            trust=self._authority.bundle,
            valid_until=row.until,
        )

    def _check_nonce(self, enrol: wire.Enrol, now: datetime) -> None:
        try:
            raw = base64.urlsafe_b64decode(enrol.nonce + "=" * (-len(enrol.nonce) % 4))
            issued, random, code = _NONCE.unpack(raw)
        except (ValueError, struct.error):
            raise EnrolmentReplayed(why="its nonce is none of this server's") from None
        if not hmac.compare_digest(code, self._code(enrol.key_id, issued, random)):
            raise EnrolmentReplayed(why="its nonce is none of this server's, or was made for another key")
        if not -wire.CLOCK_SECONDS_MAX <= now.timestamp() - issued <= wire.CHALLENGE_SECONDS:
            raise EnrolmentReplayed(why="its nonce is older than five minutes")

    def _use_nonce(self, nonce: str, now: datetime) -> None:
        # the same bytes have one spelling only here: what was sent is what is remembered, and `_check_nonce`
        # took the padding away, so another spelling must not count as another nonce
        digest = hashlib.sha256(base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))).hexdigest()
        # what a server whose clock is behind by the most would still take is remembered
        kept = now + timedelta(seconds=wire.CHALLENGE_SECONDS + 2 * wire.CLOCK_SECONDS_MAX)

        def work(connection: Connection) -> bool:
            connection.execute(delete(enrolment_proofs).where(enrolment_proofs.c.ends_at < moment(now)))
            query = select(enrolment_proofs.c.nonce).where(enrolment_proofs.c.nonce == digest)
            if connection.execute(query).one_or_none() is not None:
                return False
            connection.execute(insert(enrolment_proofs).values(nonce=digest, ends_at=moment(kept)))
            return True

        if not self._database.run(work):
            raise EnrolmentReplayed(why="its nonce was used before")

    def _code(self, key_id: str, issued: float, random: bytes) -> bytes:
        said = struct.pack("<d", issued) + random + key_id.encode()
        return hmac.digest(self._nonce_key, said, "sha256")[:16]

    def _time(self) -> str:
        return wire.time_text(self._clock.utc())


def _register(
    connection: Connection, key: KeyRecord, enrol: wire.Enrol, gateway_id: str, now: datetime
) -> None:
    connection.execute(
        insert(gateways).values(
            id=gateway_id,
            name=enrol.name,
            friendly_name=friendly_name(enrol.friendly_name),
            vault_id=key.vault_id,
            site=friendly_name(enrol.site, "the site"),
            state=GatewayState.REGISTERED.value,
            state_reason="",
            state_since=moment(now),
            version=enrol.version,
            registered_at=moment(now),
            key_id=key.id,
            refresh_number=0,
        )
    )
    _count_use(connection, key)


def _count_use(connection: Connection, key: KeyRecord) -> None:
    uses = registration_keys.c.uses
    connection.execute(
        update(registration_keys).where(registration_keys.c.id == key.id).values(uses=uses + 1)
    )


def _has_certificate(connection: Connection, gateway_id: str, public: ec.EllipticCurvePublicKey) -> bool:
    digest = hashlib.sha256(public_bytes(public)).hexdigest()
    mine = (certificates.c.gateway_id == gateway_id) & (certificates.c.public_key == digest)
    return connection.execute(select(certificates.c.serial).where(mine)).one_or_none() is not None
