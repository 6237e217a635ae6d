"""A target's control API over a real socket, store and export processes, with a made-up hypervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.control.server import serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.recovery.exportdir import SocketAccess
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.target.holds import Holds
from secondsite.gateway.target.pins import Pins
from secondsite.gateway.target.retention import Retention
from secondsite.gateway.target.retention_report import RetentionReports
from secondsite.gateway.target.scrub import Scrubs
from secondsite.model.machines import Mapping
from secondsite.model.retention import Policies
from support.control import Events, Ran, run_command
from support.replicas import Replica, make_replica


@dataclass
class Target:
    socket: Path
    replica: Replica
    recovery: Recovery
    fabric: MemoryFabric
    retention: Retention  # not started
    events: Events

    def run(self, *arguments: str | Path) -> Ran:
        return run_command(*arguments, gateway=self.socket)


@contextlib.contextmanager
def running_target(root: Path, *, points: int = 3) -> Iterator[Target]:
    replica = make_replica(root, points=points)
    clock, events, fabric, policies = SystemClock(), Events(), MemoryFabric(), Policies()
    (root / "sockets").mkdir()
    exports = Exports(
        directory=root / "state" / "exports",
        store_url=str(replica.store_path),
        key_file=replica.key_file,
        pins=Pins(replica.journal.store, replica.vault),
        access=SocketAccess(),
        clock=clock,
        events=events,
    )
    recovery = Recovery(
        store=replica.journal.store,
        vault=replica.vault,
        exports=exports,
        state_dir=root / "state",
        socket_dir=root / "sockets",
        fabric=fabric,
        mapping=Mapping(),
        clock=clock,
        events=events,
        policies=policies,
    )
    recovery.resume()
    retention = Retention(
        replica.journal.store, policies, vault=replica.vault, open_base=None, clock=clock, events=events
    )
    scrubs = Scrubs(
        replica.journal.store,
        replica.vault,
        state_dir=root / "state",
        work_dir=root,
        clock=clock,
        events=events,
    )
    scrubs.start()
    services = ControlServices(
        name="b",
        site="there",
        clock=clock,
        events=events,
        fabric=fabric,
        recovery=recovery,
        holds=Holds(recovery.journal, clock=clock, events=events, released=retention.look_now),
        reports=RetentionReports(recovery.journal, retention, clock=clock),
        scrubs=scrubs,
    )
    server = serve_control(services, root / "control.sock")
    try:
        yield Target(root / "control.sock", replica, recovery, fabric, retention, events)
    finally:
        server.stop()
        scrubs.close()
        retention.close()
        recovery.close()
        for export in exports.all():
            exports.end(export.id)
