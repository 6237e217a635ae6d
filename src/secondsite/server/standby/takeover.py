"""A standby takes over: claims the next life of the server in the store of its site, then becomes it.

    intent    who claims, and what state it goes on with; from here on that state is not replaced
    claimed   the claim is in the store: no other standby of that store takes over, gateways obey it
    restored  the state is in the database, as that life, in one transaction
    role      this machine's server is the active one, also after a restart

Cut anywhere it is run again and goes on. Before the claim nothing has changed anywhere; after it nothing is
asked any more, because others act on it already.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import format_seconds
from secondsite.journal.store import ObjectExists, ObjectStore
from secondsite.model.events import Severity
from secondsite.server.config import ServerConfig
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.migrations import current, upgrade
from secondsite.server.database.tables_survival import server_standbys
from secondsite.server.database.values import from_moment, moment
from secondsite.server.events.service import Events
from secondsite.server.standby.errors import (
    ActiveLives,
    ClaimedElsewhere,
    ConfirmTakeover,
    NothingToTakeOver,
    NotStandby,
    WrongClaimOver,
)
from secondsite.server.standby.files import Role
from secondsite.server.standby.follower import Follower, Status
from secondsite.server.standby.greeting import greet
from secondsite.server.standby.replica import ReplicaBehind, require_no_replica
from secondsite.server.standby.summary import StandbyAuthority, Summary
from secondsite.server.survival.aftermath import NewLife, Origin, settle
from secondsite.server.survival.errors import DatabaseNotEmpty
from secondsite.server.survival.incarnation import next_number, read_incarnation
from secondsite.server.survival.restore import restore_from
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.incarnation import incarnation_message, shown
from secondsite.transfer.serverclaims import VERSION, ServerClaim, encoded, put_claim, read_claims
from secondsite.transfer.standby import ServerRole

SENTENCE = "the other server does not run any more"

# Those that were active last: each is looked for until it knows that it no longer is.
FORMERS_MAX = 4

INTENT = mark("takeover.intent")
CLAIMED = mark("takeover.claimed")
RESTORED = mark("takeover.restored")
ROLE_SET = mark("takeover.role-set")


class Intent(msgspec.Struct, frozen=True, rename="camel"):
    """A takeover that has begun. by: as in its claim."""

    by: str
    copy: str
    begun_at: str


@dataclass(frozen=True)
class Order:
    """What a person said. over_claim: a claim of another standby that is not to count; 0: none."""

    confirm: str = ""
    although_active_answers: bool = False
    over_claim: int = 0


@dataclass(frozen=True)
class Plan:
    """What a takeover would go on with, and what would be lost."""

    held: Summary
    status: Status
    lag_seconds: float
    active_answers: bool  # and is at work
    handed_over: bool

    @property
    def loses(self) -> str:
        """In a sentence, for people."""
        if self.handed_over:
            return "the active server had stopped in order: nothing is lost, its jobs go on"
        current = max(self.status.current_at, self.status.replica_at, self.held.made_at)
        at = f"{from_moment(current):%Y-%m-%d %H:%M:%S} UTC"
        lost = (
            f"what was done at the active server after {at} ({format_seconds(self.lag_seconds)} ago) is lost"
        )
        if not self.held.jobs_under_way:
            return f"{lost}; no job was under way then"
        return f"{lost}; {self.held.jobs_under_way} jobs were under way then and will wait for a person"


@dataclass(frozen=True)
class TakenOver:
    """What it came to."""

    claim: ServerClaim
    database: str
    jobs_for_a_person: int


def plan_takeover(follower: Follower) -> Plan:
    """Look once more, and say what would happen. Raises NotStandby, NothingToTakeOver; changes nothing."""
    _require_standby(follower)
    status = follower.look()
    held = follower.held()
    lag = follower.lag_seconds(status, held)
    if held is None or lag is None:
        raise NothingToTakeOver(why=status.problem or "none was seen yet")
    role = _role_of_active(follower, held)
    # a final copy alone does not tell: the hand-over may have been taken back since
    final = held.handed_over_at is not None and role is ServerRole.HANDED_OVER
    return Plan(held, status, lag, active_answers=role is ServerRole.ACTIVE, handed_over=final)


def take_over(follower: Follower, order: Order) -> TakenOver:
    """Take over, or go on with a takeover that was cut.

    Raises NotStandby, NothingToTakeOver, ActiveLives, ConfirmTakeover, ClaimedElsewhere, TakeoverBusy:
    nothing was changed; or what store and database raise: then run it again.
    """
    files = follower.files
    if files.role() is Role.ACTIVE:
        return _done_before(follower)
    if files.read("takeover.json", Intent) is None:
        plan = plan_takeover(follower)
        _check(plan, order)
    with files.locked():
        intent = files.read("takeover.json", Intent)
        if intent is None:
            _require_standby(follower)
            _check_database(follower, plan.held)
            intent = Intent(secrets.token_hex(16), plan.held.name, moment(follower.clock.utc()))
            files.write("takeover.json", intent)
        crash_point(INTENT)
        held = _state_of(follower, intent)
        store = follower.open_store()
        try:
            claim = _claim(follower, store, held, intent, order)
            claims = read_claims(store, held.server)
        except ClaimedElsewhere:
            files.remove("takeover.json")  # nothing of ours is in the store: it follows again
            raise
        finally:
            store.close()
        crash_point(CLAIMED)
        done = _become(follower, held, claim, claims)
        crash_point(RESTORED)
        files.set_role(Role.ACTIVE)
        crash_point(ROLE_SET)
        files.remove("takeover.json")
    return done


def _done_before(follower: Follower) -> TakenOver:
    """Of a takeover that was cut after its end: it is not begun again. Raises NotStandby for none."""
    intent, held = follower.files.read("takeover.json", Intent), follower.held()
    if intent is None or held is None:
        raise NotStandby(directory=follower.config.state_dir)
    store = follower.open_store()
    try:
        mine = [one for one in read_claims(store, held.server) if one.by == intent.by]
    finally:
        store.close()
    if not mine:
        raise NotStandby(directory=follower.config.state_dir)
    follower.files.remove("takeover.json")
    database = open_database(follower.config.database_url(), follower.clock)
    database.close()
    return TakenOver(mine[-1], database.where, 0)


def _check(plan: Plan, order: Order) -> None:
    if plan.active_answers and not order.although_active_answers:
        raise ActiveLives(active=plan.status.active)
    if plan.handed_over:
        return
    if order.confirm != SENTENCE:
        raise ConfirmTakeover(why=f"{plan.loses[0].upper()}{plan.loses[1:]}.", sentence=SENTENCE)


def _require_standby(follower: Follower) -> None:
    if follower.files.role() is not Role.STANDBY:
        raise NotStandby(directory=follower.config.state_dir)


def _role_of_active(follower: Follower, held: Summary) -> ServerRole | None:
    """What the active server says of itself now; None: it does not answer."""
    if follower.settings.active is None:
        return None
    try:
        authority = StandbyAuthority(held, follower.master)
        return greet(follower.settings.active, follower.hello(held), follower.master, authority.bundle).role
    except SecondsiteError:
        return None


def _check_database(follower: Follower, held: Summary) -> None:
    """Before anything is begun: it is empty, or the promoted replica that this standby followed."""
    seen = follower.status()
    database = open_database(follower.config.database_url(), follower.clock)
    try:
        if database.is_sqlite and not Path(database.engine.url.database or "").exists():
            return
        require_no_replica(database)
        if current(database) is None:
            return
        with database.read() as connection:
            found = read_incarnation(connection)
        followed = bool(seen.replica_at) and found.server == held.server
        if not followed or found.number < held.incarnation:
            raise DatabaseNotEmpty(where=database.where, table="server_state")
        if seen.replica_at < held.made_at:
            raise ReplicaBehind(where=database.where, at=seen.replica_at, made=held.made_at)
    finally:
        database.close()


def _state_of(follower: Follower, intent: Intent) -> Summary:
    held = follower.held()
    if held is None or held.name != intent.copy:
        raise NothingToTakeOver(why=f"the copy {intent.copy} that was begun with is not there")
    return held


def _claim(
    follower: Follower, store: ObjectStore, held: Summary, intent: Intent, order: Order
) -> ServerClaim:
    """The claim of this takeover: the one that is there, or a new one, durable when this returns."""
    claims = read_claims(store, held.server)
    newest = claims[-1] if claims else None
    if newest is not None and newest.by == intent.by:
        return newest
    if order.over_claim and (newest is None or order.over_claim != newest.number):
        raise WrongClaimOver(newest=newest.number if newest else "none", number=order.over_claim)
    if newest is not None and newest.incarnation > held.incarnation and order.over_claim != newest.number:
        raise _elsewhere(store, newest)
    made = _new_claim(follower, held, intent, newest)
    try:
        put_claim(store, made)
    except ObjectExists:
        newest = read_claims(store, held.server)[-1]
        if newest.by != intent.by:  # else the answer to our own was lost
            raise _elsewhere(store, newest) from None
        return newest
    return made


def _new_claim(follower: Follower, held: Summary, intent: Intent, newest: ServerClaim | None) -> ServerClaim:
    authority = StandbyAuthority(held, follower.master)
    before = max(held.incarnation, newest.incarnation if newest is not None else 0)
    number = next_number(before, follower.clock.utc())
    claim = ServerClaim(
        version=VERSION,
        server=held.server,
        number=newest.number + 1 if newest is not None else 1,
        incarnation=number,
        proof=shown(number, authority.sign(incarnation_message(number))).signature,
        url=follower.config.reached_at(),
        by=intent.by,
        at=time_text(follower.clock.utc()),
        copy=held.name,
    )
    return msgspec.structs.replace(claim, signature=encoded(authority.sign(claim.message())))


def _elsewhere(store: ObjectStore, claim: ServerClaim) -> ClaimedElsewhere:
    return ClaimedElsewhere(number=claim.number, store=store.url, url=claim.url, at=claim.at)


def _become(
    follower: Follower, held: Summary, claim: ServerClaim, claims: Sequence[ServerClaim]
) -> TakenOver:
    """The state into the database, as the claimed life; done already is fine."""
    formers = [follower.status().active, *(one.url for one in claims)]
    config = follower.config
    database = open_database(config.database_url(), follower.clock)
    try:
        if _is_that_life(database, claim):
            return TakenOver(claim, database.where, 0)
        life = NewLife(
            claim.incarnation,
            handed_over=held.handed_over_at is not None,
            also=partial(settle_in, database, config, claim, formers),
        )
        if current(database) is not None:
            mine = {one.incarnation for one in claims if one.by == claim.by}
            left = _settle_replica(database, follower, held, life, mine)
        else:
            done = restore_from(database, follower.master, follower.files.directory / held.file, life)
            left = done.aftermath.jobs_for_a_person
        return TakenOver(claim, database.where, left)
    finally:
        database.close()


def _is_that_life(database: Database, claim: ServerClaim) -> bool:
    if current(database) is None:
        return False
    with database.read() as connection:
        return read_incarnation(connection).number == claim.incarnation


def _settle_replica(
    database: Database, follower: Follower, held: Summary, life: NewLife, mine: Collection[int]
) -> int:
    """Go on with a promoted replica's rows, which are newer than the copy's; jobs left for a person.

    mine: earlier claims of this takeover: with one of them the copy was restored, and another standby came in
    between, whose claim is gone over now.
    """
    require_no_replica(database)
    upgrade(database)

    def work(connection: Connection) -> int:
        found = read_incarnation(connection)
        followed = bool(follower.status().replica_at) and found.number >= held.incarnation
        if found.server != held.server or not (followed or found.number in mine):
            raise DatabaseNotEmpty(where=database.where, table="server_state")
        origin = Origin(found.server, found.number, "", moment(follower.clock.utc()))
        chosen = NewLife(life.incarnation, handed_over=found.handed_over_at is not None, also=life.also)
        return settle(connection, database, follower.master, origin, chosen).jobs_for_a_person

    return database.run(work)


def settle_in(
    database: Database,
    config: ServerConfig,
    claim: ServerClaim,
    formers: Sequence[str],
    connection: Connection,
) -> None:
    """In the transaction of the takeover: who was active before, and that it happened."""
    mine = config.reached_at()
    urls = list(dict.fromkeys(url for url in formers if url and url != mine))
    known = server_standbys.c.url.in_([mine, *urls])
    connection.execute(sa.delete(server_standbys).where(known))
    for url in urls[-FORMERS_MAX:]:
        row = {
            "id": hashlib.sha256(url.encode()).hexdigest()[:32],  # until it says hello by its own
            "name": "a former active server",
            "url": url,
            "seen_at": database.now(),
            "copy": "",
            "late_seconds": 0,
        }
        connection.execute(server_standbys.insert().values(row))
    text = (
        f"the standby at {claim.url} took over as incarnation {claim.incarnation}, with the state of copy "
        f"{claim.copy}"
    )
    Events(database).emit(connection, "", Severity.CRITICAL, "server.took-over", text)
