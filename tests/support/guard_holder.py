"""A gateway as the guard sees it: takes a lease in one of several ways, says so, and then does nothing more.

Run inside a site as ``python guard_holder.py OPTIONS`` (JSON); it is killed or stopped by a test.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.fabrics.base import Quiesce
from secondsite.fabrics.libvirt import quiesce
from secondsite.fabrics.libvirt.connection import Connection
from secondsite.fabrics.libvirt.fabric import LibvirtFabric
from secondsite.fabrics.libvirt.guard_client import GuardClient, GuardSettings
from secondsite.model.events import Severity
from secondsite.model.ids import MachineId


class Printed:
    """Events go to the log."""

    def emit(
        self,
        code: str,
        severity: Severity,
        text: str,
        *,
        machine: str | None = None,
        **data: str | int | float,
    ) -> None:
        print(code, text, flush=True)


def settings_of(options: dict[str, str]) -> GuardSettings:
    """The guard's, from the command line."""
    return GuardSettings(
        uri=options["uri"],
        socket=Path(options["guard"]),
        scratch_dir=Path(options["scratch"]),
        socket_dir=Path(options["sockets"]),
        event_log=Path(options["event_log"]),
    )


def main() -> None:
    options = json.loads(sys.argv[1])
    machine, seconds, clock = MachineId(options["machine"]), float(options["seconds"]), SystemClock()
    guard = GuardClient(settings_of(options), clock)
    guard.ensure()
    if options["what"] == "freeze":
        quiesce.FREEZE_SECONDS_MAX = seconds
        domain = Connection(options["uri"]).get().lookupByUUIDString(machine)
        frozen = quiesce.freeze(domain, machine, guard, clock)
        assert frozen.count > 0, frozen.problem
    else:
        fabric = LibvirtFabric(
            options["uri"],
            scratch_dir=options["scratch"],
            socket_dir=options["sockets"],
            guard=guard,
            clock=clock,
            events=Printed(),
        )
        source = fabric.open_source(machine)
        capture = source.capture(since=None, checkpoint=options["checkpoint"], quiesce=Quiesce.NONE)
        capture._lease.seconds = seconds  # type: ignore[attr-defined]
        capture._lease.renew()
    print("HOLDING", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
