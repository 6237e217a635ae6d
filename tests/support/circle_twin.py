"""Three places without processes that take a machine over from each other again and again, each with a store.

Everything that decides is the product's own: failovers and their timers, planned stops, fencing, reversals,
what follows a commit, the plan of a source, the store's rules. Hosts, exports, copies that are adopted, and
lines are made up. The third place is who is protected to where the old machine is not wanted any more.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from unittest import mock

from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.failover import drop as failoverdrop
from secondsite.gateway.failover import fencing
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.failover.claim import taken_here, writer_of
from secondsite.gateway.messages.adoption import AdoptImage
from secondsite.gateway.messages.failover import (
    CancelTimer,
    ChangePoint,
    CommitFailover,
    Decide,
    FailoverStatus,
    OldMachine,
    PlannedStop,
    RollBackFailover,
    StartFailover,
)
from secondsite.gateway.messages.reverse import CompleteMigration, RetireReplica, ReverseRequest
from secondsite.gateway.reverse import kept
from secondsite.gateway.reverse import service as reverse
from secondsite.gateway.source import plan, plannedstop
from secondsite.journal import drop
from secondsite.journal.keys import DiskKey, VaultKey
from secondsite.journal.manifest import seal_definition
from secondsite.model import confirmations
from secondsite.model.failover import FailoverKind, HeldState
from secondsite.model.ids import DiskId, machine_id
from secondsite.model.machines import Definition
from secondsite.model.points import Claim, Consistency, DiskState, PointProposal
from secondsite.model.reversals import migrated, removed, retired, reversed_onto
from secondsite.transfer.protocols import ClaimRequest, Peer, TargetHead
from support.circle_rules import check
from support.circle_site import DISK, NAME, PLACES, A, Site
from support.control import Events
from support.walking import Deaths, Killed, PutOff, TurnClock, in_turns

MODULES = (failoverrun, failoverclaim, failoverdrop, drop, fencing, reverse, kept, plannedstop)
# Made once: a walk is about who has the machine, not about keys.
_VAULT, _KEY = VaultKey.create(), DiskKey.create()
_MACHINE = machine_id("6f1d3c9a-2f6f-4d53-9d0e-0a4f6f6f8c11")


@contextlib.contextmanager
def circle_twin(seed: int = 0) -> Iterator[CircleTwin]:
    """One for a walk: gateways within work in turns."""
    deaths = Deaths()
    images = {DISK: AdoptImage(path="/image", format="raw")}
    with in_turns(deaths, MODULES), mock.patch.object(reverse, "images_of", return_value=images):
        yield CircleTwin(seed, deaths)


class CircleTwin:
    """The places. `chance` decides everything that is not asked for."""

    def __init__(self, seed: int, deaths: Deaths) -> None:
        self.clock = TurnClock(datetime(2026, 5, 4, 12, 0, tzinfo=UTC))
        self.chance, self.deaths = random.Random(seed), deaths
        self.events, self.vault, self.key = Events(), _VAULT, _KEY
        self.machine = _MACHINE
        self.own_autostart = self.chance.random() < 0.5
        self.cut: set[frozenset[str]] = set()  # between which places there is no line
        self.instants = 0
        self.claims: dict[tuple[str, int], Claim] = {}  # every one that counted, by its store and epoch
        self.asked: list[tuple[Site, Callable[[], object]]] = []  # what a server asked for, the newest last
        self.hurried = True  # what a gateway begins is done at once
        self.sites = {name: Site(name, self) for name in PLACES}
        self.sites[A].fabric.add_machine(NAME, {DISK: 4096}, machine=self.machine)
        for site in self.sites.values():
            with self.turn(site):
                site.start()
        self.protect(self.sites[A])
        for _ in range(3):
            self.cycle(self.sites[A])

    def number(self) -> str:
        """Of an operation or a record: the same in each run of a seed."""
        return f"{self.chance.getrandbits(128):032x}"

    def reaches(self, one: Site, other: Site) -> bool:
        return other.up and frozenset({one.name, other.name}) not in self.cut

    def others(self, site: Site) -> list[Site]:
        return [one for one in self.sites.values() if one is not site]

    @contextlib.contextmanager
    def turn(self, site: Site) -> Iterator[None]:
        """Within, a gateway works; a pass of the mark where it is to die ends it."""
        self.deaths.died, self.clock.looks = "", 0
        with contextlib.suppress(Killed, PutOff, SecondsiteError):
            yield
        if self.deaths.died:
            site.up, self.deaths.died = False, ""

    def ask(self, site: Site, what: Callable[[], object], *, by_server: bool = True) -> None:
        """by_server: who may ask for the same again at any later time, as one restored from a backup does."""
        if by_server:
            self.asked.append((site, what))
        with self.turn(site):
            what()
            if self.hurried:
                site.settle()

    def server_restored(self) -> None:
        """It knows what was long ago, and asks for it again, with the same numbers of operations."""
        if self.asked:
            site, what = self.chance.choice(self.asked)
            if site.up:
                self.ask(site, what, by_server=False)

    # sources

    def protect(self, site: Site) -> None:
        """A person protects the machine where it runs; to the place it was protected to, or any other."""
        with contextlib.suppress(SecondsiteError):
            site.failovers.require_settled(self.machine)
            if not site.fabric.runs(self.machine) or site.protects is not None:
                return
            self._protect_to(site, self.chance.choice(self.others(site)))

    def wish(self, site: Site) -> None:
        """A restored server wants a machine protected that is here and runs or not."""
        with contextlib.suppress(SecondsiteError):
            site.failovers.require_settled(self.machine)
            if site.protects is None and site.fabric.life(self.machine):
                self._protect_to(site, self.chance.choice(self.others(site)))

    def _protect_to(self, site: Site, target: Site) -> None:
        site.protects = Protection(machine=self.machine, name=NAME, peer=target.name)
        site.last_point = None

    def head(self, site: Site) -> TargetHead | None:
        """What its gateway hears of its target; it learns of claims by it."""
        target = site.target
        if not site.up or target is None or not self.reaches(site, target):
            return None
        head = self.chance.choice(target.receivers).head(Peer(name=site.name), self.machine)
        claim = target.seen.head().claim
        with self.turn(site):
            site.fencing.saw(self.machine, NAME, head)
        if claim is not None and claim.reason == "failover":
            site.learnt.add(claim.epoch)
        return head

    def cycle(self, site: Site) -> None:
        """As a source's loop: by the plan it claims, or commits a point."""
        head, target = (None if site.resting else self.head(site)), site.target
        if head is None or target is None or not site.up:
            return
        floor = 0
        if head.point_in_epoch is None and not plan.is_held(site.name, head):
            floor = site.fencing.floor(self.machine, head)
        tip = [head.point.checkpoint] if head.point else []
        step = plan.next_step(
            plan.Facts(site.name, head, tip, floor=floor, taken=site.fencing.elsewhere(self.machine))
        )
        receiver = self.chance.choice(target.receivers)
        with contextlib.suppress(SecondsiteError):
            if isinstance(step, plan.Claim):
                request = ClaimRequest(
                    machine=self.machine,
                    machine_name=NAME,
                    reason=step.reason,
                    nonce=self.number(),
                    expected_number=head.number,
                    expected_hash=head.hash,
                    above=step.above,
                )
                receiver.claim(Peer(name=site.name), request)
            elif isinstance(step, plan.Cycle | plan.Copy) and site.fabric.powered(self.machine):
                proposal = self.proposal(head, head.epoch)
                site.last_point = receiver.commit(Peer(name=site.name), proposal).number

    def late(self, site: Site) -> None:
        """An upload of any earlier epoch arrives at another place, whoever it was of."""
        target = self.chance.choice(self.others(site))
        epochs = sorted({epoch for name, epoch in self.claims if name == target.name})
        head, before = target.seen.head(), len(target.seen.points())
        current = head.claim is not None and head.claim.claimant == site.name
        epochs = [epoch for epoch in epochs if not (current and epoch == head.epoch)]
        if not epochs:
            return
        known = TargetHead(machine=self.machine, point=None)
        epoch = self.chance.choice(epochs)
        with contextlib.suppress(SecondsiteError):
            target.receivers[0].commit(Peer(name=site.name), self.proposal(known, epoch))
            raise AssertionError(f"epoch {epoch} made a point after {head.claim}")
        assert len(target.seen.points()) == before

    def proposal(self, head: TargetHead, epoch: int) -> PointProposal:
        self.instants += 1
        self.clock.advance(5)
        at = self.clock.utc()
        definition = Definition(format="memory", text=json.dumps({"name": NAME, "id": self.machine}))
        return PointProposal(
            machine=self.machine,
            machine_name=NAME,
            epoch=epoch,
            nonce=self.number(),
            checkpoint=f"cp{self.instants}",
            parent_checkpoint=head.point.checkpoint if head.point else None,
            asked_at=(at - timedelta(milliseconds=10)).isoformat(timespec="microseconds"),
            given_at=at.isoformat(timespec="microseconds"),
            consistency=Consistency.CRASH,
            disks=(DiskState(id=DiskId("vda"), size_bytes=4096, key_id=self.key.id),),
            segments=(),
            definition=seal_definition(definition, self.vault, self.machine),
        )

    def keep(self, site: Site) -> None:
        with self.turn(site):
            site.settle()
            site.keep()
            site.settle()

    def host_restarts(self, site: Site) -> None:
        site.fabric.restart_host()

    def trouble(self, site: Site) -> None:
        """The next of what its hypervisor is asked for fails."""
        fabric, why = site.fabric, "out of luck"
        self.chance.choice([fabric.fail_removal, fabric.fail_recovery, fabric.fail_flattening])(why)

    def machine_lost(self, site: Site) -> None:
        """Its host burns down with it, or somebody removes it by hand, where another has taken it over."""
        mine = taken_here(site.seen, site.name)
        for other in self.others(site):
            if other.fabric.runs(self.machine) and taken_here(other.seen, other.name) > mine:
                site.fabric.lose(self.machine)
                claim = site.seen.head().claim
                site.burnt |= {claim.nonce} if claim is not None else set()

    # people, and the server for them

    def stop(self, site: Site) -> None:
        """In order, to be moved."""
        request = PlannedStop(
            operation=self.number(), seconds_max=2, power_off=self.chance.random() < 0.5, prove=False
        )
        self.ask(site, lambda: site.stops.start(self.machine, NAME, request))

    def cancel_stop(self, site: Site) -> None:
        self.ask(site, lambda: site.stops.cancel(self.machine))

    def fail_over(self, site: Site, old: OldMachine | None, *, planned: bool = False) -> None:
        writer = writer_of(site.seen, site.seen.head())
        ends = self.chance.choice(["", "", "", "commit", "roll back"])
        request = StartFailover(
            operation=self.number(),
            point="latest",
            kind=FailoverKind.PLANNED if planned else FailoverKind.UNPLANNED,
            confirm=(confirmations.stopped if planned else confirmations.taken_over)(NAME, writer),
            autostart=self.chance.random() < 0.5,
            old_machine=old,
            auto_commit_after=3600.0 if ends == "commit" else None,
            auto_roll_back_after=3600.0 if ends == "roll back" else None,
            confirm_timer={"commit": confirmations.kept, "roll back": confirmations.lost}.get(ends, str)(
                NAME
            ),
        )
        self.ask(site, lambda: site.failovers.start(self.machine, request))

    def change_point(self, site: Site, status: FailoverStatus) -> None:
        points = [str(point.number) for point in site.seen.points()] or ["1"]
        writes = self.chance.random() < 0.3
        request = ChangePoint(
            point=self.chance.choice(points), with_writes=writes, confirm=confirmations.lost(NAME)
        )
        self.ask(site, lambda: site.failovers.change_point(status.id, request))

    def commit(self, site: Site, status: FailoverStatus) -> None:
        request = CommitFailover(confirm=confirmations.kept(NAME))
        self.ask(site, lambda: site.failovers.commit(status.id, request))

    def roll_back(self, site: Site, status: FailoverStatus) -> None:
        request = RollBackFailover(confirm=confirmations.lost(NAME))
        self.ask(site, lambda: site.failovers.roll_back(status.id, request))

    def cancel_timer(self, site: Site, status: FailoverStatus) -> None:
        self.ask(site, lambda: site.failovers.cancel_timer(status.id, CancelTimer()))

    def reverse(self, site: Site) -> None:
        request = ReverseRequest(operation=self.number(), confirm=reversed_onto(NAME))
        if site.protects is None:
            return  # nobody can be asked whether it was committed: a person sees to it, as is told
        self.ask(site, lambda: site.reversals.start(self.machine, request))

    def take_back(self, site: Site) -> None:
        self.ask(site, lambda: site.reversals.take_back(self.machine))

    def retire(self, site: Site, status: FailoverStatus) -> None:
        request = RetireReplica(operation="0" * 32, confirm=retired(NAME))
        self.ask(site, lambda: site.kept.retire(status.id, request))

    def complete(self, site: Site, status: FailoverStatus) -> None:
        request = CompleteMigration(operation="0" * 32, confirm=migrated(NAME))
        self.ask(site, lambda: site.kept.complete_migration(status.id, request))

    def release(self, site: Site) -> None:
        held = site.fencing.get(self.machine)
        if held is not None and held.state is HeldState.HELD:
            request = Decide(epoch=held.epoch, confirm=confirmations.released(NAME, held.claimant))
            site.released.add(held.epoch)  # also where the gateway dies of it
            self.ask(site, lambda: site.fencing.release(self.machine, request))

    def discard(self, site: Site) -> None:
        held = site.fencing.get(self.machine)
        epoch = 0 if held is None else held.epoch
        request = Decide(epoch=epoch, confirm=removed(NAME, disks=True), remove="machine-and-disks")
        if self.chance.random() < 0.3:
            request = Decide(epoch=epoch, confirm=confirmations.discarded(NAME))
        self.ask(site, lambda: site.fencing.discard(self.machine, request))

    def check(self) -> None:
        """What must hold, whatever happened in whatever order."""
        check(self)
