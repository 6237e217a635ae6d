"""Several authorities at once: while one takes another's place, what either signed counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from secondsite.transfer.certificates import fingerprint


def trust_id(authorities: Iterable[x509.Certificate]) -> str:
    """A name of a set of authorities, the same in any order: 64 hexadecimal digits."""
    return hashlib.sha256(b"".join(sorted(map(fingerprint, authorities)))).hexdigest()


def signed_by(listed: x509.CertificateRevocationList, authorities: Iterable[x509.Certificate]) -> bool:
    """Whether one of the authorities signed a revocation list."""
    for authority in authorities:
        public = authority.public_key()
        if isinstance(public, ec.EllipticCurvePublicKey) and listed.is_signature_valid(public):
            return True
    return False


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def verify_issued_by_one(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> None:
    """Raise InvalidSignature unless one of the authorities signed a certificate."""
    if not any(issued_by(certificate, authority) for authority in authorities):
        raise InvalidSignature
