"""What is signed by an authority: itself, leaves and revocation lists. No files, no clock: all is given.

P-256 and SHA-256 throughout. A leaf names its owner in the subject alternative name, as DNS names (or
addresses) and as one URI ``secondsite:<kind>:<name>``; nothing reads the subject's common name.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from secondsite.base.errors import InvalidInput

LEAF_DAYS = 30
AUTHORITY_DAYS = 3650
# Clocks of two sites differ; a certificate is valid from a little before it was made.
SKEW = dt.timedelta(minutes=5)
GATEWAY_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
# A server only answers: with its certificate nobody can pass as a gateway, which also calls.
SERVER_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH,)
# A request for a P-256 key with one name is below a kilobyte.
REQUEST_BYTES_MAX = 8192


@dataclass(frozen=True)
class Signer:
    """An authority's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Signer({self.certificate.subject.rfc4514_string()})"


def new_signer(name: str, now: dt.datetime) -> Signer:
    """A new authority, valid for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority"[:64])])
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
    return Signer(certificate, key)


def sign_leaf(
    signer: Signer,
    public: ec.EllipticCurvePublicKey,
    *,
    names: Sequence[str],
    uri: str,
    usages: Iterable[ObjectIdentifier],
    now: dt.datetime,
    days: float = LEAF_DAYS,
) -> x509.Certificate:
    """A leaf for `public`. names: DNS names or IP addresses, the first also shown as the common name."""
    alternative = x509.SubjectAlternativeName(
        [*map(_general_name, names), x509.UniformResourceIdentifier(uri)]
    )
    issuer = signer.key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(signer.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        .add_extension(alternative, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def sign_revocations(
    signer: Signer, serials: Iterable[int], *, now: dt.datetime, number: int | None = None
) -> x509.CertificateRevocationList:
    """A revocation list. number: grows with every list; a reader never goes back to a lower one."""
    # the list is honoured however old it is; the date is a formality of X.509
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now)
        .next_update(now + dt.timedelta(days=AUTHORITY_DAYS))
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer.key, hashes.SHA256())


def request_for(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A certificate request (PEM) for `key`. The authority takes the key from it and nothing else."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def public_key_of_request(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a request whose sender holds it. Raises InvalidInput."""
    what = "the certificate request"
    if len(pem) > REQUEST_BYTES_MAX:
        raise InvalidInput(what=what, why=f"it is larger than {REQUEST_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(pem)
        sound = request.is_signature_valid
        public = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise InvalidInput(what=what, why="it does not parse") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidInput(what=what, why="its key is not of the curve P-256")
    if not sound:
        raise InvalidInput(what=what, why="its signature does not hold")
    return public


def public_bytes(public: ec.EllipticCurvePublicKey) -> bytes:
    """A public key in its one DER form, to compare keys by."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER: 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS 8 PEM, unencrypted: a secret."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def list_number(listed: x509.CertificateRevocationList) -> int:
    """The number of a revocation list; -1 when it has none."""
    with contextlib.suppress(x509.ExtensionNotFound):
        return listed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    return -1


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


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
