"""The listener's certificate: the site's own, or one of the server's authority renewed by itself.

Connections made from the renewal on show the new one; nobody is cut off. A client's certificate is asked for
and never demanded: people come with tokens, gateways with certificates of the server's authority.
"""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import replace_file
from secondsite.transfer.pki import Leaf, read_certificate

log = logging.getLogger(__name__)

# A leaf lives 30 days: renewed with ten left, there is time to see that it fails.
RENEW_LEFT = dt.timedelta(days=10)


@dataclass(frozen=True)
class CertificateFiles:
    """Where certificate (with its chain) and key lie, PEM."""

    certificate: Path
    key: Path

    def stamp(self) -> tuple[int, ...]:
        """Changes when one of the files does."""
        found = (self.certificate.stat(), self.key.stat())
        return tuple(number for one in found for number in (one.st_ino, one.st_size, one.st_mtime_ns))


class ListenerCertificate:
    """Keeps `context` on the newest certificate; call `refresh` now and then.

    make: signs another one with these names; None: the files are the site's own, taken as they are.
    """

    def __init__(
        self,
        files: CertificateFiles,
        *,
        authority_pem: str,
        names: list[str],
        make: Callable[[list[str]], Leaf] | None,
        clock: Clock,
        issuer: Callable[[], str] = lambda: "",
    ) -> None:
        """issuer: names the authority that signs now; another one makes another certificate."""
        self._issuer = issuer
        self._files = files
        self._names = names
        self._make = make
        self._clock = clock
        self._renew()
        self.context = _context(authority_pem)
        self._load()

    def trust(self, authority_pem: str) -> None:
        """Take clients of these authorities too, from the next connection on; none is taken away."""
        self.context.load_verify_locations(cadata=authority_pem)

    def refresh(self) -> bool:
        """Renew where it is time, and take up changed files; True when connections get another one now."""
        self._renew()
        if self._files.stamp() == self._stamp:
            return False
        self._load()
        log.info("certificate taken up", extra={"fields": {"file": str(self._files.certificate)}})
        return True

    def _load(self) -> None:
        files = self._files
        try:
            self._stamp = files.stamp()
            # tried elsewhere first: a certificate whose key is not there yet leaves a context with neither
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)
            self.context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(what=f"the certificate {files.certificate}", why=str(error)) from None

    def _renew(self) -> None:
        if self._make is None or not self._due():
            return
        leaf = self._make(self._names)
        directory = self._files.certificate.parent
        leaf.save(directory, self._files.certificate.stem)
        # which names it was made for: a changed configuration makes another one
        replace_file(self._names_file(), self._made_for().encode(), mode=0o644)

    def _due(self) -> bool:
        if not self._files.certificate.exists() or not self._files.key.exists():
            return True
        names = self._names_file()
        if not names.exists() or names.read_text() != self._made_for():
            return True
        return read_certificate(self._files.certificate).valid_until - self._clock.utc() < RENEW_LEFT

    def _made_for(self) -> str:
        return "\n".join([*self._names, f"# {self._issuer()}"])

    def _names_file(self) -> Path:
        return self._files.certificate.with_suffix(".names")


def _context(authority_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # proxies and load balancers of some sites end at 1.2; with AEAD and ephemeral keys only
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    # no resumption: each connection proves its certificate, so that a revoked one does not live on in tickets
    context.num_tickets = 0
    context.load_verify_locations(cadata=authority_pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context
