"""A server restored from a backup: whatever was under way then is led to where the gateways are with it.

Every passing state of the table is entered, and its job is lost, as a restore leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa

from secondsite.model import confirmations, reversals
from secondsite.model.itempassing import PASSING, UNDER_WAY
from secondsite.model.items import TABLE, ItemFacts, ProtectedEvent, ProtectedState, allowed_operations
from secondsite.server.database.tables_failovers import FAILOVERS, HELD
from secondsite.server.database.tables_items import ITEMS, REPLICAS, REPORTS
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.changing import RESYNC
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import (
    CHANGE_POINT,
    COMMIT,
    ROLL_BACK,
    ChangePoint,
    Commit,
    RollBack,
)
from secondsite.server.operations.finalise import FINALISE, ItemInput
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER, PlannedFailover
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.reprotectparts import Reprotect
from secondsite.server.survival.aftermath import Origin, settle
from support.items import ItemPlace, a_machine, change

SHOP = a_machine()
S, E = ProtectedState, ProtectedEvent
TABLES = (ITEMS, REPORTS, REPLICAS, FAILOVERS, HELD)


@dataclass
class Site:
    """A place, and what a server of it can be taken back to."""

    place: ItemPlace
    master: MasterKey
    backups: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    @property
    def state(self) -> ProtectedState:
        found = self.place.tools.of_machine(self.place.vault, SHOP.id)
        return found.state if found is not None else S.UNPROTECTED

    @property
    def ends(self) -> tuple[str, str, str]:
        item = self.place.item(SHOP.id)
        return item.source_name, item.target_name, item.state.value

    def given(self) -> dict[str, Any]:
        item = self.place.item(SHOP.id)
        return {"vault": item.vault_id, "item": item.id, "machine": SHOP.id, "name": "shop"}

    def start(self, kind: str, made: type[Any], **more: Any) -> str:
        return self.place.worker.start(kind, made(**self.given(), **more))

    def done(self, job: str) -> None:
        found = self.place.run(job)
        assert (found.state, found.error) == (JobState.SUCCEEDED, None)

    def until(self, job: str, state: ProtectedState) -> None:
        self.place.run(job, until=lambda _job: self.state is state)

    def lost(self) -> None:
        """Every job is for a person, as after a restore."""
        now = self.place.database.now()
        origin = Origin(server="srv-1", incarnation=1, backup="a backup", made_at=now)
        with self.place.database.write() as connection:
            settle(connection, self.place.database, self.master, origin)
        self.place.calls.forget(self._calls())
        assert self.state is S.UNPROTECTED or not self.place.item(SHOP.id).live_job

    def _calls(self) -> list[str]:
        with self.place.database.read() as connection:
            return list(connection.execute(sa.text("SELECT id FROM calls")).scalars())

    def rounds(self, number: int = 6) -> None:
        """The gateways go on by themselves with what they have begun."""
        for _ in range(number):
            for gateway in self.place.gateways.values():
                one = gateway.failovers.standing(SHOP.id)
                if one is not None:
                    gateway.failovers.work(one)
            self.place.round(20)

    def back_up(self, name: str) -> None:
        with self.place.database.read() as connection:
            rows = {table.name: connection.execute(sa.select(table)).mappings().all() for table in TABLES}
        self.backups[name] = {table: [dict(row) for row in found] for table, found in rows.items()}

    def restore(self, name: str) -> None:
        with self.place.database.write() as connection:
            for table in TABLES:
                connection.execute(sa.delete(table))
                for row in self.backups[name][table.name]:
                    connection.execute(sa.insert(table).values(**row))
        self.lost()

    def settled(self) -> ProtectedState:
        """Where it comes to; never where only a lost job would lead on."""
        self.rounds()
        item = self.place.item(SHOP.id)
        assert item.state is S.UNPROTECTED or allowed_operations(item.state, item.facts), item.state
        assert item.enabled == (item.state is not S.UNPROTECTED)
        return item.state

    def failed_over(self) -> None:
        said = confirmations.taken_over("shop", "gateway-a")
        self.done(self.start(FAILOVER, Failover, confirm=said))

    def rolled_back(self) -> None:
        self.done(self.start(ROLL_BACK, RollBack, confirm=confirmations.lost("shop")))
        self.rounds()
        assert self.state is S.PROTECTED

    def committed(self, source: str = "gateway-a", target: str = "gateway-b") -> None:
        """With what fabrics and fencing do on their own."""
        gateways = self.place.gateways
        gateways[target].failovers.writer = source
        self.done(self.start(FAILOVER, Failover, confirm=confirmations.taken_over("shop", source)))
        self.done(self.start(COMMIT, Commit, confirm=confirmations.kept("shop")))
        gateways[target].replicas.pop(SHOP.id, None)
        gateways[source].returns.held[SHOP.id] = "Held"
        gateways[target].returns.held.pop(SHOP.id, None)
        self.place.site(target, SHOP)
        self.rounds(1)

    def reprotect(self) -> str:
        return self.start(REPROTECT, Reprotect, confirm=reversals.reversed_onto("shop"))


@pytest.fixture
def site(place: ItemPlace) -> Site:
    return Site(place, place.identity.authority.master)


# one story a passing state: into it, its job lost, and where it comes to


def enabling(site: Site) -> ProtectedState:
    site.until(site.place.protect(SHOP.id), S.ENABLING)
    site.lost()
    assert site.settled() is S.COPIED
    return site.state


def finalizing(site: Site) -> ProtectedState:
    with site.place.database.write() as connection:
        site.place.parts.items.move(connection, site.given()["item"], E.FINALIZING)
    site.lost()
    assert site.settled() is S.FINALIZING
    site.done(site.start(FINALISE, ItemInput))
    return site.settled()


def copying(site: Site) -> ProtectedState:
    site.done(site.start(DISABLE, Disable, with_replica=True))
    site.until(site.place.protect(SHOP.id), S.COPYING)
    site.lost()
    assert site.settled() is S.COPIED
    site.done(site.start(FINALISE, ItemInput))
    return site.settled()


def resynchronizing(site: Site) -> ProtectedState:
    job = change(site.place, RESYNC, site.place.item(SHOP.id))
    assert job.state is JobState.SUCCEEDED
    with site.place.database.write() as connection:
        site.place.parts.items.move(connection, site.given()["item"], E.RESYNC_BEGUN)
    site.lost()
    return site.settled()


def disabling(site: Site) -> ProtectedState:
    site.until(site.start(DISABLE, Disable), S.DISABLING)
    site.lost()
    assert site.settled() is S.UNPROTECTED
    assert "item.unprotected" in site.place.codes()
    site.done(site.place.protect(SHOP.id))
    return site.settled()


def planned(site: Site) -> ProtectedState:
    said = confirmations.moved("shop", "gateway-a", "gateway-b")
    site.until(site.start(PLANNED_FAILOVER, PlannedFailover, confirm=said), S.PLANNED)
    site.lost()
    assert site.settled() is S.PROTECTED
    assert "item.reconciled" in site.place.codes()
    # what stands still at the source is begun anew, or let run
    site.place.gateways["gateway-a"].stops.known.clear()
    return site.state


def planned_completing(site: Site) -> ProtectedState:
    said = confirmations.moved("shop", "gateway-a", "gateway-b")
    site.until(site.start(PLANNED_FAILOVER, PlannedFailover, confirm=said), S.PLANNED_COMPLETING)
    site.lost()
    assert site.settled() is S.PLANNED_COMPLETED
    site.rolled_back()
    return site.state


def unplanned(site: Site) -> ProtectedState:
    """Never asked for at the gateway; and asked for, with the answer lost."""
    with site.place.database.write() as connection:
        site.place.parts.items.lead(connection, site.given()["item"], [E.UNPLANNED], failover="ff" * 16)
    assert site.settled() is S.PROTECTED
    said = confirmations.taken_over("shop", "gateway-a")
    site.until(site.start(FAILOVER, Failover, confirm=said), S.UNPLANNED)
    site.place.round()
    site.lost()
    assert site.settled() in (S.UNPLANNED_COMPLETED, S.PROTECTED)
    if site.state is S.UNPLANNED_COMPLETED:
        site.rolled_back()
    return site.state


def unplanned_completing(site: Site) -> ProtectedState:
    said = confirmations.taken_over("shop", "gateway-a")
    site.until(site.start(FAILOVER, Failover, confirm=said), S.UNPLANNED_COMPLETING)
    site.lost()
    return site.settled()


def changing(site: Site) -> ProtectedState:
    said = confirmations.lost("shop")
    site.until(site.start(CHANGE_POINT, ChangePoint, point="2", confirm=said), S.CHANGING)
    site.lost()
    return site.settled()


def cancelling(site: Site) -> ProtectedState:
    site.until(site.start(ROLL_BACK, RollBack, confirm=confirmations.lost("shop")), S.CANCELLING)
    site.lost()
    return site.settled()


def committing(site: Site) -> ProtectedState:
    site.failed_over()
    site.until(site.start(COMMIT, Commit, confirm=confirmations.kept("shop")), S.COMMITTING)
    site.lost()
    assert site.settled() is S.COMMITTED
    site.place.gateways["gateway-b"].replicas.pop(SHOP.id, None)
    site.place.gateways["gateway-a"].returns.held[SHOP.id] = "Held"
    site.place.site("gateway-b", SHOP)
    return site.state


def reprotecting(site: Site) -> ProtectedState:
    """Before it was turned round; and after."""
    a = site.place.gateways["gateway-a"]
    job = site.reprotect()
    site.place.run(job, until=lambda _job: bool(a.returns.begun))
    assert site.state is S.REPROTECTING
    site.lost()
    assert site.settled() is S.COMMITTED
    assert site.ends[:2] == ("gateway-a", "gateway-b")
    job = site.reprotect()
    site.place.run(job, until=lambda _job: site.ends[0] == "gateway-b")
    assert site.state is S.REPROTECTING
    site.lost()
    return site.settled()


# in an order in which each finds the item as it needs it
STORIES: dict[ProtectedState, tuple[Callable[[Site], ProtectedState], ProtectedState]] = {
    S.ENABLING: (enabling, S.COPIED),
    S.FINALIZING: (finalizing, S.PROTECTED),
    S.COPYING: (copying, S.PROTECTED),
    S.RESYNCHRONIZING: (resynchronizing, S.PROTECTED),
    S.DISABLING: (disabling, S.PROTECTED),
    S.PLANNED: (planned, S.PROTECTED),
    S.PLANNED_COMPLETING: (planned_completing, S.PROTECTED),
    S.UNPLANNED: (unplanned, S.PROTECTED),
    S.UNPLANNED_COMPLETING: (unplanned_completing, S.UNPLANNED_COMPLETED),
    S.CHANGING: (changing, S.UNPLANNED_COMPLETED),
    S.CANCELLING: (cancelling, S.PROTECTED),
    S.COMMITTING: (committing, S.COMMITTED),
    S.REPROTECTING: (reprotecting, S.PROTECTED),
}


def test_every_state_that_something_leads_out_of_is_known_as_one() -> None:
    """By its name, and by what can be done in it: a new one has to be told how it ends without its job."""
    facts = ItemFacts(managed=True, points=3)
    for state in TABLE:
        named = state.value.endswith(UNDER_WAY)
        assert (state in PASSING) == named, state
        assert state in PASSING or allowed_operations(state, facts), f"nothing can be done in {state}"
    assert set(STORIES) == set(PASSING), "each has its story below"


def test_each_is_led_on_without_its_job(site: Site) -> None:
    for state, (story, end) in STORIES.items():
        assert story(site) is end, state
    assert site.ends == ("gateway-b", "gateway-a", "Protected")


def test_restored_to_any_moment_it_comes_to_where_its_machine_is(site: Site) -> None:
    """The old server went on after each backup: over, protected back, taken over at the first site."""
    place, (a, b) = site.place, site.place.gateways.values()
    site.done(place.protect(SHOP.id))
    site.rounds(1)
    site.back_up("protected")
    site.committed()
    site.back_up("committed")
    job = site.reprotect()
    place.run(job, until=lambda _job: bool(a.returns.begun))
    site.back_up("reversing")
    place.run(job, until=lambda _job: site.ends[0] == "gateway-b")
    site.back_up("turned")
    site.done(job)
    site.rounds(1)
    b.protections[SHOP.id].item = place.item(SHOP.id).id
    for name in ("protected", "committed", "reversing", "turned"):
        site.restore(name)
        site.rounds(12)
        assert site.ends == ("gateway-b", "gateway-a", "Protected"), name
        assert place.item(SHOP.id).home, name
    # and at its first site again, by a failover that only the last server knew
    site.back_up("away")
    a.failovers.epoch = b.failovers.epoch + 2
    site.committed("gateway-b", "gateway-a")
    for name in ("committed", "turned", "away"):
        site.restore(name)
        site.rounds(12)
        assert site.ends == ("gateway-b", "gateway-a", "CommitFailoverCompleted"), name


def test_a_turn_that_was_taken_back_later_is_taken_back_again(site: Site) -> None:
    """Its new source says that this was ended there; the lost job says that it waits in vain."""
    place, b = site.place, site.place.gateways["gateway-b"]
    site.done(place.protect(SHOP.id))
    site.committed()
    before = place.item(SHOP.id)
    job = site.reprotect()
    place.run(job, until=lambda _job: site.ends[0] == "gateway-b")
    for _ in range(3):
        place.round()  # it waits for the first point now
    site.back_up("turned")
    site.lost()
    b.protections.pop(SHOP.id)
    b.refuse = lambda wanted: "that revision was ended here" if wanted.enabled else ""
    site.restore("turned")
    assert site.settled() is S.COMMITTED
    after = place.item(SHOP.id)
    for name in ("source_name", "target_name", "policy_text", "mapping_text", "home", "failover_id"):
        assert getattr(after, name) == getattr(before, name), name
    with place.database.write() as connection:
        place.worker.jobs.retry(connection, job, "ann")
    failed = place.run(job)
    assert failed.error is not None
    assert failed.error.code == "item.turned-back"
    b.refuse = lambda _wanted: ""
    with place.database.write() as connection:
        place.worker.jobs.cancel(connection, job, "ann")
    assert place.run(job).state is JobState.CANCELLED
    site.done(site.reprotect())
    assert site.ends == ("gateway-b", "gateway-a", "Protected")
