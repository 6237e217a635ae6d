"""Which of its server's addresses a gateway uses: the one where the latest life of the server answers.

    DIRECTORY/servers.json    version, urls: the active server and its standbys, as the server said last

While its server answers it looks at the others now and then, because a line that is cut may hide that another
has taken over; in trouble it looks at once. It goes where a life answers that is no earlier than the latest
one it met, and tells the one it leaves, once. A claim in its own store counts as met: so it refuses a server
that comes back also before the one that took over can be reached. Nothing here stops replication.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from cryptography import x509

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.base.files import FileTooLarge, read_limited, replace_file
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import KIB
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, load_membership
from secondsite.gateway.common.incarnation import incarnations
from secondsite.gateway.uplink.enrolclient import Way, enrolled_client
from secondsite.model.events import EventSink, Severity
from secondsite.transfer import enrolment as wire
from secondsite.transfer.pki import AUTHORITY_CERTIFICATE, PEM_BYTES_MAX
from secondsite.transfer.registration import server_url
from secondsite.transfer.serverclaims import ServerClaim

log = logging.getLogger(__name__)

NAME = "servers.json"
VERSION = 1
FILE_BYTES_MAX = 16 * KIB
URLS_MAX = 16

CALM_SECONDS = 20.0
TROUBLE_SECONDS = 5.0
# A host that drops packets must not keep the heartbeats back.
PROBE_SECONDS = 5.0

Claims = Callable[[], Sequence[ServerClaim]]


class _File(msgspec.Struct, frozen=True):
    version: int
    urls: tuple[str, ...]


def no_claims() -> Sequence[ServerClaim]:
    """A gateway without a store."""
    return ()


class WhichServer:
    """Of one enrolment's directory. Used by one thread."""

    def __init__(
        self, directory: Path, *, clock: Clock, events: EventSink, claims: Claims = no_claims
    ) -> None:
        """claims: the newest ones of this gateway's store, of any server."""
        self._directory = directory
        self._clock = clock
        self._events = events
        self._claims = claims
        self._urls = known_servers(directory)
        self._not_before = clock.monotonic()
        self._calm_until = clock.monotonic() + CALM_SECONDS

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the server may be, as far as is known."""
        return self._urls

    def delivered(self, urls: Sequence[str]) -> None:
        """The server said where it and its standbys are; nothing: it does not say."""
        if urls:
            self._take(urls)

    def look(self, *, trouble: bool) -> bool:
        """See whether another address is to be used; True when it is from now on."""
        now = self._clock.monotonic()
        if now < (self._not_before if trouble else self._calm_until):
            return False
        self._not_before, self._calm_until = now + TROUBLE_SECONDS, now + CALM_SECONDS
        self._read_claims()
        found = load_membership(self._directory)
        known = incarnations(self._directory)
        for url in self._urls:
            if url == found.server:
                continue
            before = known.number
            if self._answers(url) and (trouble or known.number > before):
                self._move(found.server, url)
                return True
        return False

    def _read_claims(self) -> None:
        known = incarnations(self._directory)
        try:
            pem = read_limited(self._directory / AUTHORITY_CERTIFICATE, size_bytes_max=PEM_BYTES_MAX)
            trusted = x509.load_pem_x509_certificates(pem)
            claims = self._claims()
        except (SecondsiteError, OSError, ValueError, FileTooLarge) as error:
            log.info("claims of servers cannot be read: %s", error)
            return
        for claim in claims:
            if claim.incarnation <= known.number or not claim.signed_by_one(trusted):
                continue  # known, or of another server whose backups are kept here as well
            known.met(claim.url, claim.shown)
            self._take([*self._urls, claim.url])
            text = (
                f"the standby server at {claim.url} took over on {claim.at}: incarnation {claim.incarnation} "
                "is obeyed from now on, and no earlier one"
            )
            self._events.emit("server.claimed", Severity.WARNING, text)

    def _answers(self, url: str) -> bool:
        """Whether a life of the server answers there that is no earlier than the latest one met."""
        try:
            return self._ask(url)
        except (SecondsiteError, OSError, ValueError) as error:
            log.info("no server to be used at %s: %s", url, error)
            return False

    def _ask(self, url: str) -> bool:
        found = load_membership(self._directory)
        files = EnrolmentFiles(self._directory, found.name)
        way = Way(url, found.proxy, found.proxy_credentials)
        client = enrolled_client(way, files.tls, system_trust=found.system_trust)
        try:
            client.request("GET", wire.PATH_REVOCATIONS, None, seconds=PROBE_SECONDS)
        finally:
            client.close()
        return True

    def _move(self, old: str, new: str) -> None:
        found = load_membership(self._directory)
        EnrolmentFiles(self._directory, found.name).save(found.model_copy(update={"server": new}))
        number = incarnations(self._directory).number
        text = f"the server is at {new} from now on, incarnation {number}; it was at {old}"
        self._events.emit("server.moved", Severity.WARNING, text)
        # Shown the later life, the one that is left does nothing more; it need not answer.
        self._answers(old)

    def _take(self, urls: Sequence[str]) -> None:
        checked: list[str] = []
        for url in urls:
            with contextlib.suppress(InvalidInput):  # a newer server's; the others count
                checked.append(server_url(url))
        found = tuple(dict.fromkeys(checked))[:URLS_MAX]
        if found == self._urls:
            return
        replace_file(self._directory / NAME, msgspec.json.encode(_File(VERSION, found)), mode=0o644)
        self._urls = found


def known_servers(directory: Path) -> tuple[str, ...]:
    """Where the server of the gateway enrolled in `directory` may be, as it said last."""
    path = directory / NAME
    try:
        found = msgspec.json.decode(read_limited(path, size_bytes_max=FILE_BYTES_MAX), type=_File)
    except (FileNotFoundError, FileTooLarge, *JSON_ERRORS):
        return ()  # learnt anew with the next heartbeat
    return found.urls[:URLS_MAX] if found.version == VERSION else ()
