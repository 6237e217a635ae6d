"""kill -9 of the target's gateway within a failover, with real processes for what it serves.

Before a machine runs and after it is gone; all marks by `./run fencing`, and each time on the twin
(tests/unit/gateway/test_failover_model.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from secondsite.base.crash import MARKS
from secondsite.gateway.failover import claim as failoverclaim
from secondsite.gateway.failover import run as failoverrun
from secondsite.gateway.recovery import exports
from secondsite.journal import chain, drop
from secondsite.journal.chain import Journal
from secondsite.journal.names import machine_prefix
from secondsite.journal.stores import open_store
from support.control import command_environment
from support.file_fabric import FileFabric
from support.machines import SHOP
from support.replicas import make_replica

pytestmark = pytest.mark.fault

TESTS = Path(__file__).resolve().parents[1]
FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
# mark, what is killed there, and what is left to be done: (epoch, machines, kept, exports)
ENDS = {"start": (2, 1, 0, 1), "change": (2, 1, 0, 1), "roll-back": (3, 0, 0, 0), "commit": (2, 0, 1, 0)}
PICKED = [
    ("start", chain.AFTER_CLAIM),
    ("roll-back", failoverrun.ROLL_BACK_REMOVED),
    ("commit", drop.DURING_OBJECTS),
]
ALL = [
    ("start", exports.AFTER_PROCESS),
    *(("start", mark) for mark in sorted(MARKS) if mark.startswith(("failover.after-", "failover.before-"))),
    *((kind, mark) for kind in ENDS for mark in sorted(MARKS) if mark.startswith(f"failover.{kind}-")),
    *(("commit", mark) for mark in sorted(MARKS) if mark.startswith("drop.")),
]


def run(root: Path, action: str, *, crash_at: str = "") -> list[dict[str, Any]]:
    environment = command_environment(PYTHONPATH=f"{TESTS}", SECONDSITE_CRASH_AT=crash_at)
    done = subprocess.run(
        [sys.executable, "-m", "support.failover_process", str(root), action],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=environment,
    )
    if crash_at:
        assert done.returncode == -signal.SIGKILL, f"{crash_at} was not reached: {done.stderr}"
        return []
    assert done.returncode == 0, done.stderr
    return list(msgspec.json.decode(done.stdout))


def serving(root: Path) -> list[int]:
    """Processes that serve an export below `root`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"secondsite.gateway.recovery.export" in command and str(root).encode() in command:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("action", "mark"), [*PICKED, *ALL] if FULL else PICKED)
def test_a_gateway_that_is_killed_in_a_failover_goes_on(action: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir()
    make_replica(tmp_path)
    try:
        if action != "start":
            assert run(tmp_path, "start")[0]["state"] == "Completed"
        run(tmp_path, action, crash_at=mark)
        claimed = Journal(open_store(str(tmp_path / "store")), SHOP, None).head().epoch
        fabric = FileFabric(tmp_path / "fabric.json")
        assert claimed >= 2 or not fabric.recovered(), "nothing runs that was not claimed"
        [status] = run(tmp_path, "resume")
        if status["state"] == "Failed":
            assert mark in ("failover.after-pin", failoverclaim.BEFORE_CLAIM)
            [status] = run(tmp_path, action)
        assert status.get("error") is None
        journal = Journal(open_store(str(tmp_path / "store")), SHOP, None)
        fabric = FileFabric(tmp_path / "fabric.json")
        seen = (journal.head().epoch, len(fabric.recovered()), len(fabric.kept), len(serving(tmp_path)))
        assert seen == ENDS[action]
        assert len(journal.state().pins) == 2 * ENDS[action][3]
        if action == "change":
            assert status["point"] == 2
        assert (journal.points() == []) == (action == "commit")
        if action == "commit":
            assert status["pointsDeletedAt"]
            left = {name.split("/")[2] for name in journal.store.list(machine_prefix(SHOP))}
            assert left == {"keys", "log", "state", "writers"}, "no segment, span or sum of a deleted point"
    finally:
        for process in serving(tmp_path):
            os.kill(process, signal.SIGKILL)
