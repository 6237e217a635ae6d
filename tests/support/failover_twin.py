"""Two sites without processes: the real failover, fencing and store rules over imaginary hosts and exports.

Everything that decides is the product's own; what is made up is the host (`MemoryFabric`), the export (a pin
and a name), and the line. A gateway dies at a mark of the code, or between two steps, and another one begins
with what is durable.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from secondsite.base.clock import FakeClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.choose import choose_point
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.failover import drop as failoverdrop
from secondsite.gateway.failover import fencing
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.messages.failover import (
    ChangePoint,
    CommitFailover,
    Decide,
    FailoverStatus,
    OldMachine,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.messages.gateway import ExportDisk, ExportStatus
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.target.journals import OpenJournals
from secondsite.gateway.target.pins import Pins
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal import drop
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey, VaultKey
from secondsite.journal.manifest import seal_definition
from secondsite.journal.store_memory import MemoryStore
from secondsite.model import confirmations
from secondsite.model.failover import FailoverState, HeldState
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Definition, Mapping
from secondsite.model.points import Consistency, DiskState, Point, PointProposal
from secondsite.transfer.protocols import ClaimRequest, Peer
from support.control import Events

A, B, NAME = "gateway-a", "gateway-b", "shop"
DISK = DiskId("vda")
_MODULES = (failoverrun, failoverclaim, failoverdrop, drop, fencing)


class Killed(BaseException):
    """The process ended here."""


class TwinExports:
    """Exports that outlive the gateway, as processes do: a pin and a name each."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self.served: dict[str, ExportStatus] = {}

    def begin(self, *, identity: str, machine: MachineId, point: int, **rest: Any) -> ExportStatus:
        holder = f"export:{identity}"
        self.pins.take(machine, point, holder=holder, reason=rest["reason"])
        disks = tuple(
            ExportDisk(id=disk, size_bytes=size, socket_path=str(rest["socket_path"]), export_name=disk)
            for disk, size in rest["disks"].items()
        )
        made = ExportStatus(id=identity, machine=machine, point=point, holder=holder, disks=disks)
        return self.served.setdefault(identity, made)

    def end(self, identity: str) -> None:
        found = self.served.pop(identity, None)
        if found is not None:
            self.pins.release(found.machine, holder=found.holder)

    def serves(self, identity: str) -> bool:
        return identity in self.served

    def all(self) -> list[ExportStatus]:
        return list(self.served.values())


@dataclass
class _Replicas:
    """Of `Recovery` what failovers ask."""

    journals: OpenJournals

    def journal(self, machine: MachineId) -> Journal:
        return self.journals.of(machine)

    def point_of(self, machine: MachineId, wanted: str) -> Point:
        return choose_point(self.journal(machine).points(), wanted, machine=NAME)


