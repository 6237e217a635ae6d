"""A gateway's failovers in a process of its own, to be killed at a mark.

``python -m support.failover_process ROOT resume|start|change|roll-back|commit`` prints the failovers as JSON;
see tests/fault/test_failover_crash.py.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec

from secondsite.base.clock import SystemClock
from secondsite.base.parse import prepare_structs
from secondsite.gateway.failover.service import Failovers
from secondsite.gateway.messages.failover import (
    ChangePoint,
    CommitFailover,
    FailoverStatus,
    RollBackFailover,
    StartFailover,
)
from secondsite.journal.keys import VaultKey
from secondsite.journal.stores import open_store
from secondsite.model import confirmations
from secondsite.model.failover import FailoverState
from secondsite.model.machines import Mapping
from support.control import Events
from support.machines import SHOP
from support.recovery_process import recovery

OPERATION = "ab" * 16
SECONDS_MAX = 60
RESTS = {
    FailoverState.COMPLETED,
    FailoverState.COMMITTED,
    FailoverState.ROLLED_BACK,
    FailoverState.FAILED,
}


def failovers(root: Path) -> Failovers:
    """The role over the directories below `root`, with the exports of the recovery role."""
    role, fabric = recovery(root)
    made = Failovers(
        us="gateway-b",
        store=open_store(str(root / "store"), create=False),
        vault=VaultKey.load(root / "vault.key"),
        exports=role._exports,
        recovery=role,
        state_dir=root / "state",
        socket_dir=root / "sockets",
        fabric=fabric,
        mapping=Mapping(networks={"lan": "default"}, default_pool="memory"),
        clock=SystemClock(),
        events=Events(),
    )
    role.resume()
    made.resume()
    return made


def main(root: Path, action: str) -> None:
    prepare_structs()  # as a gateway does, before it has threads: several decode the first record here
    role = failovers(root)
    if action == "start":
        confirm = confirmations.taken_over("shop", "a")
        role.start(SHOP, StartFailover(operation=OPERATION, point="latest", confirm=confirm))
    elif action == "change":
        role.change_point(OPERATION, ChangePoint(point="2", confirm=confirmations.lost("shop")))
    elif action == "roll-back":
        role.roll_back(OPERATION, RollBackFailover(confirm=confirmations.lost("shop")))
    elif action == "commit":
        role.commit(OPERATION, CommitFailover(confirm=confirmations.kept("shop")))
    clock, never = SystemClock(), threading.Event()
    deadline = clock.monotonic() + SECONDS_MAX

    def under_way(one: FailoverStatus) -> bool:
        return one.state not in RESTS or (one.delete_points and one.points_deleted_at is None)

    while any(under_way(one) for one in role.all()) and clock.monotonic() < deadline:
        clock.wait(never, 0.05)
    role.close()
    sys.stdout.write(msgspec.json.encode(role.all()).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
