"""This life of the server, while it runs: what it shows, and that it stops where a later one is met."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.engine import Connection

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_survival import server_state
from secondsite.server.database.values import from_moment
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.survival.incarnation import Incarnation, ensure_incarnation, read_incarnation
from secondsite.transfer.incarnation import ShownIncarnation, incarnation_message, shown

log = logging.getLogger(__name__)


class ServerSuperseded(SecondsiteError):
    """A later life of this server exists."""

    code = "server.superseded"
    outcome = Outcome.REFUSED
    happened = "This server is incarnation {number}; gateways obey incarnation {newer}{where}."
    cause = "It was thought lost: a standby took over or a backup was restored elsewhere, then it came back."
    action = (
        "Stop it, and make it the standby of the other one with `secondsite server become-standby`; see "
        "RUNBOOK.md, standby takeover."
    )


class ServerHandedOver(SecondsiteError):
    """It was stopped in order, and waits for a standby to go on."""

    code = "server.handed-over"
    outcome = Outcome.REFUSED
    happened = "This server was handed over at {at}: it changes nothing until a standby has taken over."
    cause = "A person asked for a planned switch-over: its jobs stand still, its last state is on its way."
    action = (
        "At the standby: `secondsite server take-over`. To go on here instead: `secondsite server hand-over "
        "--take-back`."
    )


class Life:
    """Thread-safe. `heard` at every request of a gateway."""

    def __init__(self, database: Database, authority: ServerAuthority, clock: Clock) -> None:
        self._authority = authority
        self._database = database
        self._lock = threading.Lock()
        self._newer = 0
        self.on_superseded: Callable[[], None] = lambda: None
        # told once, in the transaction that notes it
        self.tell: Callable[[Connection, int, str], None] = lambda _connection, _number, _url: None
        self.on_handed_over: Callable[[], None] = lambda: None
        self._handed_over: str | None = None
        self.newer_url = ""
        self.state: Incarnation = database.run(lambda connection: ensure_incarnation(connection, clock.utc()))
        self._newer = self.state.superseded_by or 0
        self._handed_over = self.state.handed_over_at
        self.newer_url = self.state.superseded_url or ""
        signature = authority.sign(incarnation_message(self.state.number))
        self.shown = shown(self.state.number, signature).text  # with every answer

    @property
    def number(self) -> int:
        """The incarnation."""
        return self.state.number

    @property
    def superseded(self) -> bool:
        """Whether a later life was met."""
        return self._newer > self.number

    @property
    def newer(self) -> int:
        """The latest life that was met; 0: none but its own."""
        return self._newer

    @property
    def handed_over(self) -> bool:
        """Whether it was stopped for a standby to go on."""
        return self._handed_over is not None

    def heard(self, said: ShownIncarnation, url: str = "") -> None:
        """A gateway showed the incarnation it obeys, or a server its own with where it is reached.

        Raises ServerSuperseded when it is a later one.
        """
        if said.number > max(self.number, self._newer):
            if self._authority.proves(said.signed(), incarnation_message(said.number)):
                self._note(said.number, url)
            else:
                log.warning("a later incarnation is shown that is not signed")
        self.check()

    def check_work(self) -> None:
        """Raise ServerSuperseded or ServerHandedOver: nothing may be changed here any more."""
        self.check()
        if self._handed_over is not None:
            at = f"{from_moment(self._handed_over):%Y-%m-%d %H:%M:%S} UTC"
            raise ServerHandedOver(at=at)

    def hand_over(self, connection: Connection, at: str | None) -> None:
        """Note that it is handed over since then, or (None) no longer; `handed` once that is kept."""
        connection.execute(server_state.update().values(handed_over_at=at))

    def handed(self, at: str | None) -> None:
        """What `hand_over` noted is kept, here or by another server of this database."""
        changed, self._handed_over = (at is None) != (self._handed_over is None), at
        if changed:
            self.on_handed_over()

    def check(self) -> None:
        """Raise ServerSuperseded once a later life was met."""
        if self.superseded:
            where = f" at {self.newer_url}" if self.newer_url else ""
            raise ServerSuperseded(number=self.number, newer=self._newer, where=where)

    def look(self) -> None:
        """Whether another server of this database met a later life."""
        with self._database.read() as connection:
            found = read_incarnation(connection)
        self.handed(found.handed_over_at)
        self.newer_url = found.superseded_url or self.newer_url
        if (found.superseded_by or 0) > self._newer:
            self._stop(found.superseded_by or 0)

    def _note(self, number: int, url: str) -> None:
        def write(connection: Connection) -> None:
            before = read_incarnation(connection)
            if (before.superseded_by or 0) >= number:
                return
            values = {"superseded_by": number, "superseded_url": url or None}
            connection.execute(server_state.update().values(values))
            self.tell(connection, number, url)

        self._database.run(write)
        self.newer_url = url or self.newer_url
        self._stop(number)

    def _stop(self, number: int) -> None:
        with self._lock:
            if number <= self._newer:
                return
            first, self._newer = not self.superseded, number
        log.error("a later incarnation of this server was restored", extra={"fields": {"number": number}})
        if first:
            self.on_superseded()
