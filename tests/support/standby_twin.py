"""Three servers of one, two gateways and the lines between them, for walks through takeovers and cut lines.

What decides is the product's: which server a gateway uses and obeys (`whichserver`, `incarnation`), claims
in a real store, the takeover with its files. A server is what `Life` does of it: it stops once it is shown a
later life. Deaths are at the marks of a takeover; the restore into the database is killed elsewhere.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.enrolerrors import ServerUnreachable
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership, load_membership
from secondsite.gateway.common.incarnation import Incarnations
from secondsite.gateway.uplink import whichserver
from secondsite.gateway.uplink.whichserver import WhichServer
from secondsite.journal.store_local import LocalStore
from secondsite.server.standby import takeover
from secondsite.server.standby.errors import ClaimedElsewhere, NotStandby, WrongClaimOver
from secondsite.server.standby.files import Role
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.takeover import SENTENCE, Order, TakenOver
from secondsite.transfer.incarnation import ShownIncarnation
from secondsite.transfer.serverclaims import ServerClaim, newest_claims
from support.control import Events
from support.lonely import config_of, new_standby, new_state, put_copy

CLOCK = SystemClock()
SERVERS = ("active", "b", "c")
GATEWAYS = ("at-a", "at-b")
MARKS = (takeover.INTENT, takeover.CLAIMED, takeover.RESTORED, takeover.ROLE_SET)


class Killed(BaseException):
    """A process was."""


def template(root: Path) -> None:
    """A state, a store with a copy of it, two standbys, two enrolments: made once, copied for each walk."""
    state = new_state(root)
    put_copy(root, state)
    state.close()
    for name in ("b", "c"):
        follower = Follower(new_standby(root, name), CLOCK)
        assert not follower.look().problem
    authority = follower.authority()
    assert authority is not None
    for name in GATEWAYS:
        files = EnrolmentFiles(root / name, name)
        files.directory.mkdir()
        (files.directory / "authority.crt").write_text(authority.bundle)
        url = config_of(root, "active").reached_at()
        files.save(
            Membership(
                server=url, name=name, friendly_name=name, gateway_id="0" * 32, vault="North", site="x"
            )
        )


@dataclass
class Life:
    """A server's process, and what of its life outlives it."""

    name: str
    url: str
    number: int = 0  # 0: a standby
    newer: int = 0
    up: bool = True

    @property
    def works(self) -> bool:
        return self.up and self.number > 0 and self.newer <= self.number

    def shown(self, number: int) -> None:
        self.newer = max(self.newer, number)


@dataclass
class Gateway:
    name: str
    which: WhichServer
    known: Incarnations
    obeyed: int = 0

    @property
    def server(self) -> str:
        return load_membership(self.which._directory).server


