"""Replicas over a real store, served by real processes: only the hypervisor is imaginary."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.messages.testfailover import (
    CleanUp,
    StartTestFailover,
    TestFailoverState,
    TestFailoverStatus,
)
from secondsite.gateway.recovery.exportdir import SocketAccess
from secondsite.gateway.recovery.exports import WEDGED_SECONDS, Exports
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.target.pins import Pins
from secondsite.model.machines import Mapping
from support.control import Events
from support.machines import SHOP
from support.replicas import Replica

SECONDS_MAX = 60


@dataclass
class Site:
    replica: Replica
    recovery: Recovery
    exports: Exports
    fabric: MemoryFabric
    events: Events

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        clock, never = SystemClock(), threading.Event()
        deadline = clock.monotonic() + SECONDS_MAX
        while not condition():
            assert clock.monotonic() < deadline, f"{what} did not come true; events: {self.events.all}"
            clock.wait(never, 0.02)

    def finish(self, status: TestFailoverStatus) -> TestFailoverStatus:
        passing = {TestFailoverState.INITIATED, TestFailoverState.CLEANUP_INITIATED}
        self.wait(lambda: self.recovery.test_failover(status.id).state not in passing, "an end")
        return self.recovery.test_failover(status.id)

    def start(
        self, point: str = "latest", network: str = "isolated", name: str | None = None
    ) -> TestFailoverStatus:
        request = StartTestFailover(point=point, network=network, name=name, requested_by="tester")
        return self.finish(self.recovery.start_test_failover(SHOP, request))

    def clean_up(self) -> TestFailoverStatus:
        return self.finish(self.recovery.clean_up(SHOP, CleanUp(notes="fine", cleaned_up_by="tester")))

    def pins(self) -> list[int]:
        return [pin.number for pin in self.replica.journal.state().pins]


def make_site(
    root: Path, replica: Replica, *, mapping: Mapping | None = None, wedged_seconds: float = WEDGED_SECONDS
) -> Site:
    clock, events, fabric = SystemClock(), Events(), MemoryFabric()
    (root / "sockets").mkdir(exist_ok=True)
    exports = Exports(
        directory=root / "state" / "exports",
        store_url=str(replica.store_path),
        key_file=replica.key_file,
        pins=Pins(replica.journal.store, replica.vault),
        access=SocketAccess(),
        clock=clock,
        events=events,
        wedged_seconds=wedged_seconds,
    )
    recovery = Recovery(
        store=replica.journal.store,
        vault=replica.vault,
        exports=exports,
        state_dir=root / "state",
        socket_dir=root / "sockets",
        fabric=fabric,
        mapping=mapping or Mapping(),
        clock=clock,
        events=events,
    )
    return Site(replica, recovery, exports, fabric, events)
