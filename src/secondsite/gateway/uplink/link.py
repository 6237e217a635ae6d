"""The gateway's side of the server's control path: takes what is wanted of it, and reports how far it is.

One thread. It asks when the server says, in its answer to a report or a heartbeat, that it wants something
newer; it reports every half minute, and at once when a state or a health has changed. Nothing of it stands in
the way of replication: while the server is away the gateway works towards what it took last.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.desired import DesiredState, Protection
from secondsite.gateway.common.wanted import SERVER, Taken, is_old, peers_after, take, why_not
from secondsite.gateway.messages.failover import FailoverStatus, HeldMachine
from secondsite.gateway.messages.gateway import ProtectionStatus, ReplicaStatus
from secondsite.gateway.uplink.connection import FreshClient
from secondsite.gateway.uplink.enrolclient import ServerClient
from secondsite.gateway.uplink.reporting import Signature, make_report, signature
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import machine_id
from secondsite.transfer.desired import PATH_DESIRED, Peer, Received, WantedProtection, read_desired
from secondsite.transfer.reports import PATH_REPORTS, REPORT_SECONDS, Report, ReportAnswer

log = logging.getLogger(__name__)

# How often states are looked at for a change that is to be told at once.
LOOK_SECONDS = 1.0
# What was refused may be possible a while later: a key is proved, a machine is there.
RETRY_REFUSED_SECONDS = 15.0
RETRY_SECONDS = (2.0, 30.0)
ANSWER_SECONDS = 60.0


class ServerPort(Protocol):
    """A server that says what it wants, and listens."""

    def desired(self, after: int) -> Received | None:
        """What it wants; None: nothing newer than that generation. Raises SecondsiteError."""

    def report(self, report: Report) -> ReportAnswer:
        """Tell it. Raises SecondsiteError."""

    def close(self) -> None:
        """End what is under way, from another thread."""


class ServerDesk:
    """Implements `ServerPort` over HTTPS with the gateway's certificate."""

    def __init__(self, open_client: Callable[[], ServerClient], serial: Callable[[], int]) -> None:
        """See `FreshClient`."""
        self._client = FreshClient(open_client, serial)

    def desired(self, after: int) -> Received | None:
        """See `ServerPort`. Raises DesiredUnknown as well."""
        path = f"{PATH_DESIRED}?after={after}"
        data = self._client.get().request("GET", path, None, seconds=ANSWER_SECONDS)
        return read_desired(data) if data else None

    def report(self, report: Report) -> ReportAnswer:
        """See `ServerPort`."""
        return self._client.get().post(PATH_REPORTS, report, ReportAnswer, seconds=ANSWER_SECONDS)

    def close(self) -> None:
        """See `ServerPort`."""
        self._client.close()


@dataclass(frozen=True)
class Site:
    """What of the gateway is told, and what follows what was taken. All may block; none is needed."""

    statuses: Callable[[], Sequence[ProtectionStatus]]
    replicas: Callable[[], Sequence[ReplicaStatus]]
    # raises why an item cannot be protected so, beyond what the desired state says; with the present one
    check: Callable[[WantedProtection, Protection | None], None]
    took: Callable[[Taken], None]  # makes what runs follow
    peers: Callable[[Sequence[Peer]], None]
    failovers: Callable[[], Sequence[FailoverStatus]] = lambda: ()  # of this site, oldest first
    held: Callable[[], Sequence[HeldMachine]] = lambda: ()


