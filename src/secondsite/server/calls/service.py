"""Calls in the database: any server may make one, take it for a gateway, and read its answer.

Each call has an id chosen by who makes it, so that making it again is nothing new, also in a later epoch. A
call waits until the gateway asks, is given again until it is answered, and is given up at its end. A newer
epoch of a job takes back what an older one still asks for.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.calls.bells import Bells
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_calls import CALLS
from secondsite.server.database.tables_identity import gateways
from secondsite.server.database.values import fresh_id, from_moment, moment
from secondsite.transfer.calls import Answer, Ask, Call, call_id

ANSWERING = mark("calls.answering")
ANSWERED = mark("calls.answered")

# An answer is read by its job within seconds; what nobody read by then is of a job that ended.
ANSWERED_KEPT = dt.timedelta(hours=1)
# How often another server's answer is looked for; our own rings at once.
LOOK_SECONDS = 0.5


class CallUnknown(SecondsiteError):
    """An answer to nothing."""

    code = "calls.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no call {id} to gateway {gateway} that waits for an answer."
    cause = "It was given up or taken back meanwhile, or it was made to another gateway."
    action = "Nothing: the job that made it has gone on without."


class CallDiffers(SecondsiteError):
    """Two calls of one id."""

    code = "calls.differs"
    outcome = Outcome.REFUSED
    happened = "The call {id} was made before, as another one."
    cause = "A defect of the server: an id stands for one call only."
    action = "Report it with the server's log; nothing was asked of the gateway."


class GatewaySilent(SecondsiteError):
    """No answer in time."""

    code = "calls.gateway-silent"
    outcome = Outcome.UNAVAILABLE
    happened = "Gateway {gateway} did not answer within {seconds:.0f} s."
    cause = "It is stopped, it has lost its way to the server, or it is busy."
    action = "Look at `secondsite gateway list`: when was its last contact? Replication goes on meanwhile."


class Calls:
    """The calls of one database. Thread-safe."""

    def __init__(self, database: Database, bells: Bells) -> None:
        self._database = database
        self.bells = bells
        # told of each answer to a call of a job, in the answer's transaction: the job need not look for it
        self.on_answer: Callable[[Connection, str], None] = lambda _connection, _job: None
        # once that stands: this server's worker need not come by to see that the job is due
        self.nudge: Callable[[], None] = lambda: None

    def put(self, gateway: str, call: Call, *, seconds_max: float) -> None:
        """Have `gateway` do it; again with the same id is nothing new. Raises CallDiffers."""
        call_id(call.id)
        clock = self._database.clock
        now = clock.utc()
        row = {
            "id": call.id,
            "gateway": gateway,
            "job": call.job,
            "epoch": call.epoch,
            "method": call.method,
            "path": call.path,
            "body": call.body,
        }
        times = {"made_at": moment(now), "expires_at": moment(now + dt.timedelta(seconds=seconds_max))}

        def write(connection: Connection) -> None:
            found = connection.execute(sa.select(CALLS).where(CALLS.c.id == call.id)).one_or_none()
            if found is not None:
                if any(getattr(found, name) != value for name, value in row.items() if name != "epoch"):
                    raise CallDiffers(id=call.id)
                if call.epoch > found.epoch:  # the same step, gone on with by another worker
                    this = sa.update(CALLS).where(CALLS.c.id == call.id)
                    connection.execute(this.values(epoch=call.epoch))
                return
            if call.job:
                _take_back(connection, call.job, before=call.epoch)
            connection.execute(sa.insert(CALLS).values(**row, **times))

        self._database.run(write)
        self.bells.ring(gateway)

    def ask(self, gateway: str, call: Call, *, seconds_max: float) -> Answer | None:
        """`put`, and its answer where it is there: for a step of a job, which asks until it has one.

        Raises GatewaySilent at the call's end, and CallDiffers; asked after that it is a new call.
        """
        self.put(gateway, call, seconds_max=seconds_max)
        try:
            return self.result(call.id)
        except GatewaySilent:
            self.forget([call.id])
            raise

    def ready(self, gateway: str, ask: Ask, *, asked_at: str | None = None) -> list[Call]:
        """What waits for the gateway and is not under way there, oldest first, as far as it has room.

        asked_at: the moment the gateway said what is under way; a call made since is another one.
        """
        under_way: sa.ColumnElement[bool] = CALLS.c.id.in_(ask.under_way)
        if asked_at is not None:
            under_way = sa.and_(under_way, CALLS.c.made_at <= asked_at)
        waiting = (
            sa.select(CALLS)
            .where(CALLS.c.gateway == gateway, CALLS.c.answered_at.is_(None))
            .where(CALLS.c.expires_at > self._database.now(), sa.not_(under_way))
            .order_by(CALLS.c.made_at, CALLS.c.id)
            .limit(ask.room)
        )
        with self._database.read() as connection:
            return [_call(row) for row in connection.execute(waiting)]

    def answer(self, gateway: str, answer: Answer) -> None:
        """Take a gateway's answer; the first counts. Raises CallUnknown."""
        mine = sa.and_(CALLS.c.id == answer.id, CALLS.c.gateway == gateway)

        def write(connection: Connection) -> None:
            query = sa.select(CALLS.c.answered_at, CALLS.c.job).where(mine)
            found = connection.execute(query).one_or_none()
            if found is None:
                raise CallUnknown(id=answer.id, gateway=gateway)
            if found.answered_at is None:
                values = {"answered_at": self._database.now(), "status": answer.status, "answer": answer.body}
                connection.execute(sa.update(CALLS).where(mine).values(**values))
                if found.job:
                    self.on_answer(connection, found.job)

        crash_point(ANSWERING, answer.id)
        self._database.run(write)
        crash_point(ANSWERED, answer.id)
        self.bells.ring(answer.id)
        self.nudge()

    def result(self, identity: str) -> Answer | None:
        """The answer to a call, None while it is waited for. Raises CallUnknown, GatewaySilent."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(CALLS).where(CALLS.c.id == identity)).one_or_none()
        if row is None:
            raise CallUnknown(id=identity, gateway="any")
        if row.answered_at is not None:
            return Answer(id=row.id, status=row.status, body=row.answer)
        if row.expires_at <= self._database.now():
            waited = from_moment(row.expires_at) - from_moment(row.made_at)
            raise GatewaySilent(gateway=self._name(row.gateway), seconds=waited.total_seconds())
        return None

    def ask_now(self, gateway: str, path: str, *, seconds_max: float, body: str = "") -> Answer:
        """Read something of a gateway and wait for it, with a body by a POST. Raises GatewaySilent."""
        identity, method = f"read:{fresh_id(self._database.clock)}", "POST" if body else "GET"
        call = Call.model_validate({"id": identity, "method": method, "path": path, "body": body})
        clock = self._database.clock
        deadline = clock.monotonic() + seconds_max
        with self.bells.listening(call.id) as heard:
            self.put(gateway, call, seconds_max=seconds_max)
            try:
                while clock.monotonic() < deadline:
                    found = self.result(call.id)
                    if found is not None:
                        return found
                    heard.clear()
                    self._wait(heard, min(LOOK_SECONDS, deadline - clock.monotonic()))
            finally:
                self.forget([call.id])
        raise GatewaySilent(gateway=self._name(gateway), seconds=seconds_max)

    def answered(self, prefix: str) -> list[str]:
        """The ids, beginning so, of calls that have their answer and were not forgotten."""
        mine = (CALLS.c.id.startswith(prefix, autoescape=True), CALLS.c.answered_at.is_not(None))
        with self._database.read() as connection:
            return list(connection.execute(sa.select(CALLS.c.id).where(*mine).order_by(CALLS.c.id)).scalars())

    def forget(self, ids: Sequence[str]) -> None:
        """Drop calls, answered or not; absent is fine."""
        with self._database.write() as connection:
            connection.execute(sa.delete(CALLS).where(CALLS.c.id.in_(ids)))

    def tidy(self) -> int:
        """Drop what nobody will read any more; returns how many."""
        edge = moment(self._database.clock.utc() - ANSWERED_KEPT)
        old = sa.delete(CALLS).where(CALLS.c.expires_at < edge)
        with self._database.write() as connection:
            return connection.execute(old).rowcount

    def _name(self, gateway: str) -> str:
        """As a person knows it; one that was removed has only its id."""
        query = sa.select(gateways.c.name).where(gateways.c.id == gateway)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one_or_none() or gateway

    def _wait(self, heard: threading.Event, seconds: float) -> None:
        # `heard` may have rung between the look and the clear: the next look is at most LOOK_SECONDS away
        self._database.clock.wait(heard, max(0.0, seconds))


def _take_back(connection: Connection, job: str, *, before: int) -> None:
    older = sa.and_(CALLS.c.job == job, CALLS.c.epoch < before, CALLS.c.answered_at.is_(None))
    connection.execute(sa.delete(CALLS).where(older))


def _call(row: Row[tuple[object, ...]]) -> Call:
    return Call(id=row.id, method=row.method, path=row.path, body=row.body, job=row.job, epoch=row.epoch)
