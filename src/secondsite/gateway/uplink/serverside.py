"""How what a server wants reaches the parts of one gateway: checks, protections, ways, who may write here."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.config import GatewayConfig, ServerSettings
from secondsite.gateway.common.desired import DesiredState, Protection
from secondsite.gateway.common.enrolfiles import load_membership
from secondsite.gateway.common.enrolgate import Gate
from secondsite.gateway.common.wanted import SERVER, Taken
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.messages.gateway import ProtectionStatus, ReplicaStatus
from secondsite.gateway.recovery.deletion import Deletions
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.reverse.failingover import NO_FAILING_OVER, FailingOver
from secondsite.gateway.source.runtime import Protections
from secondsite.gateway.source.verbs import tell
from secondsite.gateway.target.receive import PeerRule
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.gateway.uplink.link import ServerDesk, ServerLink, Site
from secondsite.model.events import EventSink
from secondsite.model.ids import disk_id, machine_id
from secondsite.transfer.desired import Peer, WantedProtection

SetRules = Callable[[Mapping[str, PeerRule]], None]


class NothingToProtect(SecondsiteError):
    """A gateway that only stores."""

    code = "gateway.no-fabric"
    outcome = Outcome.REFUSED
    happened = "Gateway {gateway} protects no machines: its configuration names no fabric."
    cause = "It is a gateway that keeps replicas, or the item was meant for another one."
    action = "Protect the machine by the gateway of its own site, or add [fabric] to the configuration."


@dataclass(frozen=True)
class ServerSide:
    """The parts of one gateway that follow a server; a missing role is None."""

    name: str
    desired: DesiredState
    protections: Protections | None
    recovery: Recovery | None
    guard: RecoveryKeyGuard
    gate: Gate
    deletions: Deletions | None
    rules: Mapping[str, PeerRule]  # of the configuration: who may write here
    set_rules: SetRules | None  # None: nothing is received
    events: EventSink
    failing_over: FailingOver = NO_FAILING_OVER

    def site(self) -> Site:
        """As the link to the server uses it."""
        failovers, fencing = self.failing_over.failovers, self.failing_over.fencing
        return Site(
            self.statuses,
            self.replicas,
            self.check,
            self.took,
            self.set_peers,
            failovers=failovers.all if failovers is not None else lambda: (),
            held=fencing.all if fencing is not None else lambda: (),
        )

    def statuses(self) -> Sequence[ProtectionStatus]:
        """Of what is protected."""
        return self.protections.statuses() if self.protections is not None else ()

    def replicas(self) -> Sequence[ReplicaStatus]:
        """What is kept; with what stands in the way of a deletion the server wants."""
        found = self.recovery.replicas() if self.recovery is not None else []
        if self.deletions is None:
            return found
        why = {replica.machine: self.deletions.why_not(replica.machine) for replica in found}
        return [
            msgspec.structs.replace(r, error={"code": "replica.in-use", "happened": why[r.machine]})
            if why[r.machine] and r.error is None
            else r
            for r in found
        ]

    def check(self, wanted: WantedProtection, before: Protection | None) -> None:
        """Raise why an item cannot be protected so. What is protected already and stays as it is passes."""
        if self.protections is None:
            raise NothingToProtect(gateway=self.name)
        if before is None or before.item != wanted.item:
            self.gate()
            self.guard.require_proved()
        disks = None if wanted.disks is None else tuple(disk_id(disk) for disk in wanted.disks)
        left_out = tuple(disk_id(disk) for disk in wanted.left_out)
        if before is None or (before.disks, before.left_out) != (disks, left_out):
            self.protections.check(machine_id(wanted.machine), wanted.peer, disks, left_out)

    def took(self, taken: Taken) -> None:
        """Have what runs follow."""
        for before, now in taken.changed:
            assert self.protections is not None, "nothing is taken without"
            tell(self.events, before, now, SERVER)
            self.protections.follow(before, now)

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """The other gateways of the vault: where they listen, and that they may write here."""
        if self.protections is not None:
            self.protections.reroute({peer.name: peer.url for peer in peers if peer.name != self.name})
        if self.set_rules is not None:
            sources = {replica.source for replica in self.desired.everything().replicas.values()}
            told = {name: PeerRule() for name in {*(peer.name for peer in peers), *sources} - {self.name}}
            self.set_rules({**told, **self.rules})


def open_link(side: ServerSide, settings: ServerSettings, clock: Clock) -> ServerLink:
    """The link, to be started; what was taken before is followed from now on. Raises NotEnrolled."""
    clients = EnrolledClients(settings.directory)
    side.set_peers(side.desired.everything().peers)
    return ServerLink(
        ServerDesk(clients.open, clients.serial),
        side.desired,
        side.site(),
        server=lambda: load_membership(settings.directory).gateway_id,
        clock=clock,
        events=side.events,
        chance=random.Random(),  # noqa: S311 - spreads reports and retries, guards nothing
    )


def peer_rules(config: GatewayConfig) -> dict[str, PeerRule]:
    """Who may write here, as the configuration says."""
    rules = {}
    for peer in {*config.peers, *config.peer_machines}:
        listed = config.peer_machines.get(peer)
        rules[peer] = PeerRule(None if listed is None else frozenset(machine_id(text) for text in listed))
    return rules
