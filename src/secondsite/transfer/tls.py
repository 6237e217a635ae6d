"""Mutual TLS 1.3 between gateways: contexts, the peer's name from its certificate, revocation.

Python's `ssl` verifies chain, dates and (for the client) the server's name. The revocation list is checked
here after the handshake, on both sides, so that the refused peer is told why instead of seeing a bare alert.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from secondsite.base.files import read_limited
from secondsite.transfer.errors import CertificateRefused
from secondsite.transfer.pki import PEM_BYTES_MAX, URI_PREFIX, revoked_serials
from secondsite.transfer.protocols import Peer


@dataclass(frozen=True)
class TlsFiles:
    """Where a gateway's certificate, key, trusted authority and revocation list lie."""

    certificate: Path
    key: Path
    authority: Path
    revoked: Path | None = None


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For the ingest listener: every client must show a certificate of the authority."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    # no resumption: each connection proves its certificate, so that a revoked one does not live on in tickets
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For a link: the server's certificate must be of the authority and hold the name asked for."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    context.check_hostname = True
    context.hostname_checks_common_name = False
    return context


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    return context


class Revocation:
    """The revocation list of `files`, read again whenever the file changes."""

    def __init__(self, files: TlsFiles) -> None:
        pem = read_limited(files.authority, size_bytes_max=PEM_BYTES_MAX)
        self._issuers = x509.load_pem_x509_certificates(pem)
        self._path = files.revoked
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def is_revoked(self, serial: int) -> bool:
        """Whether the list names the certificate. Raises InvalidInput or OSError for a bad list."""
        if self._path is None:
            return False
        with self._lock:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp != self._stamp:
                self._serials = revoked_serials(self._path, *self._issuers)
                self._stamp = stamp
            return serial in self._serials


def peer_of(sock: ssl.SSLSocket, address: str = "") -> Peer:
    """The peer's identity from the certificate of a finished handshake.

    Raises CertificateRefused when it names no gateway.
    """
    der = sock.getpeercert(binary_form=True)
    if der is None:
        raise CertificateRefused(peer=address or "a peer", why="it showed no certificate")
    certificate = x509.load_der_x509_certificate(der)
    serial = f"{certificate.serial_number:x}"
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise CertificateRefused(peer=address or "a peer", why="its certificate has no name in it") from None
    uris = alternative.get_values_for_type(x509.UniformResourceIdentifier)
    names = [uri[len(URI_PREFIX) :] for uri in uris if uri.startswith(URI_PREFIX)]
    names = names or alternative.get_values_for_type(x509.DNSName)
    if len(names) != 1:
        # two names would let one gateway choose which of them is checked
        why = f"its certificate names {len(names)} gateways"
        raise CertificateRefused(peer=address or "a peer", why=why)
    return Peer(name=names[0], serial=serial, address=address)


def check_revoked(revocation: Revocation, peer: Peer) -> None:
    """Raise CertificateRefused when the peer's certificate is on the list, or the list cannot be read."""
    try:
        revoked = revocation.is_revoked(int(peer.serial, 16))
    except OSError as error:
        raise CertificateRefused(
            peer=peer.name, why=f"the revocation list cannot be read ({error})"
        ) from None
    if revoked:
        raise CertificateRefused(peer=peer.name, why=f"certificate {peer.serial} is revoked")


def handshake_reason(error: BaseException) -> str:
    """The sentence part that says why a handshake failed, without OpenSSL's file names."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return "the handshake took too long"
    return str(error) or type(error).__name__
