"""Two made-up sites between which one machine goes to and fro, while a server works with them.

What gateways, stores and hosts do by themselves is done after each round: who claimed the machine last is its
authority, the other site learns of it as soon as both are there, and holds its copy; points go with a commit;
what was begun goes on whether the server looks or not. A world can be kept, and begun from again.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from secondsite.base.clock import FakeClock
from secondsite.model.failover import MAY_RUN, FailoverState, HeldState, KeptState
from secondsite.server.database.engine import open_database
from secondsite.server.items.failovers import held_machines
from support.identity import URL, open_identity
from support.items import FakeGateway, ItemPlace, a_machine

SHOP = a_machine()
LEASE_SECONDS = 31.0  # until another server takes the jobs of one that died
_CLAIMED = MAY_RUN - {FailoverState.ROLLING_BACK}
_HELD, _REVERSED = HeldState.HELD.value, HeldState.REVERSED.value
_OFF = (_HELD, _REVERSED, HeldState.DISCARDED.value)
_MAY_RETURN = (_HELD, HeldState.RELEASED.value, _REVERSED)
_COPIES = (_HELD, HeldState.RELEASED.value, HeldState.DISCARDED.value)


@dataclass
class World(ItemPlace):
    """`gateway-a` has the machine at first. may_go: gateways whose points a person gave up."""

    authority: str = "gateway-a"
    epoch: int = 1
    here: dict[str, bool] = field(default_factory=lambda: {"gateway-a": True, "gateway-b": False})
    seen: dict[str, str] = field(default_factory=dict)  # failover -> the state it was seen in
    may_go: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)  # who made a claim for what it protects
    points: dict[str, int] = field(default_factory=dict)
    together: int = 0  # rounds since both gateways are there

    def other(self, name: str) -> FakeGateway:
        [found] = [gateway for known, gateway in self.gateways.items() if known != name]
        return found

    def newest(self, name: str) -> dict[str, Any] | None:
        known = list(self.gateways[name].failovers.known.values())
        return known[-1] if known else None

    def held(self, name: str) -> str:
        """What became of its copy at a site, as its gateway says."""
        found = self.gateways[name].holds.known.get(SHOP.id)
        return "" if found is None else str(found["state"])

    def runs(self, name: str) -> bool:
        """Whether a copy runs at a site that was not let run by a person."""
        if self.held(name) in (*_OFF, HeldState.RELEASED.value):
            return False
        one = self.newest(name)
        if one is not None and FailoverState(one["state"]) in MAY_RUN:
            return one.get("bootedAt") is not None
        return self.here[name] and not self.gateways[name].stops.stopped(SHOP.id)

    def enrolled(self) -> None:
        """Each gateway begins to work, with what it is told of the world."""
        for name, gateway in self.gateways.items():
            gateway.__post_init__()  # what its parts ask it is asked of this one
            gateway.stops.taken = partial(self._is_taken, name)

    def _is_taken(self, name: str, _machine: str) -> bool:
        return self.authority != name

    def round(self, seconds: float = 1.0) -> None:
        for name, gateway in self.gateways.items():
            gateway.failovers.epoch = max(gateway.failovers.epoch, self.epoch)
            gateway.failovers.writer = self.other(name).who.name
        super().round(seconds)
        self.points_stay()
        self.together = self.together + 1 if all(g.here for g in self.gateways.values()) else 0
        for name, gateway in self.gateways.items():
            if gateway.here:
                self._final(name)
                self._work(gateway)
                self._claims(name)
        for name, gateway in self.gateways.items():
            if gateway.here:
                self._reversals(name, gateway)
                self._learn(name, gateway)
        assert self.together < 2 or sum(self.runs(name) for name in self.gateways) <= 1, "it runs twice"

    def points_stay(self) -> None:
        """What a store kept is there until a person says otherwise, or its failover is committed."""
        for name, gateway in self.gateways.items():
            found = gateway.replicas.get(SHOP.id)
            points = found.points if found is not None else 0
            if self.points.get(name, 0) and not points:
                assert name in self.may_go, f"the points at {name} are gone"
                self.may_go.discard(name)
            self.points[name] = points

    def restart(self) -> None:
        """The server dies, and another one takes over what it was at."""
        self.__post_init__()
        self.clock.advance(LEASE_SECONDS)
        self.worker.claims.take_over()

    def _work(self, gateway: FakeGateway) -> None:
        """What goes on whether anybody looks or not."""
        for one in list(gateway.failovers.known.values())[-1:]:
            gateway.failovers.work(one)
        if SHOP.id in gateway.returns.known:
            gateway.returns.look(SHOP.id)

    def _final(self, name: str) -> None:
        """A claim says that the machine stays there for good, whatever becomes of its replica."""
        one = self.newest(name)
        if one is not None and one.get("kept") == KeptState.MIGRATED.value:
            one["final"] = True

    def _claims(self, name: str) -> None:
        """Whose the machine is, by the newest claim in a store."""
        one = self.newest(name)
        if one is None or self.seen.get(one["id"]) == one["state"]:
            return
        state, before = FailoverState(one["state"]), self.seen.get(one["id"])
        self.seen[one["id"]] = one["state"]
        gateway, hold = self.gateways[name], self.gateways[name].holds.known.get(SHOP.id)
        if state in _CLAIMED and one.get("epoch", 0) > self.epoch:
            self.authority, self.epoch = name, one["epoch"]
            if hold is not None:
                hold["state"] = HeldState.REPLACED.value
            gateway.returns.held.pop(SHOP.id, None)
            gateway.returns.gone = False
            self.here[name] = False  # a former copy makes room for what is recovered
            self.site(name)
        if state is FailoverState.COMMITTED and before != one["state"]:
            gateway.replicas.pop(SHOP.id, None)  # its points go with a commit
            self.points[name] = 0
            self.here[name] = True
            self.site(name, SHOP)
        if state is FailoverState.ROLLED_BACK and self.authority == name:
            self.authority = one["writer"]
            self.epoch = gateway.failovers.epoch = max(self.epoch, gateway.failovers.epoch) + 1

    def _reversals(self, name: str, gateway: FakeGateway) -> None:
        """A copy's disks are given to the other direction, or taken back, or the copy is removed."""
        hold, told = gateway.holds.known.get(SHOP.id), gateway.returns.held.get(SHOP.id)
        if hold is None:
            return
        if told == _REVERSED and hold["state"] in _COPIES:
            hold["state"] = _REVERSED
            self.epoch += 1  # the claim of who writes there from now on
        elif told == _HELD and hold["state"] == _REVERSED:
            hold["state"] = _HELD
        elif hold["state"] == HeldState.DISCARDED.value and hold["remove"] != "nothing" and self.here[name]:
            gateway.returns.held.pop(SHOP.id, None)
            gateway.protections.pop(SHOP.id, None)
            self.here[name], gateway.returns.gone = False, True
            self.site(name)

    def _writes(self, name: str, gateway: FakeGateway, working: bool) -> None:
        """The machine's authority claims the journal at its target, above all that was before."""
        if not working or self.authority != name:
            self.writers.discard(name)
        elif name not in self.writers:
            self.writers.add(name)
            self.epoch += 1
            gateway.epoch = self.epoch

    def _learn(self, name: str, gateway: FakeGateway) -> None:
        """A site that is left behind hears of it from its target, once that is there as well."""
        other = self.other(name)
        working = gateway.protections.get(SHOP.id)
        hold = gateway.holds.known.get(SHOP.id)
        self._writes(name, gateway, working is not None)
        lost = self.authority != name and other.here
        if lost and (working is not None or hold is not None) and self.here[name]:
            state = hold["state"] if hold is not None else ""
            if state not in (*_COPIES, _REVERSED):
                gateway.holds.hold(SHOP.id, other.who.name, self.epoch)
                gateway.returns.held[SHOP.id] = _HELD
        if hold is not None and self.authority == name and hold["state"] in _MAY_RETURN:
            hold["state"] = HeldState.RETURNED.value
            gateway.returns.held.pop(SHOP.id, None)
        hold, one = gateway.holds.known.get(SHOP.id), self.newest(other.who.name)
        if hold is not None and one is not None and other.here:
            hold["final"] = hold.get("final", False) or bool(one.get("final"))
        text = f"shop is held: {self.authority} is its writer since epoch {self.epoch}; a person decides"
        gateway.lost = {SHOP.id: text} if lost or self.held(name) in (_HELD, _REVERSED) else {}

    # what a server says, against what is so

    def why_untrue(self) -> str:
        """What the server says of the machine that its gateways do not; all were heard, no job works."""
        item = self.tools.of_machine(self.vault, SHOP.id)
        with self.database.read() as connection:
            shown = {name for name, _ in held_machines(connection, self.vault, everything=False)}
        hidden = {name for name in self.gateways if self.held(name) == _HELD} - shown
        if hidden:
            return f"nobody is told that a copy is held at {hidden}"
        working = {name for name, one in self.gateways.items() if SHOP.id in one.protections}
        if item is None:
            return f"{working} protect what is no item" if working else ""
        word, left = item.state.value, item.left_behind
        if word == "Unprotected":
            return f"it is Unprotected and protected at {working}" if working and not left else ""
        if word in ("Protected", "Paused", "Resynchronizing"):
            if item.source_name not in working:
                if item.health_code == "item.not-at-gateway":
                    return ""  # which is told: e.g. its copy there was removed before it was given back
                return f"it is {word}, and {item.source_name} does not protect it"
            if self.authority != item.source_name:
                return f"it is {word} at {item.source_name}, and belongs to {self.authority}"
        if word in ("CommitFailoverCompleted", "MigrationCompleted") and self.authority != item.target_name:
            return f"it is {word} at {item.target_name}, and belongs to {self.authority}"
        one = self.newest(item.target_name)
        if word == "CommitFailoverCompleted" and one is not None and one.get("final"):
            return f"it is {word}, and moved to {item.target_name} for good"
        if working - {item.source_name}:
            return f"it is {word} from {item.source_name}, and protected at {working}"
        return ""


