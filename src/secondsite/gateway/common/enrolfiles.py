"""What enrolment leaves at a gateway: one directory, the files of mutual TLS among them.

    NAME.key         the private key, mode 0600; made here, never sent
    NAME.key.next    the next one, while its certificate is asked for
    NAME.crt         the certificate
    authority.crt    whom to trust
    revoked.pem      the newest revocation list seen
    membership.json  which server, under which name, in which state

Written in an order that a crash leaves usable: a new certificate is put first and its key, which lies there
already under its other name, is renamed after; `settle` does what was left of that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError

from secondsite.base.errors import InvalidInput
from secondsite.base.files import FileTooLarge, create_file, fsync_directory, read_limited, replace_file
from secondsite.gateway.common.enrolerrors import NotEnrolled
from secondsite.transfer.certificates import fingerprint, key_pem, list_number
from secondsite.transfer.pki import AUTHORITY_CERTIFICATE, PEM_BYTES_MAX, REVOKED, gateway_name
from secondsite.transfer.tls import TlsFiles
from secondsite.transfer.trust import signed_by, trust_id, verify_issued_by_one

MEMBERSHIP = "membership.json"
MEMBERSHIP_BYTES_MAX = 64 * 1024

State = Literal["Registered", "Unregistered", "Removed", "Revoked"]


class Membership(BaseModel):
    """Which server a gateway belongs to, and whether it may work for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: str  # https://host[:port]
    system_trust: bool = False  # its TLS certificate is of an authority this machine trusts anyway
    proxy: str | None = None  # http://host:port
    proxy_credentials: Path | None = None  # USER:PASSWORD, mode 0600
    name: str
    friendly_name: str
    gateway_id: str
    vault: str
    site: str
    state: State = "Registered"
    reason: str = ""  # of a state that is not Registered, in the server's words

    @property
    def way(self) -> tuple[str, str | None, Path | None]:
        """How to the server: connections made another way are made anew."""
        return self.server, self.proxy, self.proxy_credentials


