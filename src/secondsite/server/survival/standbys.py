"""The standbys of an active server, and the one it took over from: who they are, how far they follow.

They say hello by themselves (`transfer.standby`). Their addresses are what gateways are told to look at when
this server does not answer, so they stay known while a standby is away for a while.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.units import format_seconds
from secondsite.model.events import Severity
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_survival import server_standbys
from secondsite.server.database.values import from_moment, moment
from secondsite.server.events.service import Events
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.standby.errors import HelloRefused
from secondsite.server.standby.greeting import greet
from secondsite.server.survival.life import Life, ServerSuperseded
from secondsite.transfer.enrolment import CLOCK_SECONDS_MAX, parse_time, time_text
from secondsite.transfer.incarnation import parse_incarnation
from secondsite.transfer.standby import PURPOSE, Hello, HelloAnswer, ServerRole

# Copies go on for a standby that is away for a weekend: it then has little to catch up with.
FOLLOWS_FOR = dt.timedelta(days=3)
STANDBYS_MAX = 8
LATE = "standby.late"
CAUGHT_UP = "standby.caught-up"


class StandbyUnknown(SecondsiteError):
    """None by this id."""

    code = "standby.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no standby server {standby}."
    cause = "A mistyped id, or it was removed already."
    action = "See `secondsite server standbys`."


class TooManyStandbys(SecondsiteError):
    """More than gateways look at."""

    code = "standby.too-many"
    outcome = Outcome.REFUSED
    happened = "There are {count} standby servers already."
    cause = "Gateways look at each of them when the active one is away; more would slow that down."
    action = "Remove those that are gone: `secondsite server standby forget ID`."


class StandbyServer(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One as it is known. current_at: when what it holds was all there was; None: it holds nothing yet."""

    id: str
    name: str
    url: str
    seen_at: str
    copy: str
    current_at: str | None
    late_seconds: int
    late_since: str | None

    def lag_seconds(self, now: dt.datetime) -> float | None:
        """How old its state is; None: it holds none."""
        if self.current_at is None:
            return None
        return max(0.0, (now - from_moment(self.current_at)).total_seconds())


