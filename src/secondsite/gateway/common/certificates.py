"""A running gateway takes renewed certificates up by itself, and says in time when one ends.

The files are looked at once a minute. New ones are used for connections from then on; files that do not open
are told once they stayed so for two looks (a renewal writes key and certificate one after the other), and
what was loaded before stays in use. The revocation list is followed by the connections themselves, at every
handshake.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import FileTooLarge, read_limited
from secondsite.model.events import EventSink, Severity
from secondsite.transfer.pki import PEM_BYTES_MAX, read_certificate
from secondsite.transfer.tls import TlsFiles

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
CRITICAL_LEFT = timedelta(days=3)
TELL_EVERY = timedelta(days=1)


class CertificateWatch:
    """Watches one gateway's TLS files. `start` once, `close` at the end; tests call `look`."""

    def __init__(
        self, files: TlsFiles, reloads: list[Callable[[], None]], *, clock: Clock, events: EventSink
    ) -> None:
        """reloads: of everything that uses the files; each raises OSError or ValueError for bad ones."""
        self._files = files
        self._reloads = reloads
        self._clock = clock
        self._events = events
        self._used = self._content()
        self._seen = self._used
        self._told: datetime | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="certificates", daemon=True)

    def start(self) -> None:
        """Look now and then until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _root(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # a thread's root: told, and tried again
                log.exception("looking at the certificates failed")
                text = f"looking at the certificates failed: {type(error).__name__}: {error}"
                self._events.emit("certificate.internal-error", Severity.WARNING, text)
            if self._clock.wait(self._stop, LOOK_SECONDS):
                return

    def look(self) -> None:
        """Take up what changed; say what ends soon."""
        found = self._content()
        if found != self._used:
            steady, self._seen = found == self._seen, found
            self._take_up(found, steady=steady)
        self._tell_end()

    def _content(self) -> bytes:
        """A hash of all files; a missing one counts as empty."""
        hasher = hashlib.sha256()
        for path in (self._files.certificate, self._files.key, self._files.authority):
            hasher.update(_read(path))
        return hasher.digest()

    def _take_up(self, found: bytes, *, steady: bool) -> None:
        try:
            for reload in self._reloads:
                reload()
        except (OSError, ValueError, InvalidInput) as error:  # ssl.SSLError is an OSError
            if steady:
                self._used = found  # told once; the next change is looked at again
                text = f"the new certificate files cannot be used, the old ones stay in use: {error}"
                self._events.emit("certificate.unusable", Severity.CRITICAL, text)
            return
        self._used, self._told = found, None
        valid_until = read_certificate(self._files.certificate).valid_until
        text = f"a renewed certificate is in use, valid until {valid_until:%Y-%m-%d %H:%M} UTC"
        self._events.emit("certificate.renewed", Severity.INFORMATION, text)

    def _tell_end(self) -> None:
        try:
            facts = read_certificate(self._files.certificate)
        except InvalidInput:
            return  # told as unusable
        now = self._clock.utc()
        left = facts.valid_until - now
        if left > (facts.valid_until - facts.valid_from) / 3:
            return
        if self._told is not None and now - self._told < TELL_EVERY:
            return
        self._told = now
        until = f"{facts.valid_until:%Y-%m-%d %H:%M} UTC"
        if left <= timedelta(0):
            text = f"the certificate of {facts.name} expired on {until}: replication waits for a new one"
            self._events.emit("certificate.expired", Severity.CRITICAL, text)
            return
        severity = Severity.CRITICAL if left < CRITICAL_LEFT else Severity.WARNING
        text = (
            f"the certificate of {facts.name} ends on {until}: renew it with `secondsite certificate issue`,"
            " or, where a server renews it, see why that fails"
        )
        self._events.emit("certificate.expires-soon", severity, text, days_left=round(left / TELL_EVERY, 1))


def _read(path: Path) -> bytes:
    try:
        return read_limited(path, size_bytes_max=PEM_BYTES_MAX)
    except (OSError, FileTooLarge):
        return b""