@dataclass(frozen=True)
class Kept:
    """A world as it was at some moment, to begin from."""

    directory: Path
    vault: str
    seconds: float
    sites: dict[str, Any]
    gateways: dict[str, FakeGateway]


_NOWHERE = object()  # where gateways are that are kept
_SITES = ("authority", "epoch", "here", "seen", "may_go", "points", "writers")


def fresh_world(template: str, directory: Path) -> World:
    """Both gateways enrolled; the machine is at the first. template: a database with its tables."""
    shutil.copyfile(template, directory / "x.db")
    database = open_database(f"sqlite:///{directory / 'x.db'}", FakeClock())
    identity = open_identity(database, directory, database.clock)
    vault = identity.vaults.create("North").id
    key, _ = identity.keys.create("North", url=URL, by="maria")
    made = World(database, identity, vault)
    for name in ("gateway-a", "gateway-b"):
        made.enrol(name, key)
        made.gateways[name].turn()
    made.site("gateway-a", SHOP)
    made.site("gateway-b")
    made.enrolled()
    return made


def keep(world: World, directory: Path) -> Kept:
    """As it is now. directory: where its own files are; what is kept lies beside it."""
    where = Path(tempfile.mkdtemp(prefix="ss-world-", dir=directory.parent))
    shutil.copytree(directory, where, dirs_exist_ok=True)
    sites = {name: copy.deepcopy(getattr(world, name)) for name in _SITES}
    gateways = {name: copy.deepcopy(one, {id(world): _NOWHERE}) for name, one in world.gateways.items()}
    return Kept(where, world.vault, world.clock.monotonic(), sites, gateways)


def begin(kept: Kept, directory: Path) -> World:
    """Another world, as the kept one was."""
    shutil.copytree(kept.directory, directory, dirs_exist_ok=True)
    clock = FakeClock()
    clock.advance(kept.seconds)
    database = open_database(f"sqlite:///{directory / 'x.db'}", clock)
    made = World(database, open_identity(database, directory, clock), kept.vault)
    for name, value in kept.sites.items():
        setattr(made, name, copy.deepcopy(value))
    for name, gateway in kept.gateways.items():
        made.gateways[name] = copy.deepcopy(gateway, {id(_NOWHERE): made})
    made.enrolled()
    made.worker.claims.take_over()
    return made
