"""kill -9 of the gateway at every mark of a test failover and of its clean-up.

Whatever the mark: the next gateway brings the record to a state with a name, nothing made for a failed one is
left anywhere (machine, network, export process, socket, pin), and a new attempt succeeds.
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
from secondsite.gateway.recovery import exports, testrunner
from secondsite.journal.chain import Journal
from secondsite.journal.stores import open_store
from support.control import command_environment
from support.file_fabric import FileFabric
from support.machines import SHOP
from support.recovery_process import recovery
from support.replicas import Replica, make_replica

pytestmark = pytest.mark.fault

TESTS = Path(__file__).resolve().parents[1]
START_MARKS = [
    testrunner.BEFORE_EXPORT,
    exports.AFTER_SPEC,
    exports.AFTER_PIN,
    exports.AFTER_PROCESS,
    testrunner.AFTER_EXPORT,
    testrunner.AFTER_NETWORK,
    testrunner.AFTER_BOOT,
    testrunner.AFTER_RECORD,
]
CLEAN_UP_MARKS = [
    testrunner.CLEAN_UP_INTENDED,
    testrunner.CLEAN_UP_REMOVED,
    testrunner.CLEAN_UP_NETWORK,
    exports.AFTER_KILL,
    exports.AFTER_UNPIN,
    testrunner.CLEAN_UP_EXPORT,
]


def test_every_mark_of_ours_is_tried() -> None:
    ours = {mark for mark in MARKS if mark.startswith(("export.", "test-failover.", "test-clean-up."))}
    assert ours == {*START_MARKS, *CLEAN_UP_MARKS}


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    (tmp_path / "sockets").mkdir()
    return make_replica(tmp_path)


def run(root: Path, action: str, *, crash_at: str = "") -> list[dict[str, Any]]:
    """Run the role once; with `crash_at` it must die there by SIGKILL and the answer is empty."""
    environment = command_environment(PYTHONPATH=f"{TESTS}", SECONDSITE_CRASH_AT=crash_at)
    done = subprocess.run(
        [sys.executable, "-m", "support.recovery_process", str(root), action],
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


def assert_nothing_is_left(root: Path) -> None:
    fabric = FileFabric(root / "fabric.json")
    assert fabric.recovered() == []
    assert [net.name for net in fabric.networks() if net.isolated] == []
    assert list((root / "state" / "exports").iterdir()) == []
    assert list((root / "sockets").iterdir()) == []
    assert Journal(open_store(str(root / "store")), SHOP, None).state().pins == ()
    assert serving(root) == []


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


def end_all(root: Path) -> None:
    for process in serving(root):
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("mark", START_MARKS)
def test_a_start_that_is_killed_leaves_nothing_and_can_be_repeated(mark: str, replica: Replica) -> None:
    root = replica.root
    try:
        run(root, "start", crash_at=mark)
        [failed] = run(root, "resume")
        assert failed["state"] == "Failed"
        assert failed["error"]["code"] == "test-failover.interrupted"
        assert_nothing_is_left(root)
        _, second = run(root, "start")
        assert (second["state"], second["error"]) == ("Completed", None)
        assert len(serving(root)) == 1, "an export outlives the gateway that began it"
        cleaned = run(root, "clean-up")[1]
        assert (cleaned["state"], cleaned["notes"]) == ("CleanupCompleted", "looked fine")
        assert_nothing_is_left(root)
    finally:
        end_all(root)


@pytest.mark.parametrize("mark", CLEAN_UP_MARKS)
def test_a_clean_up_that_is_killed_is_finished_by_the_next_gateway(mark: str, replica: Replica) -> None:
    root = replica.root
    try:
        assert run(root, "start")[0]["state"] == "Completed"
        run(root, "clean-up", crash_at=mark)
        [cleaned] = run(root, "resume")
        assert cleaned["state"] == "CleanupCompleted"
        assert (cleaned["notes"], cleaned["cleanedUpBy"]) == ("looked fine", "tester")
        assert_nothing_is_left(root)
    finally:
        end_all(root)


def test_a_standing_test_survives_the_gateway_and_its_lost_export_is_served_again(replica: Replica) -> None:
    root = replica.root
    try:
        assert run(root, "start")[0]["state"] == "Completed"
        [first] = serving(root)
        end_all(root)
        assert run(root, "resume")[0]["state"] == "Completed"
        [second] = serving(root)
        assert second != first
        pins = Journal(open_store(str(root / "store")), SHOP, None).state().pins
        assert [pin.number for pin in pins] == [replica.newest]
        role, fabric = recovery(root)
        assert len(fabric.recovered()) == 1
        assert len(role.exports(SHOP)) == 1
    finally:
        end_all(root)