@dataclass
class Twin:
    root: Path
    seed: int
    patch: pytest.MonkeyPatch
    cut: set[tuple[str, str]] = field(default_factory=set)
    kill_at: str = ""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.store = LocalStore(self.root / "store")
        self.lives = {name: Life(name, config_of(self.root, name).reached_at()) for name in SERVERS}
        held = self.follower("b").held()
        assert held is not None
        self.first = held.incarnation
        self.lives["active"].number = held.incarnation
        self.gateways = {name: self._gateway(name) for name in GATEWAYS}
        self.patch.setattr(takeover, "crash_point", self._crash)
        self.patch.setattr(takeover, "_become", self._become)
        for name in ("CALM_SECONDS", "TROUBLE_SECONDS"):
            self.patch.setattr(whichserver, name, 0.0)

    def _gateway(self, name: str) -> Gateway:
        directory = self.root / name
        known = Incarnations(directory)
        known.met("its first server", ShownIncarnation(self.first))
        self.patch.setattr(whichserver, "incarnations", self._known)
        claims = partial(newest_claims, self.store) if name == "at-b" else whichserver.no_claims
        which = WhichServer(directory, clock=CLOCK, events=Events(), claims=claims)
        which.delivered([life.url for life in self.lives.values()])
        gateway = Gateway(name, which, known, self.first)
        which._ask = partial(self._ask, gateway)  # type: ignore[method-assign]
        return gateway

    def _known(self, where: Path) -> Incarnations:
        return self.gateways[where.name].known

    def follower(self, name: str) -> Follower:
        return Follower(config_of(self.root, name), CLOCK)

    # what happens

    def _ask(self, gateway: Gateway, url: str) -> bool:
        """A request, as `ServerClient` makes it: both show their life."""
        life = next(one for one in self.lives.values() if one.url == url)
        if not life.up or (gateway.name, life.name) in self.cut:
            raise ServerUnreachable(server=url, why="cut")
        life.shown(gateway.known.number)
        if not life.number:
            raise ServerUnreachable(server=url, why="it is a standby")
        gateway.known.met(url, ShownIncarnation(life.number))
        if life.newer > life.number:
            raise ServerUnreachable(server=url, why="it is superseded")
        return True

    def beat(self, name: str) -> None:
        """A gateway's heartbeat, and what its server then has it do."""
        gateway = self.gateways[name]
        try:
            gateway.which._ask(gateway.server)
        except SecondsiteError:
            gateway.which.look(trouble=True)
            return
        life = next(one for one in self.lives.values() if one.url == gateway.server)
        assert life.works
        assert life.number >= gateway.obeyed, f"{name} does what {life.name} wants, after a later life"
        gateway.obeyed = life.number
        gateway.which.look(trouble=False)

    def take_over(self, name: str, *, kill_at: str = "", over: bool = False) -> None:
        """A person types it; the process may die."""
        self.kill_at, newest = kill_at, self.claims()
        over_claim = newest[-1].number if over and newest else 0
        try:
            done = takeover.take_over(self.follower(name), Order(SENTENCE, over_claim=over_claim))
        except (ClaimedElsewhere, NotStandby, WrongClaimOver):
            return
        except Killed:
            if self.follower(name).files.role() is Role.ACTIVE:
                self._starts(name, self.claims()[-1])
            return
        finally:
            self.kill_at = ""
        self._starts(name, done.claim)

    def _starts(self, name: str, claim: ServerClaim) -> None:
        life = self.lives[name]
        life.number = life.number or claim.incarnation

    def _crash(self, mark: str) -> None:
        if mark == self.kill_at:
            raise Killed

    def _become(self, _follower: object, _held: object, claim: ServerClaim, _formers: object) -> TakenOver:
        return TakenOver(claim, "a database", 0)

    def tell(self, name: str) -> None:
        """A server that works tells the others."""
        life = self.lives[name]
        for other in self.lives.values():
            if life.works and other.up and other is not life and (name, other.name) not in self.cut:
                other.shown(life.number)

    def claims(self) -> list[ServerClaim]:
        return [*newest_claims(self.store)]

    # what must hold

    def check(self) -> None:
        numbers = [life.number for life in self.lives.values() if life.number]
        assert len(set(numbers)) == len(numbers), "two servers are one life"
        for gateway in self.gateways.values():
            assert gateway.known.number >= gateway.obeyed

    def settle(self) -> None:
        """All lines and servers are back, takeovers that had begun are done: one server is left at work."""
        self.cut.clear()
        for name, life in self.lives.items():
            life.up = True
            if name != "active" and self.follower(name).files.begun():
                self.take_over(name)
        for _ in range(4):
            for name in GATEWAYS:
                self.beat(name)
            for name in SERVERS:
                self.tell(name)
        working = [life for life in self.lives.values() if life.works]
        assert len(working) == 1, [life.name for life in working]
        for gateway in self.gateways.values():
            assert gateway.server == working[0].url, f"{gateway.name} stays at {gateway.server}"
            assert gateway.known.number == working[0].number


def step(twin: Twin) -> str:
    """Something happens; what."""
    chance = twin.chance
    ends = [
        *((g, s) for g in GATEWAYS for s in SERVERS),
        ("active", "b"),
        ("b", "active"),
        ("b", "c"),
        ("c", "b"),
    ]
    actions: dict[str, Callable[[], object]] = {}
    for name in GATEWAYS:
        actions[f"beat {name}"] = partial(twin.beat, name)
    for name in SERVERS:
        actions[f"tell {name}"] = partial(twin.tell, name)
        actions[f"switch {name}"] = partial(_switch, twin.lives[name])
    for name in ("b", "c"):
        mark = chance.choice(["", *MARKS])
        actions[f"take over {name} {mark}"] = partial(twin.take_over, name, kill_at=mark)
        actions[f"take over all the same {name}"] = partial(twin.take_over, name, over=True)
    line = chance.choice(ends)
    actions[f"line {line}"] = partial(twin.cut.symmetric_difference_update, {line})
    chosen = chance.choice(sorted(actions))
    actions[chosen]()
    return chosen


def _switch(life: Life) -> None:
    life.up = not life.up


def copied(template_root: Path, to: Path) -> Path:
    """The template for one walk."""
    shutil.copytree(template_root, to)
    return to