class ServerLink:
    """Runs until `close`. `start` once; tests call `round`."""

    def __init__(
        self,
        port: ServerPort,
        desired: DesiredState,
        site: Site,
        *,
        server: Callable[[], str],
        clock: Clock,
        events: EventSink,
        chance: random.Random,
    ) -> None:
        """server: which one now, in a word that stays when its address changes; enrolled anew, another."""
        self._port = port
        self._desired = desired
        self._site = site
        self._which = server
        self._server = server()
        self._clock = clock
        self._events = events
        self._chance = chance
        self._wanted = -1  # the newest generation the server spoke of
        self._asked = False  # since the start
        self._latest: Received | None = None  # what is tried again, as long as some of it was refused
        self._refused: Mapping[str, str] = {}
        self._tell: frozenset[str] = frozenset()
        self._said: Signature = ()
        now = clock.monotonic()
        self._report_due = self._retry_due = now
        self._failures = 0
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._root, name="server-link", daemon=True)

    @property
    def refused(self) -> Mapping[str, str]:
        """What of the last document could not be taken: item -> sentences."""
        return self._refused

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; a request under way is cut off."""
        self._stop.set()
        self._wake.set()
        self._port.close()
        if self._thread.ident is not None:
            self._thread.join()

    def known(self) -> int:
        """The newest generation the server spoke of; -1: none yet."""
        return self._wanted

    def heard(self, generation: int) -> None:
        """The server wants something of this generation; from any thread."""
        if generation > self._wanted:
            self._wanted = generation
            self._wake.set()

    def hurry(self) -> None:
        """Report now: somebody waits for what just ended; from any thread."""
        self._report_due = self._clock.monotonic()
        self._wake.set()

    def _root(self) -> None:
        wait = 0.0
        while not self._stop.is_set():
            self._clock.wait(self._wake, wait)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                wait = self.round()
                self._failures = 0
            except SecondsiteError as error:
                wait = self._later()
                log.info("the server's wishes and our report wait: %s", error)
            except Exception as error:  # a thread's root: told, and tried again
                wait = self._later()
                log.exception("following the server's wishes failed")
                text = f"following the server's wishes failed: {type(error).__name__}: {error}"
                self._events.emit("gateway.internal-error", Severity.CRITICAL, text)

    def _later(self) -> float:
        low, high = RETRY_SECONDS
        self._failures += 1
        return min(high, low * 2.0 ** min(self._failures - 1, 10)) * (0.75 + 0.5 * self._chance.random())

    def round(self) -> float:
        """Ask if there is reason to, try again what was refused, report if due; seconds until the next.

        Raises what the server's port raises.
        """
        self._look_which()
        self._ask()
        statuses = self._site.statuses()
        failovers, held = self._site.failovers(), self._site.held()
        now = signature(statuses, failovers, held)
        if self._clock.monotonic() >= self._report_due or now != self._said or self._tell:
            self._report(statuses, failovers, held)
            self._said = now
        return LOOK_SECONDS

    def _look_which(self) -> None:
        """Enrolled with another server meanwhile: nothing that was heard or said counts any more."""
        now = self._which()
        if now != self._server:
            self._server, self._asked, self._wanted = now, False, -1
            self._latest, self._refused, self._tell = None, {}, frozenset()
            self._report_due = self._clock.monotonic()

    def _ask(self) -> None:
        now = self._desired.everything()
        generation = now.generation if now.server == self._server else -1
        if not self._asked or self._wanted > generation:
            # after a start also what was taken already: some of it may have been refused
            found = self._port.desired(generation if self._asked else max(-1, generation - 1))
            self._asked = True
            if found is not None:
                self._wanted = max(self._wanted, found.desired.generation)
                self._latest = found
                self._take(found)
            else:
                self._wanted = generation
        elif self._refused and self._latest is not None and self._clock.monotonic() >= self._retry_due:
            self._take(self._latest)

    def _take(self, found: Received) -> None:
        now = self._desired.everything()
        if is_old(now, found.desired, self._server):
            log.warning("wishes %d of the server are older than %d", found.desired.generation, now.generation)
            return
        refused = dict(found.refused)
        self._site.peers(peers_after(now, found.desired))
        for wanted in found.desired.protections:
            before = now.protections.get(machine_id(wanted.machine))
            if wanted.item in refused or not wanted.enabled or why_not(now, before, wanted):
                continue
            try:
                self._site.check(wanted, before)
            except SecondsiteError as error:
                refused[wanted.item] = " ".join(error.sentences())
        taken = take(self._desired, found.desired, self._server, refused)
        self._tell_refused(found, taken.refused)
        self._refused = taken.refused
        self._retry_due = self._clock.monotonic() + RETRY_REFUSED_SECONDS
        self._report_due = self._clock.monotonic()
        self._site.peers(taken.peers)  # with the sources of replicas, which may write from now on
        self._site.took(taken)

    def _tell_refused(self, found: Received, refused: Mapping[str, str]) -> None:
        machines = {wanted.item: wanted for wanted in found.desired.protections}
        for item, why in refused.items():
            if self._refused.get(item) == why:
                continue
            wanted = machines.get(item)
            name = wanted.name if wanted is not None else item
            text = f"what {SERVER} wants of {name} is not done: {why}"
            machine = wanted.machine if wanted is not None else None
            self._events.emit("item.refused", Severity.WARNING, text, machine=machine)

    def _report(
        self,
        statuses: Sequence[ProtectionStatus],
        failovers: Sequence[FailoverStatus],
        held: Sequence[HeldMachine],
    ) -> None:
        tell, self._tell = self._tell, frozenset()
        report = make_report(
            self._clock,
            self._desired.everything(),
            statuses,
            self._site.replicas(),
            refused=self._refused,
            tell=tell,
            failovers=failovers,
            held=held,
            left_behind=self._desired.left_behind(),
        )
        answer = self._port.report(report)
        self._report_due = self._clock.monotonic() + REPORT_SECONDS * (0.9 + 0.2 * self._chance.random())
        told = {one.machine for one in report.protections if one.wanted is not None}
        known = {one.machine for one in report.protections}
        self._tell = (frozenset(answer.tell) & known) - told  # at once, and not over and over
        self.heard(answer.generation)
