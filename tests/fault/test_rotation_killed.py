"""kill -9 of a real rotation of the vault key at each of its marks: every point reads, and it goes on."""

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
    chain,
    chain_load,
    episodes,
    key_rotation,
    log_pages,
    page_catalog,
    page_write,
    pages,
    store_local,
)
from secondsite.journal.chain import Journal
from secondsite.journal.episodes import EpisodeRecord, episodes_prefix, keep_episode, read_episodes
from secondsite.journal.key_rotation import is_resealed, uses
from secondsite.journal.keys import KeyRing, VaultKey, encode_wrapped
from secondsite.journal.names import log_pages_prefix, wrapped_key_name, wrapped_keys_prefix
from secondsite.journal.page_write import write_log_page
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from support.journal_model import MACHINE, Replica

pytestmark = pytest.mark.fault

SECONDS_MAX = 60
AT = "2026-01-01T00:00:00+00:00"

# (mark, which pass of it)
MARKS = [
    (key_rotation.AFTER_WRAP, 1),
    (key_rotation.AFTER_WRAP, 2),
    (episodes.AFTER_EPISODE, 1),
    (chain.AFTER_BOUNDARY, 1),
    (key_rotation.AFTER_STATE, 1),
    (key_rotation.DURING_PAGES, 1),
    (key_rotation.DURING_PAGES, 2),
    (key_rotation.DURING_DELETE, 1),
    (key_rotation.DURING_DELETE, 2),
    (key_rotation.DURING_DELETE, 3),
    # two wrappings, the episode, the boundary, the state, a page
    *((store_local.AFTER_SYNC, which) for which in range(1, 7)),
    *((store_local.AFTER_LINK, which) for which in range(1, 7)),
    (store_local.AFTER_DELETE, 1),
    (store_local.AFTER_DELETE, 4),
]
# of the gateways' part, see tests/fault/test_gateway_rotation.py
ELSEWHERE = {"key.after-source", "key.after-finish", "key.after-renewed"}


class Site:
    """A copy of the prepared store, with the file of the new key beside it."""

    def __init__(self, root: Path, replica: Replica) -> None:
        self.root, self.replica = root, replica
        self.vault = VaultKey.load(root / "vault.key")

    def rotate(self, crash_at: str = "") -> int:
        environment = {**os.environ, "SECONDSITE_CRASH_AT": crash_at, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "support.rotation_process", str(self.root)]
        return subprocess.run(command, env=environment, timeout=SECONDS_MAX, check=False).returncode

    def check(self) -> Journal:
        """All is there and reads right with the new key file, whatever was done of it."""
        store = LocalStore(self.root / "store")
        journal, keys = Journal(store, MACHINE, self.vault), KeyRing(store, MACHINE, self.vault)
        assert [point.number for point in journal.points()] == sorted(self.replica.points)
        for number, disks in self.replica.points.items():
            with open_view(journal, number, keys, bases=lambda disk: None) as view:
                for disk, found in view.disks.items():
                    assert found.read(0, found.size_bytes) == disks[disk], f"{disk} of point {number}"
        assert [kept.found.first for kept in read_episodes(journal)] == [2]
        return journal

    def check_done(self) -> None:
        """Nothing but the points of its time needs the old key, and nothing is there twice."""
        journal = self.check()
        assert is_resealed(journal, self.vault)
        old = uses(journal, self.vault)[self.vault.retired[0].id]
        assert (old.points, old.wrapped, old.copies, old.state) == (len(self.replica.points), 0, 0, False)
        boundaries = [
            record for record in journal.records() if getattr(record, "reason", "") == chain.KEY_ROTATION
        ]
        assert len(boundaries) == 1
        assert len(list(journal.store.list(wrapped_keys_prefix(MACHINE)))) == 2
        assert len(list(journal.store.list(episodes_prefix(MACHINE)))) == 1
        assert len(list(journal.store.list(log_pages_prefix(MACHINE)))) == 3


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the process that is killed."""
    for module in (pages, page_catalog, page_write):
        monkeypatch.setattr(module, "LEVELS", (4, 16))
    for module in (log_pages, chain_load, page_write):
        monkeypatch.setattr(module, "RECORDS", 4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Eleven points, an episode and pages of the log, all sealed with the first vault key."""
    root = tmp_path_factory.mktemp("prepared")
    replica = Replica(12)
    replica.claim()
    for _ in range(11):
        replica.random_point()
    store = LocalStore(root / "store")
    for name in replica.store.list(""):
        store.put(name, replica.store.get(name, size_bytes_max=1 << 24))
    for disk, key in replica.keys.items():
        store.put(wrapped_key_name(MACHINE, key.id), encode_wrapped(replica.vault, MACHINE, disk, key))
    journal = Journal(store, MACHINE, replica.vault)
    episode = EpisodeRecord(
        machine=MACHINE,
        first=2,
        number=3,
        clean=None,
        clean_at=None,
        found_at=AT,
        reason="because",
        critical=True,
        scrambled_bytes=1,
    )
    keep_episode(journal, episode)
    with pytest.MonkeyPatch.context() as small:
        for module in (log_pages, chain_load, page_write):
            small.setattr(module, "RECORDS", 4)
        while write_log_page(journal, without=set()):
            pass
    replica.vault.renew(AT).save(root / "vault.key")
    return Site(root, replica)


@pytest.fixture
def site(prepared: Site, tmp_path: Path) -> Site:
    root = tmp_path / "site"
    shutil.copytree(prepared.root, root)
    return Site(root, prepared.replica)


def test_the_marks_of_rotating_are_all_in_the_list() -> None:
    ours = {mark for mark in crash.MARKS if mark.startswith("key.")} - ELSEWHERE
    assert ours == {mark for mark, _ in MARKS if not mark.startswith("store.")}


def test_nothing_is_killed(site: Site) -> None:
    site.check()
    assert site.rotate() == 0
    site.check_done()


@pytest.mark.parametrize(("mark", "which"), MARKS)
def test_a_killed_rotation_costs_nothing_and_goes_on(mark: str, which: int, site: Site) -> None:
    assert site.rotate(f"{mark}:{which}") == -signal.SIGKILL, "the mark was never passed"
    site.check()
    assert site.rotate() == 0
    site.check_done()
