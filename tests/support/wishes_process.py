"""What a gateway does for its server, in a process of its own that is killed at a mark.

python -m support.wishes_process take FILE DOCUMENT     take a document (JSON) into the desired state
python -m support.wishes_process delete ROOT            delete the replica below ROOT, or go on with it
"""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.common.wanted import take
from secondsite.gateway.recovery.deletion import Deletions
from secondsite.transfer.desired import read_desired
from support.control import Events
from support.machines import SHOP
from support.recovery_process import recovery


def deletions(root: Path, events: Events) -> Deletions:
    """Over store, state and bases below `root`; its thread is not started."""
    made, _ = recovery(root)
    found = Deletions(
        made._store,
        made,
        root / "state" / "deletions",
        base_dir=root / "bases",
        desired=DesiredState(root / "state" / "desired.json"),
        clock=SystemClock(),
        events=events,
    )
    made.hidden = found.under_way
    return found


def main() -> None:
    what, path = sys.argv[1], Path(sys.argv[2])
    if what == "take":
        take(DesiredState(path), read_desired(sys.argv[3]).desired, "s1", {})
        return
    found = deletions(path, Events())
    if not found.all():
        found.begin(SHOP, confirm="shop", by="tester")
    found.work()


if __name__ == "__main__":
    main()