@dataclass
class Twin:
    """The two sites. `chance` decides everything that is not asked for."""

    root: Path
    seed: int = 0
    clock: FakeClock = field(default_factory=lambda: FakeClock(datetime(2026, 5, 4, 12, 0, tzinfo=UTC)))

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.events = Events()
        self.vault = VaultKey.create()
        self.store = MemoryStore()
        self.a_fabric, self.b_fabric = MemoryFabric(), MemoryFabric()
        self.machine = self.a_fabric.add_machine(NAME, {DISK: MIB})
        self.key = DiskKey.create()
        self.exports = TwinExports(Pins(self.store, self.vault))
        self.line = True
        self.kill_at = ""
        self.instants = 0
        self.epoch_of_a = 0  # as its gateway knows it
        self.learnt: set[int] = set()  # epochs of failovers that a living gateway A was told of
        self.released: set[int] = set()  # and that a person released
        self.receiver = self._receiver()
        self.other_receiver = self._receiver()  # a second gateway of the target's on the same store
        self.former: Fencing | None = None  # who holds a former copy of the machine at B
        self.a: Fencing | None = None
        self.b: Failovers | None = None
        self.start_a()
        self.start_b()
        self.claim_as_a()

    @property
    def journal(self) -> Journal:
        return Journal(self.store, self.machine, self.vault)

    def _receiver(self) -> GatewayReceiver:
        return GatewayReceiver(
            self.store, vault=self.vault, peers={A: PeerRule()}, clock=self.clock, events=self.events
        )

    # gateways

    def start_a(self) -> None:
        self.a = Fencing(
            us=A,
            fabric=self.a_fabric,
            vault=self.vault,
            state_dir=self.root / "a",
            clock=self.clock,
            events=self.events,
            autostart=True,
        )

    def start_b(self) -> None:
        replicas = _Replicas(OpenJournals(self.store, self.vault))
        self.b = Failovers(
            us=B,
            store=self.store,
            vault=self.vault,
            exports=cast("Exports", self.exports),
            recovery=cast("Recovery", replicas),
            state_dir=self.root / "b",
            socket_dir=self.root,
            fabric=self.b_fabric,
            mapping=Mapping(),
            clock=self.clock,
            events=self.events,
            former=self.former,
        )
        with self.killing():
            self.b.resume()
            self.settle()

    def restart_host_b(self) -> None:
        """The hypervisor at B; its gateway lives, and looks after its machines."""
        assert self.b is not None
        self.b_fabric.restart_host()
        self.clock.advance(3600)
        self.b.tick()
        self.settle()

    def kill_b(self) -> None:
        self.b = None

    def kill_a(self) -> None:
        self.a = None

    @contextmanager
    def killing(self) -> Iterator[None]:
        """Within, a pass of the mark `kill_at` ends the thread that comes by."""
        before = [module.crash_point for module in _MODULES]
        hook, threading.excepthook = threading.excepthook, lambda _: None

        def crash_point(name: str) -> None:
            if name == self.kill_at:
                self.kill_at = ""
                self.died = True
                raise Killed

        self.died = False
        for module in _MODULES:
            module.crash_point = crash_point  # type: ignore[attr-defined]
        try:
            yield
        except Killed:
            pass
        finally:
            threading.excepthook = hook
            for module, former in zip(_MODULES, before, strict=True):
                module.crash_point = former  # type: ignore[attr-defined]
        if self.died:
            self.b = None

    def settle(self) -> None:
        """Until what the gateway at B does is done, or it died."""
        assert self.b is not None
        self.b._threads.wait()

    # the source

    def claim_as_a(self) -> None:
        peer = Peer(name=A)
        head = self.receiver.head(peer, self.machine)
        request = ClaimRequest(
            machine=self.machine,
            machine_name=NAME,
            reason="first copy",
            nonce=secrets.token_hex(16),
            expected_number=head.number,
            expected_hash=head.hash,
        )
        self.epoch_of_a = self.receiver.claim(peer, request).epoch

    def look(self) -> None:
        """A's gateway asks where the journal stands."""
        if self.a is None or not self.line:
            return
        head = self.receiver.head(Peer(name=A), self.machine)
        claim = self.journal.head().claim
        self.a.saw(self.machine, NAME, head)
        if claim is not None and claim.reason == "failover":
            self.learnt.add(claim.epoch)
        if head.claimant == A:
            self.epoch_of_a = head.epoch

    def commit_as_a(self, *, late: bool = False) -> Point | None:
        """A point of what A believes is its epoch; late: a gateway that never heard of anything else."""
        if not self.line or (self.a is None and not late):
            return None
        self.instants += 1
        head = self.journal.head()
        self.clock.advance(5)
        at = self.clock.utc()
        definition = Definition(format="memory", text=json.dumps({"name": NAME, "id": self.machine}))
        proposal = PointProposal(
            machine=self.machine,
            machine_name=NAME,
            epoch=1 if late else self.epoch_of_a,
            nonce=secrets.token_hex(16),
            checkpoint=f"cp{self.instants}",
            parent_checkpoint=head.point.checkpoint if head.point else None,
            asked_at=(at - timedelta(milliseconds=10)).isoformat(timespec="microseconds"),
            given_at=at.isoformat(timespec="microseconds"),
            consistency=Consistency.CRASH,
            disks=(DiskState(id=DISK, size_bytes=MIB, key_id=self.key.id),),
            segments=(),
            definition=seal_definition(definition, self.vault, self.machine),
        )
        receiver = self.chance.choice([self.receiver, self.other_receiver])
        try:
            receiver.commit(Peer(name=A), proposal)
        except SecondsiteError:
            return None
        return self.journal.head().point

    def keep_a(self) -> None:
        """What A's gateway does again and again: everything as its records say."""
        assert self.a is not None
        for held in self.a.all():
            self.a._converge(held)

    # people

    def failover(
        self, operation: str, *, point: str = "latest", old_machine: OldMachine | None = None
    ) -> None:
        assert self.b is not None
        head = self.journal.head()
        writer = head.claim.claimant if head.claim else ""
        request = StartFailover(
            operation=operation,
            point=point,
            confirm=confirmations.taken_over(NAME, writer),
            old_machine=old_machine,
        )
        self._ask(lambda b: b.start(self.machine, request))

    def change_point(self, operation: str, point: str, *, with_writes: bool = False) -> None:
        request = ChangePoint(point=point, with_writes=with_writes, confirm=confirmations.lost(NAME))
        self._ask(lambda b: b.change_point(operation, request))

    def commit(self, operation: str) -> None:
        request = CommitFailover(confirm=confirmations.kept(NAME))
        self._ask(lambda b: b.commit(operation, request))

    def roll_back(self, operation: str) -> None:
        request = RollBackFailover(confirm=confirmations.lost(NAME))
        self._ask(lambda b: b.roll_back(operation, request))

    def _ask(self, what: Any) -> None:
        assert self.b is not None
        with self.killing():
            what(self.b)
            self.settle()

    def decide(self, *, release: bool) -> None:
        assert self.a is not None
        [held] = self.a.all()
        if release:
            said = confirmations.released(NAME, held.claimant)
            self.a.release(self.machine, Decide(epoch=held.epoch, confirm=said))
            self.released.add(held.epoch)
        else:
            self.a.discard(self.machine, Decide(epoch=held.epoch, confirm=confirmations.discarded(NAME)))

    # what must hold, whatever happened in whatever order

    def status(self) -> FailoverStatus | None:
        """The newest failover, as its record says."""
        if self.b is None:
            return None
        found = self.b.all()
        return found[-1] if found else None

    def check(self) -> None:
        """At most one authoritative copy, and no copy at B that is not it."""
        head = self.journal.head()
        claim = head.claim
        assert claim is not None
        at_a, at_b = self.a_fabric.runs(self.machine), self.b_fabric.runs(self.machine)
        if at_b:
            assert (claim.claimant, claim.reason) == (B, "failover"), f"B runs, the store says {claim}"
        moved = claim.reason == "failover"
        if at_a and moved and self.a is not None and claim.epoch in self.learnt - self.released:
            raise AssertionError(f"A runs, and its gateway knows of {claim}")
        if at_a and at_b:
            assert claim.epoch not in self.learnt or claim.epoch in self.released
        for point in self.journal.points():
            assert point.epoch % 2 == 1, "points are of epochs that were A's"
        status = self.status()
        if status is not None and status.state in (FailoverState.COMPLETED, FailoverState.COMMITTED):
            assert at_b or self.b_fabric.settled(self.machine) is not None
        if self.a is not None:
            for held in self.a.all():
                if held.state is HeldState.HELD and held.isolated_at is not None:
                    assert self.a_fabric.isolated(self.machine) is not None
