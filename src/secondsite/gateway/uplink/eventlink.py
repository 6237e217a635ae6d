"""Tells the server what happens at this gateway: events in their order, each counted once.

The server's answer is the only cursor: it says up to which number it has a log. So nothing is lost or told
twice whichever end dies between sending and noting, and a server restored from a backup simply answers with a
lower number. Earlier runs' events come from their files, this run's from memory; what fell out of both while
the server was away is told as a gap by the server, which sees the numbers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from pydantic import ValidationError

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.uplink.connection import FreshClient
from secondsite.gateway.uplink.enrolclient import ServerClient
from secondsite.model.events import ENDS, LASTS, Event, Severity
from secondsite.transfer.reports import (
    EVENT_BATCH_BYTES_MAX,
    EVENTS_A_BATCH_MAX,
    PATH_EVENTS,
    EventAnswer,
    EventBatch,
    ToldEvent,
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
RETRY_SECONDS = 5.0
# How soon a server that was put back to an older state is noticed while nothing happens here.
ASK_SECONDS = 60.0
SEND_SECONDS = 30.0
# A character takes up to six bytes in JSON.
BATCH_CHARACTERS_MAX = EVENT_BATCH_BYTES_MAX // 8
# Runs whose events the server has are kept for one that is put back to an older state; without a server more.
RUNS_KEPT = 8
RUNS_MAX = 16
SENT = mark("eventlink.sent")

Numbered = tuple[int, Event]


class EventPort(Protocol):
    """A server that takes events."""

    def push(self, batch: EventBatch) -> EventAnswer:
        """Send some. Raises SecondsiteError."""

    def close(self) -> None:
        """End what is under way, from another thread."""


class ServerEvents:
    """Implements `EventPort` over HTTPS with the gateway's certificate."""

    def __init__(self, open_client: Callable[[], ServerClient], serial: Callable[[], int]) -> None:
        """See `FreshClient`."""
        self._client = FreshClient(open_client, serial)

    def push(self, batch: EventBatch) -> EventAnswer:
        """See `EventPort`."""
        return self._client.get().post(PATH_EVENTS, batch, EventAnswer, seconds=SEND_SECONDS)

    def close(self) -> None:
        """See `EventPort`."""
        self._client.close()


class EventLink:
    """Pushes until `close`. `start` once; tests call `push_all`."""

    def __init__(self, port: EventPort, events: EventLog, files: EventFiles, clock: Clock) -> None:
        self._port = port
        self._events = events
        self._files = files
        self._clock = clock
        # log -> the number the server has of it; forgotten when the server turns out to know less
        self._has: dict[str, int] = {}
        self._asked_at = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="eventlink", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Send no more; what is left goes with the next run."""
        self._stop.set()
        self._port.close()
        if self._thread.ident is not None:
            self._thread.join()

    def push_all(self) -> None:
        """Send everything the server does not have yet. Raises SecondsiteError when it cannot be reached."""
        if self._clock.monotonic() - self._asked_at >= ASK_SECONDS:
            self._ask_again()
        for run in self._files.earlier():
            if run not in self._has:
                self._push_earlier(run)
        self._push_current()
        for run in self._files.earlier()[:-RUNS_KEPT]:
            self._files.drop(run)

    def _root(self) -> None:
        away = False
        while not self._stop.is_set():
            try:
                self.push_all()
                away = False
                self._clock.wait(self._stop, LOOK_SECONDS)
            except SecondsiteError as error:
                if not away and not self._stop.is_set():
                    log.warning("events wait for the server: %s", error)
                away = True
                self._drop_untold()
                self._clock.wait(self._stop, RETRY_SECONDS)
            except Exception:  # a thread's root: told, and tried again
                log.exception("telling the server what happened failed")
                self._clock.wait(self._stop, RETRY_SECONDS)

    def _ask_again(self) -> None:
        """See that the server still has what it had, where anything is known: else all is asked for anew."""
        known = [run for run, last in self._has.items() if last]
        if known:
            newest = max(known)
            if self._port.push(EventBatch(log=newest)).last < self._has[newest]:
                self._server_knows_less()
        self._asked_at = self._clock.monotonic()

    def _push_earlier(self, run: str) -> None:
        numbered = list(self._files.read(run))
        last = self._port.push(EventBatch(log=run)).last
        while rest := [entry for entry in numbered if entry[0] > last]:
            last = self._send(run, last, rest)
        self._has[run] = last

    def _push_current(self) -> None:
        run = self._files.run
        while found := self._events.since(self._has.get(run, 0), EVENTS_A_BATCH_MAX):
            last = self._has.get(run, 0)
            answered = self._send(run, last, found)
            if answered < last:
                self._server_knows_less()
            self._has[run] = answered
            self._events.told(answered)

    def _send(self, run: str, last: int, numbered: Sequence[Numbered]) -> int:
        """Send what fits of these; the number the server now has."""
        answer = self._port.push(EventBatch(log=run, after=last, events=_told(numbered)))
        crash_point(SENT)
        return answer.last

    def _server_knows_less(self) -> None:
        log.warning("the server was put back to an older state: what it lacks is sent again")
        self._has.clear()

    def _drop_untold(self) -> None:
        """Without a server the runs become too many: the oldest go, and that is told."""
        dropped = self._files.earlier()[:-RUNS_MAX]
        for run in dropped:
            self._files.drop(run)
        if lost := [run for run in dropped if run not in self._has]:
            text = (
                f"the server was away for so long that events of {len(lost)} earlier runs were dropped untold"
            )
            self._events.emit("events.dropped", Severity.WARNING, text)


def _told(numbered: Sequence[Numbered]) -> tuple[ToldEvent, ...]:
    """As they travel; the first ones, as many as a batch may have."""
    taken: list[ToldEvent] = []
    characters = 0
    for number, event in numbered[:EVENTS_A_BATCH_MAX]:
        told = told_event(number, event)
        characters += len(told.text) + 200
        if taken and characters > BATCH_CHARACTERS_MAX:
            break
        taken.append(told)
    return tuple(taken)


def told_event(number: int, event: Event) -> ToldEvent:
    """An event as it travels, whatever is in it: one that a server refuses would hold up all others."""
    values = {
        "number": number,
        "at": event.at if 20 <= len(event.at) <= 40 else _NEVER,
        "code": event.code[:100],
        "severity": event.severity.value,
        "text": event.text[:4000].encode(errors="replace").decode(),
        "machine": event.machine,
        "lasts": bool(event.data.get(LASTS)),
        "ends": str(event.data.get(ENDS, ""))[:100],
    }
    try:
        return ToldEvent.model_validate(values)
    except ValidationError:
        return ToldEvent.model_validate({**values, "machine": None})


_NEVER = "1970-01-01T00:00:00Z"
