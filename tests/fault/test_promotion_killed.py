"""kill -9 of a real promotion at each of its marks, on a real store and real base files.

Whatever was killed: every point above the floor reads as before, at once, by a process that starts anew;
and the promotion done again ends as if nothing had happened.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.base import crash
from secondsite.journal import bases, promote, store_local, sweep
from secondsite.journal.base_sums import differing, read_sums
from secondsite.journal.bases import BaseImage
from secondsite.journal.keys import encode_wrapped
from secondsite.journal.names import segments_prefix, wrapped_key_name
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.model.ids import DiskId
from support import promotion_process
from support.bases import wait_gone
from support.journal_model import DISKS, MACHINE, SUB, Replica

pytestmark = pytest.mark.fault

SECONDS_MAX = 60

# (mark, which pass of it): the second promotion passes them, over a base that holds the first
MARKS = [
    (promote.AFTER_FLOOR, 1),
    (bases.AFTER_BASE_WRITE, 1),
    (bases.AFTER_BASE_WRITE, 5),
    (promote.AFTER_WRITES, 1),
    (promote.AFTER_WRITES, 2),
    (promote.AFTER_SUMS, 1),
    (promote.AFTER_PROMOTED, 1),
    (sweep.DURING_DELETE, 1),
    (sweep.DURING_DELETE, 3),
    (store_local.AFTER_DELETE, 2),
    # the records it creates: the floor, sums of two disks, what is promoted
    *((mark, which) for mark in (store_local.AFTER_SYNC, store_local.AFTER_LINK) for which in (1, 2, 3, 4)),
]


class Site:
    """A copy of the prepared replica, and what its points must read."""

    def __init__(self, root: Path, replica: Replica, target: int, base_format: str) -> None:
        self.root, self.replica, self.target, self.base_format = root, replica, target, base_format

    def promote(self, crash_at: str = "") -> int:
        environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "support.promotion_process", str(self.root)]
        command += [str(self.target), self.base_format]
        return subprocess.run(command, env=environment, timeout=SECONDS_MAX, check=False).returncode

    def base(self, disk: DiskId) -> BaseImage:
        path = promotion_process.base_path(self.root, disk, self.base_format)
        return promotion_process.open_base(path, read_only=True)

    def check(self) -> None:
        """Every listed point, and every one above the floor is listed."""
        journal, keys = promotion_process.open_journal(self.root)
        floor = journal.state().floor
        expected = [number for number in sorted(self.replica.points) if number >= floor]
        assert [point.number for point in journal.points()] == expected
        for number in expected:
            with open_view(journal, number, keys, bases=self.base) as view:
                for disk, found in view.disks.items():
                    content = self.replica.points[number][disk]
                    assert found.read(0, found.size_bytes) == content, f"{disk} of point {number}"

    def check_done(self) -> None:
        """The bases hold the target and nothing of it is kept twice."""
        journal, keys = promotion_process.open_journal(self.root)
        state = journal.state()
        assert (state.floor, state.promoted) == (self.target, self.target)
        kept = {
            journal.segment_name(s) for point in journal.points_after(self.target) for s in point.segments
        }
        assert set(journal.store.list(segments_prefix(MACHINE))) == kept
        for disk in DISKS:
            content, base = self.replica.points[self.target][disk], self.base(disk)
            buffer = bytearray(base.size_bytes)
            base.read_into(0, memoryview(buffer))
            assert buffer == content
            key = keys.get(self.replica.keys[disk].id)
            sums = read_sums(journal.store, MACHINE, disk)
            assert list(differing(base, sums, key.digest_seed())) == []
            base.close()
        if self.base_format == "qcow2":
            wait_gone(self.root)
            for disk in DISKS:
                path = promotion_process.base_path(self.root, disk, "qcow2")
                subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)


@pytest.fixture(scope="module", params=["raw", "qcow2"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Seven points, the first promoted, one disk larger from the third on; the target is the fifth."""
    root = tmp_path_factory.mktemp("prepared")
    replica = Replica(11)
    replica.claim()
    for _ in range(2):
        replica.random_point()
    replica.resize(DISKS[1], SUB * 100, told=False)
    for _ in range(2):
        replica.add_point({disk: [[(2, 30, "random")], [(20, 20, "zero")]] for disk in DISKS})
    for _ in range(2):
        replica.random_point()
    store = LocalStore(root / "store")
    for name in replica.store.list(""):
        store.put(name, replica.store.get(name, size_bytes_max=1 << 24))
    replica.vault.save(root / "vault.key")
    for disk, key in replica.keys.items():
        store.put(wrapped_key_name(MACHINE, key.id), encode_wrapped(replica.vault, MACHINE, disk, key))
    numbers = sorted(replica.points)
    promotion_process.run(root, numbers[0], request.param)
    return Site(root, replica, numbers[4], request.param)


@pytest.fixture
def site(prepared: Site, tmp_path: Path) -> Site:
    root = tmp_path / "site"
    shutil.copytree(prepared.root, root)  # with the bases' extended attributes
    return Site(root, prepared.replica, prepared.target, prepared.base_format)


def test_the_marks_of_promotion_are_all_in_the_list() -> None:
    ours = {mark for mark in crash.MARKS if mark.startswith(("promote.", "base."))}
    assert ours == {mark for mark, _ in MARKS if not mark.startswith("store.")}


def test_nothing_is_killed(site: Site) -> None:
    site.check()
    assert site.promote() == 0
    site.check()
    site.check_done()


@pytest.mark.parametrize(("mark", "which"), MARKS)
def test_a_killed_promotion_costs_nothing_and_is_repeated(mark: str, which: int, site: Site) -> None:
    assert site.promote(f"{mark}:{which}") == -signal.SIGKILL, "the mark was never passed"
    site.check()
    assert site.promote() == 0
    site.check()
    site.check_done()
