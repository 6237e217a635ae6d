"""A small certificate authority: P-256 keys, 30-day leaves, a revocation list. Files are PEM.

    DIRECTORY/authority.crt   the authority's certificate: what both sites trust
    DIRECTORY/authority.key   its key, mode 0600; belongs on one machine only
    DIRECTORY/revoked.pem     the revocation list, signed by the authority; copied to every gateway

A leaf names its gateway in the subject alternative name, as a DNS name and as a URI
``secondsite:gateway:<name>``; what it looks like is in `certificates`.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import create_file, read_limited, replace_file
from secondsite.transfer.certificates import (
    GATEWAY_USAGES,
    LEAF_DAYS,
    Signer,
    certificate_pem,
    key_pem,
    new_signer,
    sign_leaf,
    sign_revocations,
)
from secondsite.transfer.trust import signed_by

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

    def __init__(self, directory: Path, signer: Signer, clock: Clock) -> None:
        self._directory = directory
        self._signer = signer
        self._clock = clock

    @classmethod
    def create(cls, directory: Path, *, clock: Clock, name: str = "secondsite") -> Authority:
        """Make a new authority in `directory`. Raises InvalidInput when one is there."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        signer = new_signer(name, clock.utc())
        authority = cls(directory, signer, clock)
        if not create_file(directory / AUTHORITY_KEY, key_pem(signer.key)):
            raise InvalidInput(what=f"authority directory {directory}", why="it holds an authority already")
        replace_file(authority.certificate_path, authority.certificate_pem, mode=0o644)
        authority._write_revoked([])
        return authority

    @classmethod
    def load(cls, directory: Path, *, clock: Clock) -> Authority:
        """Open an authority made earlier."""
        key_text = read_limited(directory / AUTHORITY_KEY, size_bytes_max=PEM_BYTES_MAX)
        key = serialization.load_pem_private_key(key_text, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidInput(what=f"{directory / AUTHORITY_KEY}", why="it is not an elliptic curve key")
        pem = read_limited(directory / AUTHORITY_CERTIFICATE, size_bytes_max=PEM_BYTES_MAX)
        return cls(directory, Signer(x509.load_pem_x509_certificate(pem), key), clock)

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
        return certificate_pem(self._signer.certificate)

    def issue(self, name: str, *, days: float = LEAF_DAYS) -> Leaf:
        """A certificate for the gateway `name`, good as server and as client."""
        gateway_name(name)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sign_leaf(
            self._signer,
            key.public_key(),
            names=[name],
            uri=URI_PREFIX + name,
            usages=GATEWAY_USAGES,
            now=self._clock.utc(),
            days=days,
        )
        return Leaf(certificate_pem(certificate), key_pem(key), certificate.serial_number)

    def revoke(self, serial: int) -> None:
        """Add a certificate to the revocation list; again is fine."""
        serials = revoked_serials(self.revoked_path, self._signer.certificate)
        self._write_revoked(sorted(serials | {serial}))

    def _write_revoked(self, serials: list[int]) -> None:
        listed = sign_revocations(self._signer, serials, now=self._clock.utc())
        pem = listed.public_bytes(serialization.Encoding.PEM)
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


def revoked_serials(path: Path, *issuers: x509.Certificate) -> frozenset[int]:
    """The serial numbers in a revocation list signed by one of `issuers`.

    Raises InvalidInput when the file is not such a list: a damaged list must not read as an empty one.
    """
    try:
        listed = x509.load_pem_x509_crl(read_limited(path, size_bytes_max=PEM_BYTES_MAX))
    except ValueError as error:
        raise InvalidInput(what=f"revocation list {path}", why=str(error)) from None
    if not signed_by(listed, issuers):
        raise InvalidInput(what=f"revocation list {path}", why="it is not signed by the trusted authority")
    return frozenset(entry.serial_number for entry in listed)
