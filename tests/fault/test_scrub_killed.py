"""A real verification is killed at each of its marks: what it knew stays, and it is repeated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.base import crash
from secondsite.gateway.messages.verdicts import VerificationState
from secondsite.gateway.target import repair, scrub
from support.machines import SHOP
from support.replicas import Replica, extend_replica, make_replica
from support.scrub_process import Target

pytestmark = pytest.mark.fault

SECONDS_MAX = 60
VERIFY_MARKS = [scrub.BEFORE_RESULT, scrub.AFTER_RESULT, repair.AFTER_ASKED]
COMMIT_MARKS = [repair.AFTER_CLEARED]


def run(root: Path, what: str, crash_at: str = "") -> int:
    environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "support.scrub_process", str(root), what]
    return subprocess.run(command, env=environment, timeout=SECONDS_MAX, check=False).returncode


def test_every_mark_is_in_a_list() -> None:
    ours = {mark for mark in crash.MARKS if mark.startswith(("scrub.", "repair."))}
    assert ours == {*VERIFY_MARKS, *COMMIT_MARKS}


@pytest.fixture
def hurt(tmp_path: Path) -> Replica:
    """The second point's segment of vda is damaged."""
    replica = make_replica(tmp_path)
    ref = replica.journal.point(sorted(replica.contents)[1]).segments[0]
    path = replica.store_path / replica.journal.segment_name(ref)
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return replica


@pytest.mark.parametrize("mark", VERIFY_MARKS)
def test_a_killed_verification_is_repeated(hurt: Replica, tmp_path: Path, mark: str) -> None:
    assert run(tmp_path, "verify", mark) == -signal.SIGKILL
    target = Target(tmp_path)
    lost = sorted(hurt.contents)[1:]
    asked = target.repairs.missing(SHOP)
    status = target.scrubs.last(SHOP)
    assert bool(asked) == (mark != scrub.BEFORE_RESULT)
    assert (status is not None) == (mark == scrub.AFTER_RESULT)
    status = target.verify()
    assert status.state is VerificationState.COMPLETED
    assert status.report is not None
    assert list(status.report.lost) == lost
    assert target.repairs.missing(SHOP)
    assert not target.journal.state().pins


@pytest.mark.parametrize("mark", ["", *COMMIT_MARKS])
def test_a_killed_commit_forgets_nothing_that_is_missing(hurt: Replica, tmp_path: Path, mark: str) -> None:
    target = Target(tmp_path)
    target.verify()
    missing = target.repairs.missing(SHOP)
    # a point that brings back half of what is missing, among other things
    [(disk, where)] = missing.items()
    half = where.take(where.total_bytes // 8192 * 4096)[0]
    extend_replica(hurt, random.Random(2), also={disk: [(a, b - a) for a, b in half]})
    assert run(tmp_path, "commit", mark) == (-signal.SIGKILL if mark else 0)
    later = Target(tmp_path)
    later.commit()
    left = later.repairs.missing(SHOP)[disk]
    assert not len(left.intersect(half))
    assert left.total_bytes < where.total_bytes
    # and the next verification finds exactly that
    report = later.verify().report
    assert report is not None
    [found] = report.missing
    assert (found.disk, list(found.ranges)) == (disk, list(left))
