"""A gateway's events and their link to the server, in a process to be killed at a mark.

``python -m support.eventlink_process FILES STATE COUNT``: FILES is where the gateway was enrolled into. It
says COUNT events, tells the server all there is, and ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.gateway.uplink.eventlink import EventLink, ServerEvents
from secondsite.model.events import Severity


def main(files: Path, state: Path, count: int) -> None:
    clock, kept = SystemClock(), EventFiles(state)
    events = EventLog(clock, files=kept)
    clients = EnrolledClients(files)
    for number in range(1, count + 1):
        events.emit("ship.link-trouble", Severity.WARNING, f"{kept.run[:8]} says {number}")
    EventLink(ServerEvents(clients.open, clients.serial), events, kept, clock).push_all()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