class Standbys:
    """Of one server's database. Thread-safe."""

    def __init__(
        self,
        database: Database,
        life: Life,
        master: MasterKey,
        clock: Clock,
        *,
        name: str,
        url: str,
        id_: str,
        authority_pem: Callable[[], str] = lambda: "",
    ) -> None:
        """name, url, id_: of this server. authority_pem: whom to trust at the others."""
        self._database = database
        self._life = life
        self._master = master
        self._key = master.derive(PURPOSE)
        self._authority_pem = authority_pem
        self._clock = clock
        self._name = name
        self.url = url
        self._id = id_
        self._addresses: list[str] = []
        self.events: Events | None = None
        # whether nothing changed since the copy of a name was made, and when a copy was made
        self.current: Callable[[str], bool] = lambda _name: False
        self.made_at: Callable[[str], str | None] = lambda _name: None

    @property
    def role(self) -> ServerRole:
        """What this server is."""
        if self._life.superseded:
            return ServerRole.SUPERSEDED
        return ServerRole.HANDED_OVER if self._life.handed_over else ServerRole.ACTIVE

    def hello(self, said: Hello) -> HelloAnswer:
        """Take another server's word. Raises HelloRefused, TooManyStandbys."""
        self._check(said)
        current = False
        if said.role is ServerRole.STANDBY:
            current = self.current(said.copy_name)
            self._note(said, current=current)
        elif said.role is ServerRole.ACTIVE and said.life:
            life = parse_incarnation(said.life)
            if life.number > self._life.number:
                with contextlib.suppress(ServerSuperseded):  # what it came to tell; the answer says so
                    self._life.heard(life, said.url)
        return HelloAnswer(
            id=self._id,
            name=self._name,
            url=self.url,
            role=self.role,
            server_time=time_text(self._clock.utc()),
            incarnation=self._life.number,
            current=current,
        )

    def known(self) -> list[StandbyServer]:
        """All that are known, by name."""
        query = sa.select(server_standbys).order_by(server_standbys.c.name, server_standbys.c.id)
        with self._database.read() as connection:
            return [_standby(row) for row in connection.execute(query)]

    def addresses(self) -> list[str]:
        """Where gateways may look for a later life of this server, itself first; as of the last look."""
        return self._addresses

    def forget(self, connection: Connection, identity: str) -> StandbyServer:
        """Remove one. Raises StandbyUnknown."""
        mine = server_standbys.c.id == identity
        row = connection.execute(sa.delete(server_standbys).where(mine).returning(server_standbys)).first()
        if row is None:
            raise StandbyUnknown(standby=identity)
        return _standby(row)

    def any_follows(self) -> bool:
        """Whether a standby was heard of lately: copies are made for it."""
        edge = moment(self._clock.utc() - FOLLOWS_FOR)
        heard = sa.select(server_standbys.c.id).where(
            server_standbys.c.seen_at > edge, server_standbys.c.late_seconds > 0
        )
        with self._database.read() as connection:
            return connection.execute(heard.limit(1)).first() is not None

    def look(self) -> None:
        """Tell once who has fallen behind, and who has caught up."""
        known = self.known()
        self._addresses = list(dict.fromkeys([self.url, *(one.url for one in known)]))
        if self._life.superseded:
            return
        now = self._clock.utc()
        for one in known:
            if not one.late_seconds:
                continue  # no standby: the server before
            lag = one.lag_seconds(now)
            silent = (now - from_moment(one.seen_at)).total_seconds()
            late = silent > one.late_seconds or lag is None or lag > one.late_seconds
            if late != (one.late_since is not None):
                self._tell(one, late=late, lag=lag, silent=silent)

    def _tell(self, one: StandbyServer, *, late: bool, lag: float | None, silent: float) -> None:
        def work(connection: Connection) -> None:
            mine = (server_standbys.c.id == one.id) & (
                server_standbys.c.late_since.is_(None) if late else server_standbys.c.late_since.is_not(None)
            )
            since = moment(self._clock.utc()) if late else None
            changed = connection.execute(sa.update(server_standbys).where(mine).values(late_since=since))
            if not changed.rowcount or self.events is None:
                return  # another server of this database told it
            if not late:
                text = f"the standby server {one.name} at {one.url} follows again"
                self.events.emit(connection, "", Severity.INFORMATION, CAUGHT_UP, text, ends=LATE)
                return
            said = f"its state is {format_seconds(lag)} old" if lag is not None else "it holds no state yet"
            text = (
                f"the standby server {one.name} at {one.url} is late: {said}, and it was heard of "
                f"{format_seconds(silent)} ago"
            )
            self.events.emit(connection, "", Severity.WARNING, LATE, text, lasts=True)

        self._database.run(work)

    def tell_former(self) -> None:
        """Show our life to every other server of ours: one that was active before may not know of it."""
        if self._life.superseded or self._life.handed_over:
            return
        for one in self.known():
            said = Hello(
                id=self._id,
                server=self._life.state.server,
                name=self._name,
                url=self.url,
                role=ServerRole.ACTIVE,
                sent_at=time_text(self._clock.utc()),
                life=self._life.shown,
            )
            with contextlib.suppress(SecondsiteError):  # it is gone, as it was thought: told later
                greet(one.url, said, self._master, self._authority_pem())

    def _check(self, said: Hello) -> None:
        if not said.proves(self._key):
            raise HelloRefused(why="its proof is none")
        if said.server != self._life.state.server:
            raise HelloRefused(why=f"it follows the server {said.server}")
        try:
            off = abs((parse_time(said.sent_at) - self._clock.utc()).total_seconds())
        except InvalidInput as error:
            raise HelloRefused(why=str(error)) from None
        if off > CLOCK_SECONDS_MAX:
            raise HelloRefused(why=f"its clock is off by {off:.0f} s")

    def _note(self, said: Hello, *, current: bool) -> None:
        now = self._database.now()

        def work(connection: Connection) -> None:
            # the same machine, known by its address until it spoke for itself
            same = (server_standbys.c.url == said.url) & (server_standbys.c.id != said.id)
            connection.execute(sa.delete(server_standbys).where(same))
            before = connection.execute(
                sa.select(server_standbys).where(server_standbys.c.id == said.id)
            ).first()
            if before is None:
                known = sa.select(sa.func.count()).select_from(server_standbys)
                count = connection.execute(known).scalar_one()
                if count >= STANDBYS_MAX:
                    raise TooManyStandbys(count=count)
            values: dict[str, object] = {
                "name": said.name,
                "url": said.url,
                "seen_at": now,
                "copy": said.copy_name,
                "late_seconds": max(1, said.late_seconds),
            }
            at = now if current else self.made_at(said.copy_name)
            if at is not None and (before is None or at > (before.current_at or "")):
                values["current_at"] = at
            make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            row = make(server_standbys).values(id=said.id, **values)
            kept = row.on_conflict_do_update(index_elements=[server_standbys.c.id], set_=values)
            connection.execute(kept)

        self._database.run(work)


def _standby(row: Row[tuple[object, ...]]) -> StandbyServer:
    return StandbyServer(
        id=row.id,
        name=row.name,
        url=row.url,
        seen_at=row.seen_at,
        copy=row.copy,
        current_at=row.current_at,
        late_seconds=row.late_seconds,
        late_since=row.late_since,
    )
