"""A small certificate authority: P-256 keys, 30-day leaves, a revocation list. Files are PEM.

    DIRECTORY/authority.crt   the authority's certificate: what both sites trust
    DIRECTORY/authority.key   its key, mode 0600; belongs on one machine only
    DIRECTORY/revoked.pem     the revocation list, signed by the authority; copied to every gateway

A leaf names its gateway in the subject alternative name, as a DNS name and as a URI
``secondsite:gateway:<name>``; nothing reads the subject's common name.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import create_file, read_limited, replace_file

LEAF_DAYS = 30
AUTHORITY_DAYS = 3650
# Clocks of two sites differ; a certificate is valid from a little before it was made.
SKEW = dt.timedelta(minutes=5)
PEM_BYTES_MAX = 1024 * 1024
URI_PREFIX = "secondsite:gateway:"

AUTHORITY_CERTIFICATE = "authority.crt"
AUTHORITY_KEY = "authority.key"
REVOKED = "revoked.pem"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")


def gateway_name(text: str) -> str:
    """Parse a gateway's name: a DNS name in lower case, at most 200 characters."""
    if len(text) > 200 or not _NAME.match(text):
        raise InvalidInput(what=f"gateway name {text[:80]!r}", why="it is not a DNS name in lower case")
    return text


@dataclass(frozen=True)
class Leaf:
    """A gateway's certificate and key. The key is a secret: it is never logged."""

    certificate_pem: bytes
    key_pem: bytes
    serial: int

    def save(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write ``name.crt`` and ``name.key`` (0600); returns both paths."""
        directory.mkdir(parents=True, exist_ok=True)
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        replace_file(key, self.key_pem, mode=0o600)
        replace_file(certificate, self.certificate_pem, mode=0o644)
        return certificate, key

    def __repr__(self) -> str:
        return f"Leaf(serial={self.serial:x})"


class Authority:
    """Issues and revokes. `clock` gives the time certificates are dated with."""

    def __init__(
        self,
        directory: Path,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._certificate = certificate
        self._key = key
        self._clock = clock

    @classmethod
    def create(cls, directory: Path, *, clock: Clock, name: str = "secondsite") -> Authority:
        """Make a new authority in `directory`. Raises InvalidInput when one is there."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        now = clock.utc()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        authority = cls(directory, certificate, key, clock)
        if not create_file(directory / AUTHORITY_KEY, _key_pem(key)):
            raise InvalidInput(what=f"authority directory {directory}", why="it holds an authority already")
        replace_file(authority.certificate_path, authority.certificate_pem, mode=0o644)
        authority._write_revoked([])
        return authority

    @classmethod
    def load(cls, directory: Path, *, clock: Clock) -> Authority:
        """Open an authority made earlier."""
        key_pem = read_limited(directory / AUTHORITY_KEY, size_bytes_max=PEM_BYTES_MAX)
        key = serialization.load_pem_private_key(key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidInput(what=f"{directory / AUTHORITY_KEY}", why="it is not an elliptic curve key")
        pem = read_limited(directory / AUTHORITY_CERTIFICATE, size_bytes_max=PEM_BYTES_MAX)
        return cls(directory, x509.load_pem_x509_certificate(pem), key, clock)

    @property
    def certificate_path(self) -> Path:
        """The certificate to trust."""
        return self._directory / AUTHORITY_CERTIFICATE

    @property
    def revoked_path(self) -> Path:
        """The revocation list to give to every gateway."""
        return self._directory / REVOKED

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, *, days: float = LEAF_DAYS) -> Leaf:
        """A certificate for the gateway `name`, good as server and as client."""
        gateway_name(name)
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock.utc()
        serial = x509.random_serial_number()
        alternative = x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.UniformResourceIdentifier(URI_PREFIX + name)]
        )
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - SKEW)
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(alternative, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key), serial)

    def revoke(self, serial: int) -> None:
        """Add a certificate to the revocation list; again is fine."""
        serials = revoked_serials(self.revoked_path, self._certificate)
        self._write_revoked(sorted(serials | {serial}))

    def _write_revoked(self, serials: list[int]) -> None:
        now = self._clock.utc()
        # the list is a local file that gateways honour however old it is; the date is a formality of X.509
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(now + dt.timedelta(days=AUTHORITY_DAYS))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        replace_file(self.revoked_path, pem, mode=0o644)


@dataclass(frozen=True)
class CertificateFacts:
    """What a person asks of a certificate."""

    name: str  # the gateway's, from the subject alternative name; the subject's for an authority
    serial: int
    valid_from: dt.datetime
    valid_until: dt.datetime


def read_certificate(path: Path) -> CertificateFacts:
    """Read a PEM certificate. Raises InvalidInput when there is none or it does not parse."""
    try:
        found = x509.load_pem_x509_certificate(read_limited(path, size_bytes_max=PEM_BYTES_MAX))
    except FileNotFoundError:
        raise InvalidInput(what=f"the certificate {path}", why="there is no such file") from None
    except ValueError as error:
        raise InvalidInput(what=f"the certificate {path}", why=str(error)) from None
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        name = next(iter(names.get_values_for_type(x509.DNSName)), "")
    except x509.ExtensionNotFound:
        name = found.subject.rfc4514_string()
    return CertificateFacts(name, found.serial_number, found.not_valid_before_utc, found.not_valid_after_utc)


def revoked_serials(path: Path, issuer: x509.Certificate) -> frozenset[int]:
    """The serial numbers in a revocation list signed by `issuer`.

    Raises InvalidInput when the file is not such a list: a damaged list must not read as an empty one.
    """
    try:
        listed = x509.load_pem_x509_crl(read_limited(path, size_bytes_max=PEM_BYTES_MAX))
    except ValueError as error:
        raise InvalidInput(what=f"revocation list {path}", why=str(error)) from None
    public = issuer.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not listed.is_signature_valid(public):
        raise InvalidInput(what=f"revocation list {path}", why="it is not signed by the trusted authority")
    return frozenset(entry.serial_number for entry in listed)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