@dataclass(frozen=True)
class EnrolmentFiles:
    """The files of one gateway in one directory."""

    directory: Path
    name: str

    @property
    def tls(self) -> TlsFiles:
        """As links and listeners take them."""
        directory = self.directory
        return TlsFiles(
            directory / f"{self.name}.crt",
            directory / f"{self.name}.key",
            directory / AUTHORITY_CERTIFICATE,
            directory / REVOKED,
        )

    @property
    def next_key_path(self) -> Path:
        """The key pair that a certificate is asked for."""
        return self.directory / f"{self.name}.key.next"

    def next_key(self) -> ec.EllipticCurvePrivateKey:
        """The key pair to ask a certificate for: the one of an attempt that was cut off, or a new one.

        It is durable before anything is asked: a certificate whose key was lost would be worth nothing.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        create_file(self.next_key_path, key_pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
        found = _load_key(self.next_key_path)
        if found is None:  # left damaged by something else than us: it was of no use yet
            replace_file(self.next_key_path, key_pem(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
            found = _load_key(self.next_key_path)
        assert found is not None
        return found

    def take(self, certificate_pem: str, *, authority_pem: str) -> x509.Certificate:
        """Put the certificate for the next key in use. Raises InvalidInput when it is not what was asked."""
        certificate = self._check(certificate_pem, authority_pem)
        replace_file(self.tls.certificate, certificate_pem.encode(), mode=0o644)
        self.settle()
        return certificate

    def settle(self) -> None:
        """Finish what a crash cut off between the certificate and its key."""
        key = _load_key(self.next_key_path)
        certificate = _load_certificate(self.tls.certificate)
        if key is not None and certificate is not None and certificate.public_key() == key.public_key():
            os.replace(self.next_key_path, self.tls.key)  # noqa: PTH105 - as base.files: rename, then sync
            fsync_directory(self.directory)

    def certificate(self) -> x509.Certificate:
        """The certificate in use. Raises NotEnrolled."""
        found = _load_certificate(self.tls.certificate)
        if found is None:
            raise NotEnrolled(directory=self.directory, why=f"{self.name}.crt is missing or damaged")
        return found

    def revocation_number(self) -> int:
        """Of the list that is here; -1 when there is none that counts."""
        try:
            return list_number(_load_list(self.directory / REVOKED, self._authorities()))
        except (OSError, FileTooLarge, ValueError, InvalidInput):
            return -1

    def take_revocations(self, pem: str) -> bool:
        """Keep a list, unless a newer one is here: nobody takes a revocation back with an old list.

        Raises InvalidInput when it is not signed by the authority.
        """
        listed = _parse_list(pem.encode(), self._authorities())
        if list_number(listed) <= self.revocation_number():
            return False
        replace_file(self.directory / REVOKED, pem.encode(), mode=0o644)
        return True

    def revocations(self) -> str:
        """The list that is here (PEM), for a server that may not have it; empty when there is none."""
        if self.revocation_number() < 0:
            return ""
        return read_limited(self.directory / REVOKED, size_bytes_max=PEM_BYTES_MAX).decode()

    def trust(self) -> str:
        """Names the authorities that are trusted here; empty when there are none that can be read."""
        try:
            return trust_id(self._authorities())
        except (OSError, FileTooLarge, ValueError):
            return ""

    def take_trust(self, pem: str) -> bool:
        """Trust these authorities from now on. Raises InvalidInput unless one of them is trusted already."""
        what = "the authorities the server names"
        try:
            found = x509.load_pem_x509_certificates(pem.encode())
        except ValueError:
            raise InvalidInput(what=what, why="they do not parse") from None
        known = {fingerprint(one) for one in self._authorities()}
        if not known & {fingerprint(one) for one in found}:
            raise InvalidInput(what=what, why="none of them is trusted here already")
        if trust_id(found) == self.trust():
            return False
        replace_file(self.directory / AUTHORITY_CERTIFICATE, pem.encode(), mode=0o644)
        return True

    def load(self) -> Membership:
        """The membership. Raises NotEnrolled."""
        return load_membership(self.directory)

    def save(self, membership: Membership) -> None:
        """Write the membership down; the last step of enrolling."""
        text = membership.model_dump_json(indent=2) + "\n"
        replace_file(self.directory / MEMBERSHIP, text.encode(), mode=0o644)

    def _authorities(self) -> list[x509.Certificate]:
        pem = read_limited(self.directory / AUTHORITY_CERTIFICATE, size_bytes_max=PEM_BYTES_MAX)
        return x509.load_pem_x509_certificates(pem)

    def _check(self, certificate_pem: str, authority_pem: str) -> x509.Certificate:
        what = "the certificate the server gave"
        key = _load_key(self.next_key_path)
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
            authorities = x509.load_pem_x509_certificates(authority_pem.encode())
            verify_issued_by_one(certificate, authorities)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            raise InvalidInput(what=what, why="it is not of the server's authority") from None
        if key is None or certificate.public_key() != key.public_key():
            raise InvalidInput(what=what, why="it is for another key")
        if names.get_values_for_type(x509.DNSName) != [self.name]:
            raise InvalidInput(what=what, why="it is for another name")
        return certificate


def load_membership(directory: Path) -> Membership:
    """The membership in a directory. Raises NotEnrolled."""
    path = directory / MEMBERSHIP
    try:
        data = read_limited(path, size_bytes_max=MEMBERSHIP_BYTES_MAX)
        membership = Membership.model_validate_json(data)
        gateway_name(membership.name)
    except FileNotFoundError:
        raise NotEnrolled(directory=directory, why=f"there is no {MEMBERSHIP}") from None
    except (ValidationError, InvalidInput, FileTooLarge):
        raise NotEnrolled(directory=directory, why=f"{MEMBERSHIP} does not parse") from None
    return membership


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        pem = read_limited(path, size_bytes_max=PEM_BYTES_MAX)
        key = serialization.load_pem_private_key(pem, password=None)
    except (FileNotFoundError, ValueError, TypeError, FileTooLarge):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _load_certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(read_limited(path, size_bytes_max=PEM_BYTES_MAX))
    except (FileNotFoundError, ValueError, FileTooLarge):
        return None


def _load_list(path: Path, authorities: Sequence[x509.Certificate]) -> x509.CertificateRevocationList:
    return _parse_list(read_limited(path, size_bytes_max=PEM_BYTES_MAX), authorities)


def _parse_list(pem: bytes, authorities: Sequence[x509.Certificate]) -> x509.CertificateRevocationList:
    what = "the revocation list"
    try:
        listed = x509.load_pem_x509_crl(pem)
    except ValueError:
        raise InvalidInput(what=what, why="it does not parse") from None
    if not signed_by(listed, authorities):
        raise InvalidInput(what=what, why="it is not signed by the authority")
    return listed
