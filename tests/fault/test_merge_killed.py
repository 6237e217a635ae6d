"""kill -9 of a real merge at each of its marks, on a real store: no point is lost, all is repeated."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.base import crash
from secondsite.journal import (
    chain_load,
    log_pages,
    merge,
    page_catalog,
    page_write,
    pages,
    store_local,
    sweep,
)
from secondsite.journal.keys import encode_wrapped
from secondsite.journal.names import merged_prefix, segments_prefix, spans_prefix, wrapped_key_name
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from support import promotion_process
from support.journal_model import DISKS, MACHINE, SUB, Replica

pytestmark = pytest.mark.fault

SECONDS_MAX = 60

# (mark, which pass of it)
MARKS = [
    (merge.AFTER_INTENT, 1),
    (merge.AFTER_SEGMENT, 1),
    (merge.AFTER_SEGMENT, 2),
    (merge.AFTER_SPAN, 1),
    (merge.AFTER_TAKEN_IN, 1),
    (sweep.DURING_RETIRE, 1),
    (sweep.DURING_RETIRE, 6),
    (sweep.AFTER_RETIRE, 1),
    (page_write.AFTER_PAGE, 1),
    (page_write.AFTER_PAGE, 3),
    (store_local.AFTER_DELETE, 3),
    # the intent, segments of two disks, the span, the state that takes it in
    *((mark, which) for mark in (store_local.AFTER_SYNC, store_local.AFTER_LINK) for which in (1, 2, 4, 5)),
]


class Site:
    """A copy of the prepared journal: of the points after `after` up to `last` one is to be left."""

    def __init__(self, root: Path, replica: Replica, after: int, last: int) -> None:
        self.root, self.replica, self.after, self.last = root, replica, after, last

    def merge(self, crash_at: str = "") -> int:
        environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "support.merge_process"]
        command += [str(self.root), str(self.after), str(self.last)]
        return subprocess.run(command, env=environment, timeout=SECONDS_MAX, check=False).returncode

    def check(self) -> bool:
        """All points of before or all of afterwards are listed, and read right; whether it is merged."""
        journal, keys = promotion_process.open_journal(self.root)
        listed = [point.number for point in journal.points()]
        before = sorted(self.replica.points)
        after = [number for number in before if not self.after < number < self.last]
        assert listed in (before, after)
        for number in listed:
            with open_view(journal, number, keys, bases=lambda disk: None) as view:
                for disk, found in view.disks.items():
                    content = self.replica.points[number][disk]
                    assert found.read(0, found.size_bytes) == content, f"{disk} of point {number}"
        return listed == after

    def check_done(self) -> None:
        """Merged, and the store holds nothing that no point names."""
        assert self.check()
        journal, _ = promotion_process.open_journal(self.root)
        state = journal.state()
        assert (state.merging, state.retired, len(state.spans)) == ("", (), 1)
        kept = {journal.segment_name(s) for point in journal.points_after(0) for s in point.segments}
        there = {*journal.store.list(segments_prefix(MACHINE)), *journal.store.list(merged_prefix(MACHINE))}
        assert there == kept
        assert len(list(journal.store.list(spans_prefix(MACHINE)))) == 1


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the process that is killed."""
    for module in (pages, page_catalog, page_write):
        monkeypatch.setattr(module, "LEVELS", (4, 16))
    for module in (log_pages, chain_load, page_write):
        monkeypatch.setattr(module, "RECORDS", 4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Twenty-five points, a disk smaller and larger in between; the third to the tenth become one."""
    root = tmp_path_factory.mktemp("prepared")
    replica = Replica(12)
    replica.claim()
    for _ in range(4):
        replica.random_point()
    replica.resize(DISKS[1], SUB * 20)
    replica.add_point({disk: [[(2, 12, "random")], [(13, 4, "zero")]] for disk in DISKS})
    replica.resize(DISKS[1], SUB * 50)
    for _ in range(18):
        replica.random_point()
    store = LocalStore(root / "store")
    for name in replica.store.list(""):
        store.put(name, replica.store.get(name, size_bytes_max=1 << 24))
    replica.vault.save(root / "vault.key")
    for disk, key in replica.keys.items():
        store.put(wrapped_key_name(MACHINE, key.id), encode_wrapped(replica.vault, MACHINE, disk, key))
    numbers = sorted(replica.points)
    return Site(root, replica, numbers[1], numbers[9])


@pytest.fixture
def site(prepared: Site, tmp_path: Path) -> Site:
    root = tmp_path / "site"
    shutil.copytree(prepared.root, root)
    return Site(root, prepared.replica, prepared.after, prepared.last)


def test_the_marks_of_merging_are_all_in_the_list() -> None:
    ours = {mark for mark in crash.MARKS if mark.startswith(("merge.", "page."))}
    assert ours == {mark for mark, _ in MARKS if not mark.startswith("store.")}


def test_nothing_is_killed(site: Site) -> None:
    assert not site.check()
    assert site.merge() == 0
    site.check_done()


@pytest.mark.parametrize(("mark", "which"), MARKS)
def test_a_killed_merge_costs_nothing_and_is_repeated(mark: str, which: int, site: Site) -> None:
    assert site.merge(f"{mark}:{which}") == -signal.SIGKILL, "the mark was never passed"
    site.check()
    assert site.merge() == 0
    site.check_done()
