"""A server's protected items with two made-up gateways: they take what is wanted, copy, report, answer calls.

Everything moves when the test says so: in `ItemPlace.round`, a second, each gateway that is there takes
what is wanted, works a little, reports, and the worker gives every job that is due its turn.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from secondsite import __version__
from secondsite.base.clock import Clock, FakeClock
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Disk, Host, Machine, Network, Pool, PowerState
from secondsite.server.calls.bells import Bells
from secondsite.server.calls.service import Calls, CallUnknown
from secondsite.server.database.engine import Database
from secondsite.server.events.service import Events
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.identity.heartbeats import Contact
from secondsite.server.identity.service import Identity
from secondsite.server.inventory.service import Inventories, Told
from secondsite.server.items.records import Item
from secondsite.server.items.together import ItemParts, open_items
from secondsite.server.jobs import records
from secondsite.server.jobs.states import ENDED, JobState
from secondsite.server.mappings.service import Mappings
from secondsite.server.operations.changing import Change
from secondsite.server.operations.ending import DISABLE, Disable
from secondsite.server.operations.kinds import item_operations
from secondsite.server.operations.points import operations
from secondsite.server.operations.protect import PROTECT, Protect
from secondsite.server.operations.tools import Tools
from secondsite.transfer.calls import Answer, Ask, Call
from secondsite.transfer.desired import WantedProtection, WantedReplica
from secondsite.transfer.enrolment import time_text
from secondsite.transfer.registration import RegistrationKey
from secondsite.transfer.reports import Copying, ProtectionReport, ReplicaReport, Report
from support.identity import URL, NewGateway, Served, der, open_identity, served
from support.item_failovers import FakeFailovers
from support.item_holds import FakeHolds
from support.item_returns import FakeReturns
from support.item_stops import FakeStops
from support.item_tests import FakeTests
from support.job_hand import HandWorker

ROUNDS_MAX = 400
COPY_ROUNDS = 3
ENDING_ROUNDS = 2


@dataclass
class Working:
    """One protection at a gateway."""

    wanted: WantedProtection
    item: str
    copied: int = 0  # rounds
    comparing: int = 0
    resynced: int = 0
    points: int = 0
    ending: int = 0  # rounds left


@dataclass
class FakeGateway:
    """The in-memory twin of a gateway that is enrolled with a server."""

    who: GatewayIdentity
    place: Parts
    here: bool = True
    proved: bool = True
    store: bool = True
    refuse: Callable[[WantedProtection], str] = lambda _wanted: ""
    generation: int = 0
    adopting: set[str] = field(default_factory=set)
    protections: dict[str, Working] = field(default_factory=dict)
    replicas: dict[str, ReplicaReport] = field(default_factory=dict)
    deleting: dict[str, int] = field(default_factory=dict)  # machine -> rounds left
    refused: dict[str, str] = field(default_factory=dict)
    left_behind: dict[str, str] = field(default_factory=dict)  # item -> a sentence
    tell: tuple[str, ...] = ()
    answered: list[Call] = field(default_factory=list)
    kept: dict[str, Answer] = field(default_factory=dict)  # of changes, as a real one keeps the last ones
    tests: FakeTests = field(default_factory=FakeTests)
    failovers: FakeFailovers = field(default_factory=FakeFailovers)
    stops: FakeStops = field(default_factory=FakeStops)
    holds: FakeHolds = field(default_factory=FakeHolds)
    returns: FakeReturns = field(default_factory=FakeReturns)
    in_use: dict[str, str] = field(default_factory=dict)  # machine -> why its replica is not deleted yet
    epoch: int = 0  # that it writes in, where that is told
    lost: dict[str, str] = field(default_factory=dict)  # machine -> why nothing is copied of it
    site: Told = field(default_factory=Told)  # as it tells it now
    reached: bool = True  # by the others
    writes: int = 0

    def __post_init__(self) -> None:
        ended: dict[str, Working] = {}

        def end(machine: str) -> None:
            if machine in self.protections:
                ended[machine] = self.protections.pop(machine)

        def put_back(machine: str) -> None:
            if machine in ended:
                self.protections.setdefault(machine, ended.pop(machine))

        def points(machine: str) -> int | None:
            found = self.replicas.get(machine)
            return found.points if found is not None and found.points else None

        self.returns.ended, self.returns.restored, self.returns.points = end, put_back, points

    def turn(self) -> None:
        if not self.here:
            return
        clock = self.place.clock
        contact = Contact(clock.utc(), "192.0.2.1", __version__, 0.0, 0, 0, 0, "Normal")
        self.place.identity.heartbeats.heard(self.who.id, contact)
        self.answer()
        self.fetch()
        self.work()
        self.report()

    def fetch(self) -> None:
        found = self.place.parts.wanted.of(self.who.id, self.who.vault_id, after=self.generation)
        if found is None:
            return
        self.generation, self.refused = found.generation, {}
        for wanted in found.protections:
            self._take(wanted)
        for replica in found.replicas:
            self._keep(replica)

    def _take(self, wanted: WantedProtection) -> None:
        known = self.protections.get(wanted.machine)
        if known is not None and known.wanted.revision >= wanted.revision:
            return
        why = self.refuse(wanted)
        if why:
            self.refused[wanted.item] = why
        elif not wanted.enabled:
            if known is not None:  # checkpoints and bitmaps take a while
                known.wanted, known.ending = wanted, ENDING_ROUNDS
        elif known is None:
            self.protections[wanted.machine] = Working(wanted, wanted.item)
        else:
            if wanted.resync > known.resynced and not known.comparing:
                known.comparing = COPY_ROUNDS
            known.wanted, known.item = wanted, wanted.item

    def _keep(self, wanted: WantedReplica) -> None:
        self.deleting.pop(wanted.machine, None)
        if wanted.delete and wanted.machine in self.replicas:
            self.deleting[wanted.machine] = ENDING_ROUNDS
        elif wanted.machine in self.replicas:
            known = self.replicas[wanted.machine]
            if known.revision < wanted.revision:
                self.replicas[wanted.machine] = known.model_copy(update={"revision": wanted.revision})

    def work(self) -> None:
        for machine, left in list(self.deleting.items()):
            if machine in self.in_use:
                continue
            self.deleting[machine] = left - 1
            if left <= 1:
                del self.deleting[machine]
                del self.replicas[machine]
        for machine, one in list(self.protections.items()):
            if not one.wanted.enabled:
                one.ending -= 1
                if one.ending < 0:
                    del self.protections[machine]
                continue
            peer = self.place.gateways.get(one.wanted.peer)
            waits = one.wanted.paused or machine in self.lost
            if waits or peer is None or not peer.here or peer.failovers.standing(machine):
                continue
            if one.copied < COPY_ROUNDS:
                one.copied += 1
                continue
            if one.comparing:
                one.comparing -= 1
                if not one.comparing:
                    one.resynced = one.wanted.resync
            one.points += 1
            known = peer.replicas.get(machine)
            peer.replicas[machine] = ReplicaReport(
                machine=machine,
                name=one.wanted.name,
                revision=known.revision if known else one.wanted.revision,
                points=(known.points if known else 0) + 1,
                epoch=max(self.epoch, known.epoch if known else 1),
            )

    def report(self) -> None:
        # through JSON, as it travels
        report = Report.model_validate_json(self.said().model_dump_json(by_alias=True))
        self.tell = self.place.parts.reports.heard(self.who, report).tell
        self.writes += self.place.parts.reports.flush()

    def said(self) -> Report:
        """What it reports now."""
        said = []
        for machine, one in self.protections.items():
            state, copying = "Protected", None
            if one.copied < COPY_ROUNDS or not one.points:
                state = "InitialReplicationInProgress"
                copying = Copying(
                    done_bytes=one.copied << 30, total_bytes=COPY_ROUNDS << 30, seconds_left=75.0
                )
            elif one.wanted.paused:
                state = "Paused"
            elif one.comparing:
                state = "Resynchronizing"
            trouble: dict[str, Any] = {}
            if machine in self.lost:
                state, copying = "Paused", None
                trouble = {"health": "Critical", "code": "replicate.held", "note": self.lost[machine]}
            if not one.wanted.enabled:
                state = "DisablingProtection"
            said.append(
                ProtectionReport(
                    machine=machine,
                    name=one.wanted.name,
                    peer=one.wanted.peer,
                    item=one.item,
                    revision=one.wanted.revision if one.item else 0,
                    wanted=one.wanted if machine in self.tell else None,
                    state=state,
                    **{"health": "Normal", **trouble},
                    epoch=self.epoch,
                    copying=copying,
                    resynced=one.resynced,
                    points=one.points,
                    last_point=one.points or None,
                    rpo_seconds=1.0 if one.points else None,
                )
            )
        return Report(
            sent_at=time_text(self.place.clock.utc()),
            generation=self.generation,
            refused=dict(self.refused),
            left_behind=dict(self.left_behind),
            protections=tuple(said),
            replicas=tuple(self._replica(replica) for replica in self.replicas.values()),
            failovers=tuple(self.failovers.reports()),
            held=tuple(self.holds.reports()),
        )

    def _replica(self, replica: ReplicaReport) -> ReplicaReport:
        test = self.tests.standing(replica.machine) or {"state": "", "name": ""}
        told = {"test_state": test["state"], "test_name": test["name"]}
        if replica.machine in self.deleting and replica.machine in self.in_use:
            told |= {"code": "replica.in-use", "note": self.in_use[replica.machine]}
        return replica.model_copy(update=told)

    def answer(self) -> None:
        for call in self.place.calls.ready(self.who.id, Ask(room=8)):
            self.answered.append(call)
            answer = self.kept.get(call.id)
            if answer is None:
                status, body = self._answer(call)
                answer = Answer(id=call.id, status=status, body=json.dumps(body))
            if answer.ok and call.method != "GET":
                self.kept[call.id] = answer
            with contextlib.suppress(CallUnknown):  # given up meanwhile: a gateway is told so, and goes on
                self.place.calls.answer(self.who.id, answer)

    def _answer(self, call: Call) -> tuple[int, Any]:
        for part in (self.failovers, self.stops, self.holds, self.returns):
            if part.answers(call):
                return part.answer(call)
        word = call.path.split("/")[2]
        if word in ("inventory", "peers"):
            return self._tells(call)
        match call.method, word:
            case "GET", word if word.startswith("test-failovers") and self.store:
                return self.tests.answer(call)
            case _, "machines" | "operations":
                return self.tests.answer(call)
            case "GET", "test-failovers":
                sentences = {"happened": "no store", "cause": "-", "action": "-"}
                return 409, {"code": "gateway.role-missing", "outcome": "refused", **sentences}
            case "GET", "recovery-key":
                return 200, {"keyId": "ab" * 16, "proved": self.proved, "provedAt": None}
            case "POST", "recovery-key":
                self.proved = True
                return 200, {"keyId": "ab" * 16, "proved": True, "provedAt": "2026-01-01T00:00:00Z"}
            case "POST" | "DELETE", "adoptions":
                machine = call.path.split("/")[3].partition("?")[0]
                self.adopting = (
                    {*self.adopting, machine} if call.method == "POST" else self.adopting - {machine}
                )
                return 202, {}
            case "GET", "challenge":
                return 200, {"keyId": "ab" * 16, "nonce": "cd" * 32}
            case "POST", "protections" if call.path.endswith("/point"):
                taken = {"number": 7, "at": "2026-01-01T00:00:00+00:00", "consistency": "CrashConsistent"}
                return 200, taken
        raise AssertionError(f"nobody answers {call.method} {call.path}")

    def _tells(self, call: Call) -> tuple[int, Any]:
        """Of its site, or whether it reaches another gateway."""
        words = call.path.split("/")[2:]
        if words[0] == "inventory":
            return 200, msgspec.to_builtins(self.site)
        peer = self.place.gateways[words[1]]
        problem = {"happened": "Its port is closed.", "cause": "-", "action": "Open the port."}
        return 200, {"ok": peer.reached, "problems": [] if peer.reached else [problem]}


class Parts(Protocol):
    """What a made-up gateway talks to."""

    gateways: dict[str, FakeGateway]
    identity: Identity
    parts: ItemParts
    calls: Calls

    @property
    def clock(self) -> Clock: ...


@dataclass
class ServedItems:
    """A whole server over TLS, its made-up gateways turning in a thread of their own."""

    served: Served
    vault: str
    gateways: dict[str, FakeGateway] = field(default_factory=dict)

    def __post_init__(self) -> None:
        services = self.served.server.services
        assert services is not None
        assert services.items is not None
        assert services.calls is not None
        assert services.inventories is not None
        self.services = services
        self.identity = self.served.identity
        self.parts, self.calls, self.inventories = services.items, services.calls, services.inventories
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._root, name="made-up gateways", daemon=True)

    @property
    def clock(self) -> Clock:
        return self.served.clock

    @contextlib.contextmanager
    def turning(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _root(self) -> None:
        while not self._stop.wait(0.05):
            for gateway in self.gateways.values():
                gateway.turn()


@contextlib.contextmanager
def served_items(state_dir: Path, database: str | None = None) -> Iterator[ServedItems]:
    """A vault North with gateways a (which has the machines shop and büro) and b, on a running server."""
    with served(state_dir, database) as running:
        key = running.key()
        made = ServedItems(running, running.identity.vaults.get("North").id)
        for name in ("gateway-a", "gateway-b"):
            made.gateways[name] = FakeGateway(enrolled(made.identity, name, key, made.clock), made)
        told_of(made, "gateway-a", a_machine(), a_machine(2, "büro"))
        told_of(made, "gateway-b")
        with made.turning():
            yield made


def enrolled(identity: Identity, name: str, key: RegistrationKey, clock: Clock) -> GatewayIdentity:
    who = identity.identify(der(NewGateway(identity, name).enrol(key, clock).certificate))
    assert who is not None
    return who


def told_of(
    place: ServedItems | ItemPlace, gateway: str, *machines: Machine, pools: tuple[str, ...] = ("default",)
) -> None:
    """What a site has."""
    told = Told(
        hosts=(Host(name=f"host-{gateway[-1]}", hypervisor="made up", memory_bytes=1, cpus=1),),
        machines=machines,
        networks=(Network(name="lan", active=True, isolated=False),),
        pools=tuple(Pool(name=n, path="/p", active=True, capacity_bytes=1, free_bytes=1) for n in pools),
    )
    place.gateways[gateway].site = told
    place.inventories.record(place.gateways[gateway].who.id, told)


@dataclass
class ItemPlace:
    """The server's side, and its gateways by name."""

    database: Database
    identity: Identity
    vault: str
    gateways: dict[str, FakeGateway] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events = Events(self.database)
        self.mappings = Mappings(self.database)
        self.parts = open_items(self.database, self.identity, self.mappings, self.events)
        self.calls = Calls(self.database, Bells())
        self.inventories = Inventories(self.database)
        self.tools = Tools(self.parts.items, self.identity.gateways, self.inventories, self.calls)
        definitions = [*item_operations(self.tools), *operations(self.calls)]
        self.worker = HandWorker(self.database, definitions)
        self.calls.on_answer = self.parts.reports.wake = self.worker.jobs.wake

    @property
    def clock(self) -> FakeClock:
        assert isinstance(self.database.clock, FakeClock)
        return self.database.clock

    def enrol(self, name: str, key: RegistrationKey) -> None:
        self.gateways[name] = FakeGateway(enrolled(self.identity, name, key, self.clock), self)

    def site(self, gateway: str, *machines: Machine, pools: tuple[str, ...] = ("default",)) -> None:
        told_of(self, gateway, *machines, pools=pools)

    def round(self, seconds: float = 1.0) -> None:
        for gateway in self.gateways.values():
            gateway.turn()
        self.worker.idle(taking=4)
        self.clock.advance(seconds)

    def run(
        self,
        job: str,
        *,
        until: Callable[[records.Job], bool] | None = None,
        seconds: float = 1.0,
    ) -> records.Job:
        """Rounds of so many seconds until the job has ended (or what is said is so)."""
        ended = until or (lambda found: found.state in ENDED or found.state is JobState.SUSPENDED)
        for _ in range(ROUNDS_MAX):
            found = self.worker.get(job)
            if ended(found):
                return found
            self.round(seconds)
        raise AssertionError(f"{self.worker.get(job)}\n" + "\n".join(self.worker.log(job)))

    def protect(self, machine: str, name: str = "shop", **more: Any) -> str:
        given = Protect(
            vault=self.vault, machine=machine, name=name, source="gateway-a", target="gateway-b", **more
        )
        return self.worker.start(PROTECT, given)

    def item(self, machine: str) -> Item:
        with self.database.read() as connection:
            found = self.parts.items.of_machine(connection, self.vault, machine)
        assert found is not None
        return found

    def codes(self) -> list[str]:
        """Of the events so far, oldest first."""
        from secondsite.server.events.service import Search

        return [event.code for event in self.events.after(Search(), 0, limit=1000)]


