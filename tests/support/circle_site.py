"""One place of `circle_twin`: a host, a store, and a gateway whose memory goes when it dies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.base import Recovered, Source
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.choose import choose_point
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.failover.claim import taken_here
from secondsite.gateway.failover.fencing import Fencing
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.messages.adopterrors import AdoptionUnknown
from secondsite.gateway.messages.adoption import AdoptionStatus, AdoptRequest
from secondsite.gateway.messages.failover import Check, FailoverStatus, HeldMachine
from secondsite.gateway.messages.gateway import ProtectionStatus
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.reverse.checks import Looker
from secondsite.gateway.reverse.kept import Kept
from secondsite.gateway.reverse.service import Reversals
from secondsite.gateway.source.plannedstop import PlannedStops
from secondsite.gateway.target.pins import Pins
from secondsite.gateway.target.receive import GatewayReceiver, PeerRule
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.machines import Machine, Mapping, PowerState
from secondsite.model.points import Point
from secondsite.transfer.errors import LinkDown
from secondsite.transfer.protocols import Link, Peer, StopNote, TargetHead
from support.failover_twin import TwinExports
from support.walking import MemoryDirectory

if TYPE_CHECKING:
    from support.circle_twin import CircleTwin

A, B, C, NAME, DISK = "gateway-a", "gateway-b", "gateway-c", "shop", DiskId("vda")
PLACES = (A, B, C)


class TwinFabric(MemoryFabric):
    """A host on which what was taken over becomes a machine like any other once it is settled."""

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        super().settle_recovered(recovered, autostart=autostart)
        self._settled.pop(recovered.id, None)
        if recovered.id not in self._machines:
            runs = recovered.id in self._running
            self.add_machine(recovered.name, {DISK: 4096}, machine=recovered.id)
            self._machines[recovered.id].autostart = autostart
            if not runs:
                self.set_power(recovered.id, PowerState.OFF)
        self._running.discard(recovered.id)

    def life(self, machine: MachineId) -> bool:
        """Whether anything of the machine is here, also one that is off."""
        return machine in self._machines or machine in self._recovered

    def powered(self, machine: MachineId) -> bool:
        """Whether it has a hypervisor process, which tracks what changes."""
        found = self._machines.get(machine)
        return found is not None and found.power is PowerState.RUNNING

    def restart_host(self) -> None:
        """The hypervisor: machines that start with their host do, all others are off."""
        super().restart_host()
        for machine, found in self._machines.items():
            self.set_power(machine, PowerState.OFF)
            if found.autostart:
                self.set_power(machine, PowerState.RUNNING)

    def lose(self, machine: MachineId) -> None:
        """A machine of this host, not one that stands on an export, is gone with its disks."""
        self._machines.pop(machine, None)

    def switch_on(self, machine: MachineId) -> None:
        """A person starts it at its hypervisor, whatever we say about it."""
        found = self._machines.get(machine)
        if found is not None and found.power is PowerState.OFF:
            self.set_power(machine, PowerState.RUNNING)


class _Adoptions:
    """Offers that are never taken: a first copy comes another way here."""

    def begin(self, machine: MachineId, name: str, request: AdoptRequest) -> AdoptionStatus:
        return cast("AdoptionStatus", None)  # nobody looks

    def show(self, machine: MachineId) -> AdoptionStatus:
        raise AdoptionUnknown(machine=machine)

    def cancel(self, machine: MachineId) -> AdoptionStatus:
        raise AdoptionUnknown(machine=machine)


class _Sound:
    """Of `reversechecks.Looker`: nothing is wrong with disks and volumes."""

    def look(self, held: HeldMachine, machine: Machine, journal: Journal) -> tuple[Check, ...]:
        return ()


@dataclass
class _Replicas:
    """Of `Recovery` what failovers ask."""

    journal_of: Callable[[MachineId], Journal]

    def journal(self, machine: MachineId) -> Journal:
        return self.journal_of(machine)

    def point_of(self, machine: MachineId, wanted: str) -> Point:
        return choose_point(self.journal(machine).points(), wanted, machine=NAME)


@dataclass
class _Line:
    """Of `Link`: where a journal stands at another place."""

    site: Site
    target: Site

    def head(self, machine: MachineId) -> TargetHead:
        """Raises LinkDown."""
        if not self.site.twin.reaches(self.site, self.target):
            raise LinkDown(peer=self.target.name, why="the line is cut")
        head = self.target.receivers[0].head(Peer(name=self.site.name), machine)
        claim = self.target.seen.head().claim
        committed = claim is not None and self.target.failovers.is_committed(claim)  # kept on its disk
        return msgspec.structs.replace(head, committed=committed)

    def note_stop(self, note: StopNote) -> None:
        """Raises LinkDown, and what the receiver raises; the answer may be lost."""
        if not self.site.twin.reaches(self.site, self.target):
            raise LinkDown(peer=self.target.name, why="the line is cut")
        self.target.receivers[0].note_stop(Peer(name=self.site.name), note)
        if self.site.twin.chance.random() < 0.1:
            raise LinkDown(peer=self.target.name, why="the answer was lost")


@dataclass
class _Status:
    """Of `ProtectionStatus` what follows of it."""

    machine: MachineId
    peer: str
    last_point: int | None


@dataclass
class Site:
    """What a gateway holds in memory is in the lower half and goes when it dies."""

    name: str
    twin: CircleTwin
    fabric: TwinFabric = field(default_factory=TwinFabric)
    store: MemoryStore = field(default_factory=MemoryStore)
    protects: Protection | None = None
    last_point: int | None = None  # of its protection, at its target
    learnt: set[int] = field(default_factory=set)  # epochs of failovers that its gateway was told of
    released: set[int] = field(default_factory=set)
    burnt: set[str] = field(default_factory=set)  # failovers whose machine was lost with its host
    up: bool = False
    resting: bool = False  # no cycle is begun

    def __post_init__(self) -> None:
        self.root = cast("Path", MemoryDirectory(self.name))
        self.exports = TwinExports(Pins(self.store, self.twin.vault))
        self.seen = Journal(self.store, self.twin.machine, self.twin.vault)  # what its store really says
        self.receivers = [
            GatewayReceiver(
                self.store,
                vault=self.twin.vault,
                peers={name: PeerRule() for name in PLACES},
                clock=self.twin.clock,
                events=self.twin.events,
            )
            for _ in range(2)
        ]

    @property
    def target(self) -> Site | None:
        """Where it is protected to."""
        return self.twin.sites[self.protects.peer] if self.protects is not None else None

    # what reversals (`reverse.Protecting`) and stops (`plannedstop.Stoppable`) ask of a source

    def protection(self, machine: MachineId) -> Protection | None:
        return self.protects

    def ways(self) -> list[tuple[MachineId, str, Link]]:
        target = self.target
        if target is None:
            return []
        return [(self.twin.machine, NAME, cast("Link", _Line(self, target)))]

    def end(self, _machine: MachineId) -> bool:
        self.protects = None
        return True

    def put_back(self, protection: Protection) -> None:
        self.protects, self.resting = self.protects or protection, False

    def source(self, machine: MachineId) -> Source:
        return self.fabric.open_source(machine)

    def data_key(self, machine: MachineId, disk: DiskId) -> DiskKey:
        return self.twin.key

    def hindrance(self, _machine: MachineId) -> str:
        return ""

    def hurry(self, _machine: MachineId) -> None:
        self.twin.cycle(self)

    def drain(self, _machine: MachineId) -> bool:
        return True  # cycles of the twin are done at once

    def rest(self, _machine: MachineId) -> None:
        self.resting = True

    def begin_again(self, _machine: MachineId) -> None:
        self.resting = False

    # its gateway

    def start(self) -> None:
        """A new process on what is durable."""
        twin = self.twin
        opened = Journal(self.store, twin.machine, twin.vault)
        journal: Callable[[MachineId], Journal] = lambda _machine: opened  # noqa: E731
        self.fencing = Fencing(
            us=self.name,
            fabric=self.fabric,
            vault=twin.vault,
            state_dir=self.root,
            clock=twin.clock,
            events=twin.events,
            autostart=twin.own_autostart,
        )
        self.fencing.epoch_here = self._epoch_here
        self.fencing.taken_here = lambda _machine: taken_here(opened, self.name)
        self.fencing.unprotect = self.end
        self.failovers = Failovers(
            us=self.name,
            store=self.store,
            vault=twin.vault,
            exports=cast("Exports", self.exports),
            recovery=cast("Recovery", _Replicas(journal)),
            state_dir=self.root,
            socket_dir=self.root,
            fabric=self.fabric,
            mapping=Mapping(),
            clock=twin.clock,
            events=twin.events,
            former=self.fencing,
        )
        self._start_rest(journal)
        self.stops.held = self.fencing.get
        self.up, self.resting = True, False
        self.failovers.resume()
        self.reversals.resume()
        self.kept.resume()
        self.stops.resume()
        self.settle()
        self.keep()

    def _start_rest(self, journal: Callable[[MachineId], Journal]) -> None:
        twin = self.twin
        self.reversals = Reversals(
            fabric=self.fabric,
            fencing=self.fencing,
            protecting=self,
            adoptions=_Adoptions(),
            journal=journal,
            forget=lambda _: None,
            looker=cast("Looker", _Sound()),
            base_dir=None,
            state_dir=self.root,
            clock=twin.clock,
            events=twin.events,
        )
        self.kept = Kept(
            us=self.name,
            records=self.failovers.records,
            journal=journal,
            protections=self._statuses,
            forget=lambda _: None,
            delete_points=self.failovers.delete_points,
            clock=twin.clock,
            events=twin.events,
        )
        self.stops = PlannedStops(
            self,
            self.fabric,
            us=self.name,
            state_dir=self.root,
            autostart=twin.own_autostart,
            clock=twin.clock,
            events=twin.events,
        )

    def _statuses(self) -> Sequence[ProtectionStatus]:
        if self.protects is None:
            return ()
        found = _Status(self.twin.machine, self.protects.peer, self.last_point)
        return cast("tuple[ProtectionStatus, ...]", (found,))

    def _epoch_here(self, _machine: MachineId, theirs: str) -> int:
        head = self.seen.head()
        return head.epoch if head.hash != theirs else 0

    def settle(self) -> None:
        """Until what the gateway does is done, or waits for something, or it died."""
        self.twin.clock.looks = 0
        for threads in (
            self.failovers._threads,
            self.reversals._threads,
            self.kept._threads,
            self.stops._threads,
        ):
            threads.wait()

    def keep(self) -> None:
        """What its gateway does again and again: what is due, and everything as its records say."""
        self.failovers.tick()
        for held in self.fencing.all():
            if held.state.value in ("Held", "Reversed") or held.isolated_at:
                with contextlib.suppress(SecondsiteError):
                    self.fencing._converge(held)

    def status(self) -> FailoverStatus | None:
        """Of its newest failover."""
        found = self.failovers.all() if self.up else []
        return found[-1] if found else None
