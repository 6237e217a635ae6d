"""A gateway's recovery role in a process of its own, to be killed at a mark.

``python -m support.recovery_process ROOT resume|start|clean-up`` prints the machine's test failovers as JSON;
see tests/fault/test_recovery_crash.py.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec

from secondsite.base.clock import SystemClock
from secondsite.base.parse import prepare_structs
from secondsite.gateway.messages.testfailover import CleanUp, StartTestFailover, TestFailoverState
from secondsite.gateway.recovery.exportdir import SocketAccess
from secondsite.gateway.recovery.exports import Exports
from secondsite.gateway.recovery.recover import Recovery
from secondsite.gateway.recovery.testfailover import STANDING
from secondsite.gateway.target.pins import Pins
from secondsite.journal.keys import VaultKey
from secondsite.journal.stores import open_store
from secondsite.model.machines import Mapping
from support.control import Events
from support.file_fabric import FileFabric
from support.machines import SHOP

SECONDS_MAX = 60
PASSING = {TestFailoverState.INITIATED, TestFailoverState.CLEANUP_INITIATED}


def recovery(root: Path) -> tuple[Recovery, FileFabric]:
    """The role over the directories below `root`: store, vault.key, state, sockets, fabric.json."""
    clock, events = SystemClock(), Events()
    store = open_store(str(root / "store"), create=False)
    fabric = FileFabric(root / "fabric.json")
    exports = Exports(
        directory=root / "state" / "exports",
        store_url=store.url,
        key_file=root / "vault.key",
        pins=Pins(store, VaultKey.load(root / "vault.key")),
        access=SocketAccess(),
        clock=clock,
        events=events,
    )
    made = Recovery(
        store=store,
        vault=VaultKey.load(root / "vault.key"),
        exports=exports,
        state_dir=root / "state",
        socket_dir=root / "sockets",
        fabric=fabric,
        mapping=Mapping(),
        clock=clock,
        events=events,
    )
    return made, fabric


def main(root: Path, action: str) -> None:
    prepare_structs()  # as a gateway does: a test's thread and this one decode the first record at once
    role, _ = recovery(root)
    role.resume()
    if action == "start":
        role.start_test_failover(SHOP, StartTestFailover(point="latest", network="isolated"))
    elif action == "clean-up":
        role.clean_up(SHOP, CleanUp(notes="looked fine", cleaned_up_by="tester"))
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + SECONDS_MAX
    while any(test.state in PASSING for test in role.test_failovers()) and clock.monotonic() < deadline:
        clock.wait(never, 0.05)
    assert PASSING.isdisjoint(STANDING & {test.state for test in role.test_failovers()})
    role.close()
    sys.stdout.write(msgspec.json.encode(role.test_failovers()).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