def a_machine(number: int = 1, name: str = "shop", disks: tuple[str, ...] = ("vda", "vdb")) -> Machine:
    return Machine(
        id=MachineId(f"00000000-0000-4000-8000-{number:012}"),
        name=name,
        host="host-a",
        power=PowerState.RUNNING,
        disks=tuple(
            Disk(id=DiskId(disk), size_bytes=1 << 30, format="raw", location="/x", pool="default")
            for disk in disks
        ),
        agent=True,
    )


def item_place(database: Database, directory: Path) -> ItemPlace:
    """A vault with gateways a (which has the machine shop) and b."""
    identity = open_identity(database, directory, database.clock)
    vault = identity.vaults.create("North").id
    key, _ = identity.keys.create("North", url=URL, by="maria")
    place = ItemPlace(database, identity, vault)
    for name in ("gateway-a", "gateway-b"):
        place.enrol(name, key)
        place.gateways[name].turn()
    place.site("gateway-a", a_machine())
    place.site("gateway-b")
    return place


def columns(item: Item) -> dict[str, object]:
    """An item's fields, for comparing two moments."""
    return {name: getattr(item, name) for name in item.__struct_fields__}


def output(job: records.Job) -> dict[str, Any]:
    assert job.output is not None
    return msgspec.json.decode(job.output, type=dict[str, Any])


def change(place: ItemPlace, kind: str, item: Item, **more: Any) -> records.Job:
    """An item changed by a job."""
    given = Change(vault=item.vault_id, item=item.id, machine=item.machine, name=item.name, **more)
    return place.run(place.worker.start(kind, given))


def end(place: ItemPlace, item: Item, *, with_replica: bool = False, force: bool = False) -> records.Job:
    """The protection of an item ended by a job."""
    given = Disable(
        vault=item.vault_id,
        item=item.id,
        machine=item.machine,
        name=item.name,
        with_replica=with_replica,
        force=force,
    )
    return place.run(place.worker.start(DISABLE, given))
