"""Digest tables when the gateway is killed at their marks, and when their volume is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.crash import MARKS
from secondsite.base.units import MIB
from secondsite.gateway.target import machinetables as module
from secondsite.gateway.target.fingerprints import Fingerprints
from secondsite.gateway.target.receive import AFTER_COMMIT, GatewayReceiver, PeerRule
from secondsite.journal import chain
from secondsite.journal.chain import Journal
from secondsite.journal.keys import DiskKey
from secondsite.journal.store_local import LocalStore
from secondsite.journal.store_memory import MemoryStore
from secondsite.model.ids import KeyId
from secondsite.transfer.memory import MemoryLink
from support.fingerprint_target import PEER, VAULT, content, fingerprint_of
from support.replica import ReplicaSource
from support.transfer import MACHINE, Events

pytestmark = pytest.mark.fault

POINTS = 4
FOLD_MARKS = [
    (chain.BEFORE_MANIFEST, 2),
    (chain.AFTER_MANIFEST, 1),
    (chain.AFTER_MANIFEST, 2),
    (AFTER_COMMIT, 2),
    (module.DURING_FOLD, 1),
    (module.DURING_FOLD, 3),
    (module.AFTER_FOLD, 2),
]


def test_the_marks_of_fingerprints_are_all_in_the_list() -> None:
    assert {mark for mark in MARKS if mark.startswith("fingerprint.")} <= {mark for mark, _ in FOLD_MARKS}


def _run(directory: Path, crash_at: str) -> int:
    environment = {
        **os.environ,
        "SECONDSITE_CRASH_AT": crash_at,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    command = [sys.executable, "-m", "support.fingerprint_target", str(directory), str(POINTS)]
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


@pytest.mark.parametrize(("mark", "which"), FOLD_MARKS)
def test_fingerprints_are_right_after_a_kill_anywhere(tmp_path: Path, mark: str, which: int) -> None:
    assert _run(tmp_path, f"{mark}:{which}") == -signal.SIGKILL, "the mark was never reached"
    assert _run(tmp_path, "") == 0  # it fails when a fingerprint became unknown
    journal = Journal(LocalStore(tmp_path / "store"), MACHINE, None)
    seed = DiskKey(KeyId("ab" * 16), b"k" * 32).digest_seed()
    points = journal.points()
    assert len(points) == POINTS
    for point in points:
        assert point.disks[0].fingerprint == fingerprint_of(content(journal, point.number), seed)


def test_a_full_cache_volume_costs_fingerprints_and_no_points(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(volume)], check=True)
    try:
        events = Events()
        fingerprints = Fingerprints(
            volume / "tables",
            vault=VAULT,
            bases_of=lambda journal: lambda disk: None,
            clock=SystemClock(),
            events=events,
        )
        receiver = GatewayReceiver(
            MemoryStore(),
            vault=None,
            peers={PEER.name: PeerRule()},
            clock=SystemClock(),
            events=events,
            fingerprints=fingerprints.of,
            on_commit=fingerprints.committed,
        )
        # the table of 64 MiB has 256 KiB: the first points fit its volume, some later one does not
        source = ReplicaSource(MemoryLink(receiver, PEER), VAULT, size_bytes=64 * MIB)
        source.begin()
        found = [source.point(60).disks[0].fingerprint for _ in range(4)]
        assert found[-1] is None
        assert len(receiver.journal(MACHINE).points()) == 4
        events.wait_for("fingerprint.unknown")
        fingerprints.close()
    finally:
        subprocess.run(["umount", str(volume)], check=True)
