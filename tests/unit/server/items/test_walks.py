"""A machine's whole way walked at random: taken over, kept, protected back, failed back, ended, and again.

The sites of `support.item_world` do what gateways and hosts do by themselves. Each step may meet a gateway
that is silent, a server that dies, a job that is called off, and a person at a gateway. Walks begin at places
of a way that was gone once, each from a seed. `SECONDSITE_MATRIX=full` walks more and longer; planted bugs
show that they find what is wrong.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis.stateful import RuleBasedStateMachine

from secondsite.model import confirmations, reversals
from secondsite.model.itempassing import PASSING, LedBy
from secondsite.model.items import ItemFacts, ItemOperation, ProtectedState
from secondsite.server.items.records import job_input
from secondsite.server.jobs.definitions import DONE
from secondsite.server.jobs.states import JobState
from secondsite.server.operations.changing import CHANGE, PAUSE, RESUME, RESYNC
from secondsite.server.operations.failback import FAILBACK, Failback
from secondsite.server.operations.held import DISCARD, RELEASE, Decide
from secondsite.server.operations.protect import PROTECT, Protect
from secondsite.server.operations.reprotect import REPROTECT
from secondsite.server.operations.reprotectparts import Reprotect
from support.databases import Databases
from support.item_asks import accepted, asked_for, shown
from support.item_world import SHOP, Kept, World, begin, fresh_world, keep
from unit.server.items.test_model import Story

FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
WALKS, STEPS = (40, 30) if FULL else (2, 9)
PLANTED_WALKS = 15
# Each step syncs a database, which is not what is walked here.
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
S, Op = ProtectedState, ItemOperation
A, B = "gateway-a", "gateway-b"
# So long until what a server remembers otherwise is led to where its gateways say that it is (`reconcile`).
HEARD_SECONDS, HEARD_ROUNDS = 6.0, 20
# What waits for a person alone, also once all were heard.
WAITS = frozenset(state for state, led in PASSING.items() if led is LedBy.PERSON)
# Where a run has to have been: else it proves nothing of what follows there.
REACHED = frozenset({"protected again", "protected back", "failed back", "decided", "for good"})
BEGINNINGS = (
    "fresh",
    "protected",
    "failed over",
    "committed",
    "reprotected",
    "failed back",
    "ended",
    "kept and ended",
)


class Circle(Story):
    """One machine between two sites, all the way round, from where a world was kept."""

    asked: ClassVar[set[tuple[ProtectedState, ItemFacts]]] = set()

    def __init__(self, kept: Kept, seen: set[str]) -> None:
        RuleBasedStateMachine.__init__(self)
        self.directory = Path(tempfile.mkdtemp(prefix="ss-items-", dir=IN_MEMORY))
        self.world: World = begin(kept, self.directory)
        self.place, self.database = self.world, self.world.database
        self.revision, self.identity, self.first = 0, "", None
        self.cancelled_after: int | None = None
        self.dies_after: int | None = None
        self.refused = False
        self.places = seen
        self.trail: list[str] = []

    def go(self, kind: str, given: msgspec.Struct) -> bool:
        """As before; the server may die meanwhile, and another one goes on with it."""
        after, self.dies_after = self.dies_after, None
        if after is None:
            return super().go(kind, given)
        job = self.world.worker.start(kind, given)
        for _ in range(after):
            self.world.round()
        self.world.restart()
        seconds = 1.0 if all(gateway.here for gateway in self.world.gateways.values()) else 5.0
        done = self.world.run(job, until=self._ended_or_copies, seconds=seconds)
        if done.live and done.state is not JobState.SUSPENDED:
            self.all_come()
            done = self.world.run(job)
        return self.ended(done)

    def all_come(self) -> None:
        for gateway in self.world.gateways.values():
            gateway.here = True

    def state(self) -> ProtectedState | None:
        item = self.item()
        return None if item is None else item.state

    # what may happen next

    def step(self, chance: random.Random) -> None:
        """One of the things that may happen now, and what has to hold after it."""
        ways = [way for way in self.ways(chance) if way[0]]
        _, name, do = chance.choices(ways, [weight for weight, _, _ in ways])[0]
        if chance.random() < 0.2:
            self.cancelled_after = chance.randrange(16)
            name += f", called off after {self.cancelled_after}"
        elif chance.random() < 0.15:
            self.dies_after = chance.randrange(16)
            name += f", the server dies after {self.dies_after}"
        self.trail.append(name)
        do()
        self.cancelled_after = self.dies_after = None
        self.it_holds()
        self.what_is_shown_is_accepted()

    def ways(self, chance: random.Random) -> list[tuple[float, str, Callable[[], object]]]:
        """How likely, what, and how."""

        def maybe(operation: ItemOperation, weight: float) -> float:
            return weight if self.allowed(operation) else 0.0

        one, other = (chance.random() < 0.5 for _ in range(2))
        name, here = chance.choice([A, B]), chance.random() < 0.6
        held = max(maybe(Op.HELD_RELEASE, 1.5), maybe(Op.HELD_DISCARD, 1.5))
        what, remove = chance.choice([RELEASE, DISCARD]), chance.choice(["nothing", "machine"])
        recovery = chance.choice(["nothing", "nothing", "machine", "machine-and-disks"])
        kind = chance.choice([PAUSE, RESUME, RESYNC, CHANGE])
        there = chance.choice(["commit", "roll-back"])
        item = self.item() is not None
        return [
            (maybe(Op.PROTECT, 6), f"protect {one}", lambda: self.protect(forth=one)),
            (maybe(Op.UNPLANNED_FAILOVER, 2), "fail over", lambda: self.fail_over(kept=False)),
            (maybe(Op.PLANNED_FAILOVER, 2), "move", self.move),
            (maybe(Op.CHANGE_POINT, 1), "change point", lambda: self.change_point(point="1")),
            (maybe(Op.CANCEL_FAILOVER, 1.5), "roll back", self.roll_back),
            (maybe(Op.COMMIT, 4), "commit", lambda: self.commit(back=False)),
            (maybe(Op.REPROTECT, 5), "protect back", self.protect_back),
            (
                maybe(Op.FAILBACK, 5),
                f"fail back {one} {recovery}",
                lambda: self.fail_back(one, recovery, other),
            ),
            (maybe(Op.COMPLETE_MIGRATION, 0.7), "for good", self.complete_migration),
            (maybe(Op.DISABLE, 1.5), f"end {one}", lambda: self.end(with_replica=one)),
            (maybe(Op.FORGET, 0.5), "forget", self.give_up),
            (held, f"{what} {remove}", lambda: self.decide(what, remove)),
            (1.0 * item, kind, lambda: self.ask(kind=kind)),
            (0.5 * item, f"{there} there", lambda: self.somebody_at_the_target(what=there)),
            (0.5 * item, f"for good there {one}", lambda: self.completed_there(retired=one)),
            (2.0, f"{name} {here}", lambda: self.a_gateway_goes_or_comes(name=name, here=here)),
            (0.5, "time", lambda: self.time_passes(seconds=90)),
            (0.7, "all are heard", self.everybody_is_heard),
        ]

    # what people ask for

    def protect(self, forth: bool = True) -> None:
        """From its first gateway, or from the other one."""
        source, target = (A, B) if forth else (B, A)
        world, again = self.world, self.item() is not None
        if not world.points.get(target):
            world.may_go.add(target)  # what it copied goes with it, where it is taken back
        lost = world.held(source) in ("Held", "Reversed")
        given = Protect(vault=world.vault, machine=SHOP.id, name="shop", source=source, target=target)
        if self.go(PROTECT, given):
            assert world.authority == source, "a copy is protected that is not the machine"
            assert not lost
            world.may_go.discard(target)
            self.places |= {"protected again"} if again else set()

    def end(self, with_replica: bool) -> None:
        if with_replica:  # also once a gateway that is away returns
            self.world.may_go.add(self.ends()[1].who.name)
        super().end(with_replica)

    def set_out(self) -> str:
        """A target where a copy stands that nothing was reversed onto refuses, until somebody makes room."""
        source, target = self.ends()
        name, hold = target.who.name, target.holds.known.get(SHOP.id)
        in_the_way = self.world.here[name] and self.world.held(name) not in ("", "Reversed")
        target.failovers.claims_badly = int(in_the_way and not self.refused)
        if in_the_way and self.refused and hold is not None:
            hold |= {"state": "Discarded", "remove": "machine"}
        self.refused = in_the_way
        return source.who.name

    def protect_back(self) -> None:
        mapping = None if self.world.here[self.ends()[0].who.name] else '{"defaultPool":"default"}'
        said = reversals.reversed_onto("shop")
        if self.ask_of_failover(REPROTECT, Reprotect, confirm=said, mapping=mapping):
            self.places.add("protected back")

    def fail_back(self, kept: bool, recovery: str, back: bool) -> None:
        source, target = self.ends()
        self.set_out()
        more: dict[str, Any] = {"commit": kept, "recovery": recovery if kept else "nothing"}
        more |= {"source": source.who.name, "target": target.who.name, "old_machine": "remove"}
        if self.ask_of_failover(FAILBACK, Failback, reprotect=back and kept, **more):
            self.places.add("failed back")
            assert self.world.authority == target.who.name
            assert self.state() is (
                S.PROTECTED if back and kept else S.COMMITTED if kept else S.PLANNED_COMPLETED
            )

    def decide(self, kind: str, remove: str) -> None:
        """About what is held at its source."""
        item = self.item()
        assert item is not None
        assert item.held is not None
        if not self.allowed(Op.HELD_RELEASE if kind == RELEASE else Op.HELD_DISCARD):
            return
        said = confirmations.released("shop", item.held.claimant)
        more = {} if kind == RELEASE else {"remove": remove}
        if kind == DISCARD:
            said = confirmations.discarded("shop", remove)
        if self.go(kind, Decide(**job_input(item, "ann"), epoch=item.held.epoch, confirm=said, **more)):
            assert self.world.held(item.source_name) == ("Released" if kind == RELEASE else "Discarded")
            self.places.add("decided")

    def completed_there(self, retired: bool) -> None:
        """For good, by somebody at the target; what is left of its replica there is retired."""
        target = self.ends()[1]
        one = self.world.newest(target.who.name)
        if one is None or one["state"] != "CommitFailoverCompleted" or one.get("kept") == "Retired":
            return
        if one.get("kept") is None:
            one["final"] = True
            said = {"confirm": reversals.migrated("shop")}
            target.failovers.ask(one["id"], "complete-migration", said)
        if retired:
            target.failovers.ask(one["id"], "retire", {"confirm": reversals.retired("shop")})

    # what has to hold

    def what_is_shown_is_accepted(self) -> None:
        """The API begins what it shows as possible, and refuses all else with what is: each once a run."""
        item = self.item()
        if item is None:
            return
        self.places |= {"for good"} if item.state is S.MIGRATED else set()
        here = any(self.world.tools.connected(name) for name in (A, B))
        now = (item.state, replace(item.facts, reachable=here))
        if now not in self.asked:
            told = shown(self.world, item) & asked_for()
            assert accepted(self.world, item) == told, f"{now}"
            self.asked.add(now)

    def everybody_is_heard(self) -> None:
        """Once all gateways tell how they are, the item is where they say, and nothing is half done."""
        self.all_come()
        for _ in range(HEARD_ROUNDS):
            self.world.round(HEARD_SECONDS)
        why = self.world.why_untrue()
        assert not why, why
        item = self.item()
        if item is not None:
            assert item.state not in frozenset(PASSING) - WAITS, f"it stays {item.state.value}"


@pytest.fixture(scope="module")
def places(databases: Databases) -> Iterator[dict[str, Kept]]:
    """One world, led all the way round once, and kept at each place."""
    found: dict[str, Kept] = {}
    with tempfile.TemporaryDirectory(prefix="ss-items-", dir=IN_MEMORY) as name:
        first = Path(name) / "first"
        first.mkdir()
        with databases.ready("sqlite") as url:
            world = fresh_world(url.removeprefix("sqlite:///"), first)
        found["fresh"] = keep(world, first)
        world.database.close()
        story = Circle(found["fresh"], set())
        lead(
            story,
            found,
            {
                "protected": (story.protect, S.PROTECTED),
                "failed over": (lambda: story.fail_over(kept=False), S.UNPLANNED_COMPLETED),
                "committed": (lambda: story.commit(back=False), S.COMMITTED),
                "reprotected": (story.protect_back, S.PROTECTED),
                "failed back": (lambda: story.fail_back(True, "nothing", False), S.COMMITTED),
                "ended": (lambda: story.end(with_replica=False), S.UNPROTECTED),
            },
        )
        story = Circle(found["committed"], set())
        ended = {"kept and ended": (lambda: story.end(with_replica=False), S.UNPROTECTED)}
        lead(story, found, ended)
        yield found
        for one in found.values():
            shutil.rmtree(one.directory)


def lead(
    story: Circle, found: dict[str, Kept], ways: Mapping[str, tuple[Callable[[], object], ProtectedState]]
) -> None:
    try:
        for place, (way, state) in ways.items():
            way()
            assert story.state() is state, f"it does not come to be {place}"
            found[place] = keep(story.world, story.directory)
    finally:
        story.teardown()


def walk(kept: dict[str, Kept], so_far: str, seed: int, *, steps: int = STEPS) -> set[str]:
    """One, the same each time; where it has been. Raises AssertionError with how it came there."""
    chance = random.Random(f"{so_far} {seed}")
    story = Circle(kept[so_far], set())
    try:
        for _ in range(steps):
            story.step(chance)
        story.everybody_is_heard()
    except Exception as error:
        raise AssertionError(f"{so_far}, seed {seed}, after {story.trail}: {error}") from error
    finally:
        story.teardown()
    return story.places


@pytest.mark.timeout(240 if not FULL else 36_000)
def test_no_walk_breaks_a_rule(places: dict[str, Kept]) -> None:
    seen: set[str] = set()
    for so_far in BEGINNINGS:
        for seed in range(WALKS):
            seen |= walk(places, so_far, seed)
    assert seen >= REACHED, f"no walk came to be {sorted(REACHED - seen)}"


# Where the walks that find it begin, with which seed, and what of the product is broken.
PLANTED: dict[str, tuple[str, int, dict[str, object]]] = {
    "an old failover is followed": ("ended", 1, {"items.service.known_failover": lambda *_: ""}),
    "a copy that lost the machine is waited for": (
        "kept and ended",
        0,
        {"operations.protect.held_at": lambda *_: None, "operations.protect.NOT_COPIED": "-"},
    ),
    "an end that is called off stays half done": (
        "committed",
        17,
        {"operations.ending.follow": lambda *_: ()},
    ),
    "what was there is taken back": ("protected", 2, {"operations.protect._had_replica": lambda _run: False}),
    "what is possible is not looked at": (
        "failed over",
        1,
        {"api.itemforget.reachable_of": lambda *_: ()},
    ),
    "for good is not heard of": ("committed", 14, {"items.failovers.is_final": lambda *_: False}),
    "what follows the move is left out": (
        "reprotected",
        2,
        {"operations.failback._wished": lambda *_: DONE},
    ),
}


def finds(places: dict[str, Kept], so_far: str, seed: int) -> bool:
    try:
        walk(places, so_far, seed)
    except AssertionError as error:
        print(error)
        return True
    return False


@pytest.mark.parametrize("what", PLANTED)
def test_planted(places: dict[str, Kept], what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    so_far, first, bugs = PLANTED[what]
    monkeypatch.setattr(Circle, "asked", set())
    for name, bug in bugs.items():
        monkeypatch.setattr(f"secondsite.server.{name}", bug)
    seeds = range(first, first + PLANTED_WALKS)
    assert any(finds(places, so_far, seed) for seed in seeds), "no walk finds it"
