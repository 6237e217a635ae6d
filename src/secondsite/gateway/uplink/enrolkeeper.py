"""A gateway's standing with its server, kept by itself: heartbeats, renewals, the revocation list, its state.

Nothing here stops replication. A server that is away, newer, older or refusing is told as an event; only a
server that says it let this gateway go makes it refuse new work, and what runs goes on.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.base.files import FileTooLarge
from secondsite.gateway.common.enrolerrors import ServerUnreachable, WorkRefused
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership, State, load_membership
from secondsite.gateway.common.incarnation import TwoServers, incarnations
from secondsite.gateway.messages.gateway import Health, ProtectionStatus
from secondsite.gateway.uplink.connection import EnrolledClients, FreshClient
from secondsite.gateway.uplink.enrol import renew
from secondsite.gateway.uplink.enrolclient import ServerClient
from secondsite.gateway.uplink.whichserver import Claims, WhichServer, no_claims
from secondsite.model.events import EventSink, Severity
from secondsite.transfer import enrolment as wire

log = logging.getLogger(__name__)

RENEW_AT = 2 / 3  # of a certificate's life
# of its life: gateways enrolled by one script do not renew in one second
RENEW_SPREAD = 1 / 30
RENEW_RETRY_SECONDS = (60.0, 3600.0)
# a server that let the gateway go is asked now and then whether it took it back
LET_GO_SECONDS = 60.0
# As often as a heartbeat comes anyway (0.3 to 0.5 of it): a server that was down refuses work for gateways
# that it has not heard of again.
AWAY_SECONDS_MAX = 20.0
_LET_GO: dict[str, State] = {
    "gateway.unregistered": "Unregistered",
    "gateway.removed": "Removed",
    "gateway.revoked": "Revoked",
}


@dataclass(frozen=True)
class Facts:
    """What a heartbeat tells: numbers, no names."""

    protected: int = 0
    points: int = 0
    health: str = "Unknown"


def no_facts() -> Facts:
    """Nothing is known."""
    return Facts()


def facts_of(protections: Sequence[ProtectionStatus]) -> Facts:
    """Of the machines this gateway protects; a gateway that only stores has none, and is well."""
    order = [Health.NORMAL, Health.WARNING, Health.CRITICAL]
    worst = max((status.health for status in protections), key=order.index, default=Health.NORMAL)
    return Facts(len(protections), sum(status.points for status in protections), worst.value)


# our own word, and that of a server which was shown a later incarnation than its own
TWO_SERVERS = frozenset({TwoServers.code, "server.superseded"})


class ServerKeeper:
    """Keeps one gateway's standing. `start` once, `close` at the end; tests call `beat` and `look`."""

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        events: EventSink,
        chance: random.Random,
        facts: Callable[[], Facts] = no_facts,
        url: str | None = None,
        on_generation: Callable[[int], None] = lambda _: None,
        claims: Claims = no_claims,
        version: str = __version__,
    ) -> None:
        """directory: where the gateway was enrolled into. url: of its listener, for other gateways.

        on_generation: told which wishes the server has; must not block. claims: of servers, in this gateway's
        store (`whichserver`). Raises NotEnrolled.
        """
        self._membership = load_membership(directory)
        self._files = EnrolmentFiles(directory, self._membership.name)
        self._files.settle()
        self._files.certificate()
        self._clock = clock
        self._events = events
        self._chance = chance
        self._facts = facts
        self._url = url
        self._on_generation = on_generation
        self._version = version
        self._which = WhichServer(directory, clock=clock, events=events, claims=claims)
        self._spread = chance.random()
        clients = EnrolledClients(directory)
        self._fresh = FreshClient(clients.open, clients.serial)
        self._renew_now = False  # the authority of our certificate goes
        self._refreshed = 0
        self._told = ""  # the code of the trouble that was told last
        self._renew_wait = 0.0  # seconds between attempts; grows while they fail
        self._renew_not_before = clock.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="server", daemon=True)

    @property
    def membership(self) -> Membership:
        """As it is known now."""
        return self._membership

    def check_may_work(self) -> None:
        """Raise WorkRefused once the server has let this gateway go."""
        found = self._membership
        if found.state != "Registered":
            text = f"it is {found.state.lower()} at {found.server} ({found.reason.rstrip('.')})"
            raise WorkRefused(text=text)

    def start(self) -> None:
        """Keep it, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a request on its way is cut off."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._fresh.close()

    def _root(self) -> None:
        wait = 0.0
        while not self._clock.wait(self._stop, wait):
            try:
                wait = self.look()
            except Exception as error:  # a thread's root: told, and tried again
                log.exception("keeping in touch with the server failed")
                text = f"keeping in touch with the server failed: {type(error).__name__}: {error}"
                self._events.emit("server.internal-error", Severity.WARNING, text)
                wait = AWAY_SECONDS_MAX

    def look(self) -> float:
        """One round: a heartbeat, and what follows from its answer. Returns seconds until the next."""
        try:
            self._renew_if_due()
            asked = self.beat()
            if asked > self._refreshed:
                self._refreshed = asked
                self.beat()  # facts taken after the server asked for them
        except (SecondsiteError, OSError, ValueError, FileTooLarge) as error:
            wait = self._trouble(error)
            if wait < LET_GO_SECONDS and self._which.look(trouble=True):
                return 0.0  # another address: at once
            return wait
        self._told = ""
        self._set_state("Registered", "")
        if self._which.look(trouble=False):
            return 0.0
        return wire.HEARTBEAT_SECONDS * (0.9 + 0.2 * self._chance.random())

    def beat(self) -> int:
        """Tell the server that we live; returns the refresh it wants. Raises what `ServerClient` raises."""
        facts = self._facts()
        beat = wire.Heartbeat.model_validate(
            {
                "version": self._version,
                "sent_at": wire.time_text(self._clock.utc()),
                "revocation_number": self._files.revocation_number(),
                "refreshed": self._refreshed,
                "protected": facts.protected,
                "points": facts.points,
                "health": facts.health,
                "url": self._url,
                "trust": self._files.trust(),
            }
        )
        client = self._open()
        answer = client.post(wire.PATH_HEARTBEATS, beat, wire.HeartbeatAnswer)
        self._tell_revocations(client)
        if answer.revocation_number > beat.revocation_number:
            listed = client.get(wire.PATH_REVOCATIONS, wire.RevocationsAnswer)
            if self._files.take_revocations(listed.pem):
                text = f"revocation list {listed.number} of the server is in use"
                self._events.emit("server.revocations", Severity.INFORMATION, text)
        self._follow_trust(client, answer, beat)
        wire.check_clocks(self._clock.utc(), wire.parse_time(answer.server_time))
        self._on_generation(answer.generation)
        self._which.delivered(answer.servers)
        return answer.refresh

    def _follow_trust(self, client: ServerClient, answer: wire.HeartbeatAnswer, beat: wire.Heartbeat) -> None:
        """Take up another set of authorities, and leave one that goes: the server rotates its own."""
        if answer.trust and answer.trust != beat.trust:
            if self._files.take_trust(client.get(wire.PATH_TRUST, wire.TrustAnswer).pem):
                text = "the server's authorities changed; those it names now are trusted"
                self._events.emit("server.trust-changed", Severity.INFORMATION, text)
        elif answer.renew:
            self._renew_not_before, self._renew_now = self._clock.monotonic(), True

    def _tell_revocations(self, client: ServerClient) -> None:
        """Give a server that was restored our revocation list: what was revoked since its backup is in it."""
        known = incarnations(self._files.directory)
        if not known.untold:
            return
        pem = self._files.revocations()
        if pem:
            client.post(wire.PATH_REVOCATIONS, wire.KnownRevocations(pem=pem), wire.RevocationsAnswer)
        known.told()

    def renewal_due(self, certificate: x509.Certificate) -> dt.datetime:
        """When this certificate is to be renewed: at two thirds of its life, or a little after."""
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        return certificate.not_valid_before_utc + life * (RENEW_AT + RENEW_SPREAD * self._spread)

    def _renew_if_due(self) -> None:
        certificate = self._files.certificate()
        if not self._renew_now and self._clock.utc() < self.renewal_due(certificate):
            return
        if self._clock.monotonic() < self._renew_not_before:
            return
        try:
            made = renew(self._open(), self._files, clock=self._clock, version=self._version)
        except (SecondsiteError, OSError, ValueError) as error:
            low, high = RENEW_RETRY_SECONDS
            self._renew_wait = min(high, max(low, 2 * self._renew_wait))
            delay = self._renew_wait * (0.75 + 0.5 * self._chance.random())
            self._renew_not_before = self._clock.monotonic() + delay
            if not isinstance(error, ServerUnreachable):  # that is told with the heartbeat
                text = f"the certificate was not renewed, tried again in {delay / 60:.0f} minutes: {error}"
                self._events.emit("server.renewal-failed", Severity.WARNING, text)
            return
        self._renew_wait, self._renew_not_before, self._renew_now = 0.0, self._clock.monotonic(), False
        self._spread = self._chance.random()
        until = f"{made.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        self._events.emit(
            "server.certificate-renewed",
            Severity.INFORMATION,
            f"renewed the certificate, valid until {until}",
        )

    def _open(self) -> ServerClient:
        """A client with the certificate and address in use now: renewed, enrolled again, moved by hand."""
        found = load_membership(self._files.directory)
        if found.name == self._files.name:
            self._membership = found
        return self._fresh.get()

    def _trouble(self, error: Exception) -> float:
        """Tell it once; returns seconds until the next try."""
        code = str(error.body.get("code", "")) if isinstance(error, RemoteError) else ""
        code = code or getattr(error, "code", "") or type(error).__name__
        if code in _LET_GO:
            self._set_state(_LET_GO[code], str(error))
            return LET_GO_SECONDS
        if code != self._told:
            self._told = code
            away = isinstance(error, ServerUnreachable)
            severity = Severity.INFORMATION if away else Severity.WARNING
            name = "server.away" if away else "server.trouble"
            if code in TWO_SERVERS:
                name, severity = TwoServers.code, Severity.CRITICAL
            self._events.emit(name, severity, f"{error} Replication goes on.", trouble=code)
        return AWAY_SECONDS_MAX * (0.3 + 0.2 * self._chance.random())

    def _set_state(self, state: State, reason: str) -> None:
        if state == self._membership.state:
            return
        # as it is on disk: a person may have changed the way to the server meanwhile
        found = load_membership(self._files.directory)
        self._membership = found.model_copy(update={"state": state, "reason": reason})
        self._files.save(self._membership)
        if state == "Registered":
            text = f"this gateway is registered with {self._membership.server} again"
            self._events.emit("server.registered", Severity.INFORMATION, text)
        else:
            text = f"the server let this gateway go, it takes no new work: {reason}"
            self._events.emit("server.let-go", Severity.CRITICAL, text, state=state)
