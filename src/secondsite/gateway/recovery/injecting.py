"""Brings what was set for a recovered machine into its guest, and looks whether it took it.

The machine runs whatever becomes of this: it has its drive (`fabrics.guest.drive`), and what went wrong is
told in its record and in an event, and can be asked for again. A thread of its own: an agent may let us wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.fabrics.base import Fabric, Recovered
from secondsite.fabrics.errors import SourceBusy
from secondsite.gateway.messages.testfailover import InjectionState, InjectionStatus
from secondsite.model.events import EventSink, Severity
from secondsite.model.ids import MachineId
from secondsite.model.recovered import Injection, RecoveredSettings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
# An emulated guest on a busy host needs minutes to its agent; cloud-init may wait two for a network.
TAKE_SECONDS_MAX = 900.0
_GOING = (InjectionState.WAITING, InjectionState.RUNNING)


class NotStanding(SecondsiteError):
    """There is no machine to do it in."""

    code = "recovered.not-standing"
    outcome = Outcome.REFUSED
    happened = (
        "Nothing was brought into {name}: it does not run here as a recovered machine with such settings."
    )
    cause = "It is still being started, is gone, is a machine of this site by now, or nothing was set for it."
    action = "Look at it with `secondsite failover status` or `secondsite test-failover list`."


@dataclass(frozen=True)
class Guest:
    """A recovered machine whose record is kept somewhere."""

    id: str  # of the operation
    machine: MachineId
    name: str
    settings: RecoveredSettings
    status: InjectionStatus
    recovered: Recovered


class Book(Protocol):
    """Who keeps such records."""

    def guests(self) -> Sequence[Guest]:
        """Those that stand and have something to take."""

    def note(self, identity: str, status: InjectionStatus) -> None:
        """Keep how far it is."""


def begun(settings: RecoveredSettings | None, at: str) -> InjectionStatus | None:
    """Of a machine that has just been started; None: there is nothing to bring into it."""
    if settings is None or not settings.inside:
        return None
    return InjectionStatus(method=settings.injection, state=InjectionState.WAITING, since=at)


@dataclass(eq=False)
class Injector:
    """Of one gateway. `start` once; the methods that people call are thread-safe."""

    fabric: Fabric
    books: Sequence[Book]
    clock: Clock
    events: EventSink
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _since: dict[tuple[str, str], float] = field(default_factory=dict)  # (operation, since) -> monotonic
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Look after them from now on."""
        self._thread = threading.Thread(target=self._run, name="recovered-guests", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; the next gateway goes on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def again(self, identity: str) -> InjectionStatus:
        """Bring it in once more, by the agent where the drive has a script. Raises NotStanding."""
        with self._lock:
            for book in self.books:
                for guest in book.guests():
                    if guest.id == identity:
                        status = InjectionStatus(
                            method=guest.status.method,
                            state=InjectionState.WAITING,
                            since=self._now(),
                            tries=guest.status.tries,
                            by_agent=guest.settings.injection is Injection.DRIVE,
                        )
                        book.note(identity, status)
                        return status
        raise NotStanding(name=f"the machine of operation {identity[:32]}")

    def _run(self) -> None:
        told = ""
        while not self.clock.wait(self._stop, LOOK_SECONDS):
            try:
                self.look()
                told = ""
            except Exception as error:  # a thread's root: told, and tried again
                text = f"looking after guests failed: {type(error).__name__}: {error}"
                if text != told:
                    log.exception("looking after guests failed")
                    self.events.emit("recovered.watch-failed", Severity.WARNING, text)
                told = text

    def look(self) -> None:
        """One round over all that is not at its end."""
        going = set()
        for book in self.books:
            for guest in book.guests():
                if guest.status.state in _GOING:
                    going.add((guest.id, guest.status.since))
                    self._step(book, guest)
        self._since = {key: at for key, at in self._since.items() if key in going}

    def _step(self, book: Book, guest: Guest) -> None:
        began = self._since.setdefault((guest.id, guest.status.since), self.clock.monotonic())
        late = self.clock.monotonic() - began > TAKE_SECONDS_MAX
        try:
            status = self._next(guest, late=late)
        except SourceBusy as error:
            # while a guest starts that is how it is; a run that was begun may have gone with a restart
            running = guest.status.state is InjectionState.RUNNING
            status = msgspec.structs.replace(
                guest.status, state=InjectionState.WAITING, run=None, detail=error.sentences()[0]
            )
            if late:
                status = self._given_up(guest, str(error))
            elif not running and status.detail == guest.status.detail:
                return
        with self._lock:
            if status == guest.status or self._moved_on(book, guest):
                return
            book.note(guest.id, status)
        if status.state not in _GOING:
            self._tell(guest, status)

    def _moved_on(self, book: Book, guest: Guest) -> bool:
        """Whether somebody asked for it again, or it went, while its agent was spoken to."""
        return not any(one.id == guest.id and one.status == guest.status for one in book.guests())

    def _next(self, guest: Guest, *, late: bool) -> InjectionStatus:
        status = guest.status
        by_agent = status.method is Injection.AGENT or status.by_agent
        if not by_agent:
            return self._seen(guest, late=late)
        if status.run is None:
            run = self.fabric.apply_in_guest(guest.recovered)
            return msgspec.structs.replace(
                status, state=InjectionState.RUNNING, run=run, tries=status.tries + 1, detail=""
            )
        ended = self.fabric.applied(guest.recovered, status.run)
        if ended is None:
            if late:
                return self._ended(status, InjectionState.FAILED, "it runs in the guest and does not end")
            return status
        output = " ".join(ended.output.split())[:1000]
        if ended.code:
            return self._ended(status, InjectionState.FAILED, f"it ended with {ended.code}: {output}")
        missing = self._missing(guest)
        if missing:
            text = f"it ended well, and the guest does not have {', '.join(missing)}: {output}"
            return self._ended(status, InjectionState.FAILED, text)
        return self._ended(status, InjectionState.APPLIED, output)

    def _seen(self, guest: Guest, *, late: bool) -> InjectionStatus:
        """Of a guest that reads its drive by itself: whether its agent sees the addresses."""
        missing = self._missing(guest)
        if not missing and guest.settings.static_addresses:
            return self._ended(guest.status, InjectionState.APPLIED, "its agent sees the addresses")
        if not late:
            return guest.status
        if missing:
            text = f"the guest did not take {', '.join(missing)} from its drive"
            return self._ended(guest.status, InjectionState.FAILED, text)
        return self._ended(guest.status, InjectionState.OFFERED, "its drive is there to be read")

    def _missing(self, guest: Guest) -> list[str]:
        seen = set(self.fabric.addresses_of(guest.recovered))
        return [address for address in guest.settings.static_addresses if address not in seen]

    def _given_up(self, guest: Guest, why: str) -> InjectionStatus:
        by_agent = guest.status.method is Injection.AGENT or guest.status.by_agent
        if by_agent:
            return self._ended(guest.status, InjectionState.FAILED, why)
        text = f"its drive is there to be read; whether it was, nobody could see: {why}"
        return self._ended(guest.status, InjectionState.OFFERED, text)

    def _ended(self, status: InjectionStatus, state: InjectionState, detail: str) -> InjectionStatus:
        return msgspec.structs.replace(status, state=state, detail=detail, ended_at=self._now(), run=None)

    def _tell(self, guest: Guest, status: InjectionStatus) -> None:
        failed = status.state is InjectionState.FAILED
        code = "recovered.settings-not-applied" if failed else "recovered.settings-applied"
        words = {
            InjectionState.APPLIED: f"{guest.name} took the addresses of this site",
            InjectionState.OFFERED: f"{guest.name} was given a drive with the addresses of this site",
            InjectionState.FAILED: f"{guest.name} runs, without the addresses of this site",
        }
        text = f"{words[status.state]}: {status.detail}"
        severity = Severity.WARNING if failed else Severity.INFORMATION
        self.events.emit(code, severity, text, machine=guest.machine, operation=guest.id)

    def _now(self) -> str:
        return self.clock.utc().isoformat()


@dataclass(frozen=True)
class Records:
    """A `Book` over functions: of test failovers, and of failovers."""

    all: Callable[[], Sequence[Guest]]
    keep: Callable[[str, InjectionStatus], object]

    def guests(self) -> Sequence[Guest]:
        """See `Book`."""
        return self.all()

    def note(self, identity: str, status: InjectionStatus) -> None:
        """See `Book`."""
        self.keep(identity, status)
