"""Table and service together, moved at random: hypothesis looks for an order of things that breaks a rule."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from secondsite.base.clock import FakeClock
from secondsite.model import confirmations, reversals
from secondsite.model.itemfailovers import STANDING, TAKEN_OVER
from secondsite.model.items import (
    COUNTED,
    TABLE,
    ItemOperation,
    ItemTransition,
    OperationNotAllowed,
    ProtectedEvent,
    ProtectedState,
    allowed_operations,
    check_operation,
)
from secondsite.server.database.engine import open_database
from secondsite.server.items.errors import ItemExists
from secondsite.server.items.records import Item, job_input
from secondsite.server.items.service import GatewayRef, NewItem
from secondsite.server.jobs import records
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.changing import CHANGE, PAUSE, RESUME, RESYNC, Change
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.failback import FAILBACK
from secondsite.server.operations.failover import FAILOVER, Failover
from secondsite.server.operations.failoverends import (
    CHANGE_POINT,
    COMMIT,
    ROLL_BACK,
    ChangePoint,
    Commit,
    RollBack,
)
from secondsite.server.operations.forget import FORGET, Forget
from secondsite.server.operations.migration import COMPLETE, CompleteMigration
from secondsite.server.operations.plannedfailover import PLANNED_FAILOVER, PlannedFailover
from secondsite.server.operations.protect import PROTECT, Protect
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.reprotectparts import Reprotect
from support.databases import Databases
from support.items import FakeGateway, ItemPlace, a_machine, item_place

SHOP = a_machine()
E = ProtectedEvent
# The gateway's own story, and what people may ask: whatever comes, in whatever order.
FAILING_OVER = {
    FAILOVER: ItemOperation.UNPLANNED_FAILOVER,
    PLANNED_FAILOVER: ItemOperation.PLANNED_FAILOVER,
    CHANGE_POINT: ItemOperation.CHANGE_POINT,
    ROLL_BACK: ItemOperation.CANCEL_FAILOVER,
    COMMIT: ItemOperation.COMMIT,
    COMPLETE: ItemOperation.COMPLETE_MIGRATION,
    FORGET: ItemOperation.FORGET,
    REPROTECT: ItemOperation.REPROTECT,
    FAILBACK: ItemOperation.FAILBACK,
}
KINDS = {PAUSE: ItemOperation.PAUSE, RESUME: ItemOperation.RESUME, RESYNC: ItemOperation.RESYNC}


S = ProtectedState
# Where a run has to have been: else it proves nothing of what follows there.
REACHED = frozenset(
    {
        *(state.value for state in (S.UNPROTECTED, S.PROTECTED, S.PAUSED, S.PLANNED_COMPLETED)),
        *(state.value for state in (S.UNPLANNED_COMPLETED, S.COMMITTED)),
        *(state.value for state in (JobState.SUCCEEDED, JobState.FAILED)),
        "protected back",
    }
)


class Story(RuleBasedStateMachine):
    """One machine: asked of through jobs, its gateways away and back, reports at any time."""

    template: str = ""
    seen: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ss-items-", dir="/var/tmp"))
        shutil.copyfile(self.template, self.directory / "x.db")
        self.database = open_database(f"sqlite:///{self.directory / 'x.db'}", FakeClock())
        self.place: ItemPlace = item_place(self.database, self.directory)
        self.revision = 0
        self.identity = ""
        self.first: object = None
        self.cancelled_after: int | None = None  # rounds of the next job

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.directory)

    def item(self) -> Item | None:
        return self.place.tools.of_machine(self.place.vault, SHOP.id)

    def allowed(self, operation: ItemOperation) -> bool:
        """As the route asks it."""
        item = self.item()
        if item is None:
            return operation is ItemOperation.PROTECT
        with contextlib.suppress(OperationNotAllowed):
            check_operation(item.name, item.state, item.facts, operation)
            return True
        return False

    def go(self, kind: str, given: msgspec.Struct) -> bool:
        """A job to its end, which it has whoever is away; whether it came to a good one."""
        job, after = self.place.worker.start(kind, given), self.cancelled_after
        self.cancelled_after = None
        # in longer steps where somebody is waited for, who may never come
        seconds = 1.0 if all(gateway.here for gateway in self.place.gateways.values()) else 5.0
        for _ in range(after or 0):
            self.place.round(seconds)
        if after is not None and self.place.worker.get(job).live:
            with self.place.database.write() as connection:
                self.place.worker.jobs.cancel(connection, job, "ann")
        done = self.place.run(job, until=self._ended_or_copies, seconds=seconds)
        if done.live and done.state is not JobState.SUSPENDED:
            # a copy goes on once both are there again, and is waited for until then
            for gateway in self.place.gateways.values():
                gateway.here = True
            done = self.place.run(job)
        return self.ended(done)

    def ended(self, done: records.Job) -> bool:
        """Whether it came to a good end; shown where the walk goes wrong later."""
        self.seen.add(done.state.value)
        code = done.error.code if done.error is not None else ""
        assert code != "job.step-broken", done
        print(f"{done.title}: {done.state.value} {code}".rstrip())
        return done.state is JobState.SUCCEEDED

    def _ended_or_copies(self, job: records.Job) -> bool:
        copies = any(word in (job.note or "") for word in ("comparison", "first copy"))
        away = not all(gateway.here for gateway in self.place.gateways.values())
        return not job.live or job.state is JobState.SUSPENDED or (copies and away)

    @initialize()
    def it_is_protected(self) -> None:
        self.protect()

    @rule(rounds=st.integers(0, 6))
    def the_next_job_is_cancelled(self, rounds: int) -> None:
        self.cancelled_after = rounds

    @rule(seconds=st.sampled_from([1, 20, 90]))
    def time_passes(self, seconds: int) -> None:
        self.place.round(seconds)

    @rule(name=st.sampled_from(["gateway-a", "gateway-b"]), here=st.sampled_from([True, True, False]))
    def a_gateway_goes_or_comes(self, name: str, here: bool) -> None:
        self.place.gateways[name].here = here

    @precondition(lambda self: self.allowed(ItemOperation.PROTECT))
    @rule()
    def protect(self) -> None:
        given = Protect(
            vault=self.place.vault, machine=SHOP.id, name="shop", source="gateway-a", target="gateway-b"
        )
        self.go(PROTECT, given)

    @precondition(lambda self: self.item() is not None)
    @rule(kind=st.sampled_from([*KINDS, CHANGE]))
    def ask(self, kind: str) -> None:
        item = self.item()
        assert item is not None
        if self.allowed(KINDS.get(kind, ItemOperation.CHANGE_DISKS)):
            more: dict[str, Any] = {}
            if kind == CHANGE:
                more = {"left_out": () if item.left_out else ("vdb",), "what": "disks"}
            self.go(kind, Change(**job_input(item), **more))

    @precondition(lambda self: self.item() is not None)
    @rule(with_replica=st.booleans())
    def end(self, with_replica: bool) -> None:
        item = self.item()
        assert item is not None
        if self.allowed(ItemOperation.DISABLE):
            self.go(DISABLE, Disable(**job_input(item), with_replica=with_replica, force=True))

    def ends(self) -> tuple[FakeGateway, FakeGateway]:
        """Source and target, as they are now."""
        item = self.item()
        assert item is not None
        return self.place.gateways[item.source_name], self.place.gateways[item.target_name]

    def ask_of_failover(self, kind: str, made: type[Any], **more: Any) -> bool:
        """As the routes do: refused here, it is not asked for; what the job makes of it is its own."""
        item = self.item()
        if item is None or not self.allowed(FAILING_OVER[kind]):
            return False
        return self.go(kind, made(**job_input(item), **more))

    def set_out(self) -> str:
        """What the made-up target does not know of itself: who wrote it, and which claims there were."""
        source, target = self.ends()
        target.failovers.writer = source.who.name
        target.failovers.epoch = max(target.failovers.epoch, source.failovers.epoch + 1)
        return source.who.name

    @precondition(lambda self: self.allowed(ItemOperation.UNPLANNED_FAILOVER))
    @rule(kept=st.booleans())
    def fail_over(self, kept: bool) -> None:
        """kept: committed at once, so that walks come to what follows it."""
        said = confirmations.taken_over("shop", self.set_out())
        if self.ask_of_failover(FAILOVER, Failover, confirm=said) and kept:
            self.commit(back=True)

    @precondition(lambda self: self.allowed(ItemOperation.PLANNED_FAILOVER))
    @rule()
    def move(self) -> None:
        said = confirmations.moved("shop", self.set_out(), self.ends()[1].who.name)
        self.ask_of_failover(PLANNED_FAILOVER, PlannedFailover, confirm=said)

    @precondition(lambda self: self.allowed(ItemOperation.CHANGE_POINT))
    @rule(point=st.sampled_from(["1", "2"]))
    def change_point(self, point: str) -> None:
        self.ask_of_failover(CHANGE_POINT, ChangePoint, point=point, confirm=confirmations.lost("shop"))

    @precondition(lambda self: self.allowed(ItemOperation.CANCEL_FAILOVER))
    @rule()
    def roll_back(self) -> None:
        self.ask_of_failover(ROLL_BACK, RollBack, confirm=confirmations.lost("shop"))

    @precondition(lambda self: self.allowed(ItemOperation.COMMIT))
    @rule(back=st.booleans())
    def commit(self, back: bool) -> None:
        """back: and protected in the other direction."""
        if self.ask_of_failover(COMMIT, Commit, confirm=confirmations.kept("shop")):
            self.it_holds()
            if back:
                self.protect_back()

    @precondition(lambda self: self.allowed(ItemOperation.REPROTECT))
    @rule()
    def protect_back(self) -> None:
        """What fabric and fencing do meanwhile is done by hand: its points go, the source is held."""
        source, target = self.ends()
        target.replicas.pop(SHOP.id, None)
        target.returns.held.pop(SHOP.id, None)
        source.returns.held[SHOP.id] = "Held"
        self.place.site(target.who.name, SHOP)
        if self.ask_of_failover(REPROTECT, Reprotect, confirm=reversals.reversed_onto("shop")):
            self.seen.add("protected back")

    @precondition(lambda self: self.allowed(ItemOperation.COMPLETE_MIGRATION))
    @rule()
    def complete_migration(self) -> None:
        self.ask_of_failover(COMPLETE, CompleteMigration, confirm=reversals.migrated("shop"))

    @precondition(lambda self: self.allowed(ItemOperation.FORGET))
    @rule()
    def give_up(self) -> None:
        self.ask_of_failover(FORGET, Forget, confirm=confirmations.forgotten("shop"))

    @rule(what=st.sampled_from(["commit", "roll-back", "complete-migration"]))
    def somebody_at_the_target(self, what: str) -> None:
        """Without the server, which hears of it."""
        if self.item() is None:
            return
        there = self.ends()[1].failovers
        said = {
            "commit": confirmations.kept("shop"),
            "roll-back": confirmations.lost("shop"),
            "complete-migration": reversals.migrated("shop"),
        }
        state = "Completed" if what != "complete-migration" else "CommitFailoverCompleted"
        for one in list(there.known.values())[-1:]:
            if one["state"] == state:
                there.ask(one["id"], what, {"confirm": said[what]})
                there.work(one)

    @precondition(lambda self: self.item() is not None)
    @rule(event=st.sampled_from(list(ProtectedEvent)))
    def what_is_not_in_the_table_changes_nothing(self, event: ProtectedEvent) -> None:
        item = self.item()
        assert item is not None
        if event not in TABLE[item.state]:
            with pytest.raises(ItemTransition), self.database.write() as connection:
                self.place.parts.items.change(connection, item.id, event, {"paused": 1}, force=True)
            assert self.item() == item

    @rule()
    def a_second_protection_is_refused(self) -> None:
        item = self.item()
        if item is None or item.state is ProtectedState.UNPROTECTED:
            return
        a, b = (self.place.gateways[name].who for name in ("gateway-a", "gateway-b"))
        new = NewItem(self.place.vault, SHOP.id, "shop", GatewayRef(a.id, a.name), GatewayRef(b.id, b.name))
        with pytest.raises(ItemExists), self.database.write() as connection:
            self.place.parts.items.enable(connection, new, by="")

    @invariant()
    def it_holds(self) -> None:
        item = self.item()
        if item is None:
            return
        assert item.revision >= self.revision, "a revision went back"
        assert self.identity in ("", item.id), "the item is another one"
        assert self.first in (None, item.first_protected_at), "the first day changed"
        self.seen.add(item.state.value)
        self.revision, self.identity, self.first = item.revision, item.id, item.first_protected_at
        assert item.source_revision <= item.revision
        assert item.enabled or item.state in (
            ProtectedState.UNPROTECTED,
            ProtectedState.DISABLING,
            ProtectedState.DISABLING_FAILED,
        )
        if item.state in COUNTED:
            assert item.finalized_at is not None
        # given back to its source it is paused again, as before
        if item.state not in STANDING | TAKEN_OVER:
            assert item.paused == (item.state is ProtectedState.PAUSED)
        assert not item.live_job, "every job has come to its end"
        assert allowed_operations(item.state, item.facts), "there is always a way on"
        counts = self.place.parts.items.counts([self.place.vault])
        assert counts.protected == (item.state in COUNTED)
        taken = self.ends()[0].protections.get(SHOP.id)
        if taken is not None:
            assert taken.wanted.revision <= item.revision


def test_no_order_of_things_breaks_a_rule(databases: Databases) -> None:
    with databases.ready("sqlite") as url:
        seen: set[str] = set()
        story = type("TheStory", (Story,), {"template": url.removeprefix("sqlite:///"), "seen": seen})
        run_state_machine_as_test(
            story,
            settings=settings(
                max_examples=8,
                stateful_step_count=14,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),  # a story of fourteen steps is short enough to read
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert seen >= REACHED, f"no walk came to {sorted(REACHED - seen)}, only to {sorted(seen)}"
