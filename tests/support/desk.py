"""A server's desk in memory, and a whole source gateway that follows it over a pair's link."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.enrolerrors import ServerUnreachable
from secondsite.gateway.common.enrolgate import open_gate
from secondsite.gateway.common.proofs import KeyProofs
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.main import Gateway
from secondsite.gateway.uplink.link import ServerLink
from secondsite.gateway.uplink.serverside import ServerSide
from secondsite.model.ids import MachineId
from secondsite.model.policies import ReplicationPolicy
from secondsite.transfer.desired import Desired, Received, WantedProtection
from secondsite.transfer.reports import Report, ReportAnswer
from support.gateway_pair import A, B, Pair


def wanted(machine: MachineId, revision: int = 1, **more: object) -> WantedProtection:
    policy = ReplicationPolicy(copy_frequency_seconds=1)
    given = {"item": "item-1", "name": "shop", "peer": B, "policy": policy, "revision": revision}
    return WantedProtection.model_validate({**given, "machine": machine, **more})


@dataclass
class Desk:
    """Implements `ServerPort`. The newest document is given to whoever has an older one."""

    document: Desired | None = None
    refused: dict[str, str] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    tell: tuple[str, ...] = ()
    away: bool = False
    asked: list[int] = field(default_factory=list)

    def want(self, *protections: WantedProtection, generation: int, **more: object) -> None:
        self.document = Desired.model_validate({"generation": generation, "protections": protections, **more})

    def desired(self, after: int) -> Received | None:
        self._up()
        self.asked.append(after)
        found = self.document
        if found is None or found.generation == after:
            return None
        return Received(found, dict(self.refused))

    def report(self, report: Report) -> ReportAnswer:
        self._up()
        self.reports.append(report)
        generation = self.document.generation if self.document is not None else 0
        return ReportAnswer(generation=generation, tell=self.tell)

    def close(self) -> None:
        pass

    def _up(self) -> None:
        if self.away:
            raise ServerUnreachable(server="https://stub", why="it is away")


def follow(
    pair: Pair, gateway: Gateway, desk: Desk, *, server: str = "s1", proved: bool = True
) -> ServerLink:
    """A link of the running gateway A to the desk; rounds are for the test to run."""
    assert gateway.parts is not None
    desired, protections = gateway.parts.desired, gateway.protections
    proofs = KeyProofs(pair.root / A / "state" / "recovery-key.json", SystemClock())
    if proved:
        proofs.keep(pair.vault.id, by="test", file="/copy")
    guard = RecoveryKeyGuard(
        pair.vault, own_file=None, store_root=None, clock=SystemClock(), name=A, proofs=proofs
    )
    side = ServerSide(
        A, desired, protections, None, guard, open_gate, None, rules={}, set_rules=None, events=gateway.events
    )
    side.set_peers(desired.everything().peers)
    return ServerLink(
        desk,
        desired,
        side.site(),
        server=lambda: server,
        clock=SystemClock(),
        events=gateway.events,
        chance=random.Random(1),
    )


def seconds(count: float) -> None:
    SystemClock().wait(threading.Event(), count)
