"""Every call to the operating system fails once: the store in a directory, bases, the cache volume.

What was acknowledged stays; what was not is there whole or not at all; errors are those that are declared;
and the same work repeated succeeds.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secondsite.base import files
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB
from secondsite.journal import bases, store_local
from secondsite.journal.bases import BaseFailed, BaseImage, RawBase
from secondsite.journal.state import BaseState
from secondsite.journal.store import (
    ObjectExists,
    ObjectMissing,
    StagedElsewhere,
    StoreFull,
    StoreUnavailable,
)
from secondsite.journal.store_local import LocalStore
from secondsite.journal.sweep import garbage
from secondsite.model.ids import DiskId
from support.faulty_os import FaultyOs
from support.journal_model import Replica

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1800)]
KINDS = ["EIO", "ENOSPC", "short"]
MAY_PASS = (StoreFull, StoreUnavailable, StagedElsewhere)


def memory_directory(tmp_path: Path) -> Path:
    """Syncs cost nothing there, and nobody else fills it."""
    memory = Path("/dev/shm")
    return memory / f"secondsite-{os.getpid()}-{tmp_path.name}" if memory.is_dir() else tmp_path


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    directory = memory_directory(tmp_path)
    directory.mkdir(exist_ok=True)
    yield directory
    subprocess.run(["rm", "-rf", str(directory)], check=True)


class Script:
    """Some work with a store, each step repeated until it is done, and what must be there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.acknowledged: dict[str, bytes] = {}
        self.errors: list[SecondsiteError] = []

    def insist(self, work: Callable[[], object]) -> None:
        for _ in range(4):
            try:
                work()
            except MAY_PASS as error:
                self.errors.append(error)
                continue
            return
        raise AssertionError(f"it never worked: {self.errors}")

    def run(self) -> None:
        stores: list[LocalStore] = []
        self.insist(lambda: stores.append(LocalStore(self.root)))
        store = stores[-1]
        self.insist(lambda: self.put(store, "log/0", b"record" * 50))
        self.insist(lambda: self.put(store, "log/1", b"another" * 50))
        self.insist(lambda: self.upload(store, "segments/a", random.Random(1).randbytes(9000)))
        self.insist(lambda: self.read(store))
        self.insist(lambda: self.remove(store, "log/0"))
        self.insist(lambda: self.put(store, "log/2", b"after"))
        store.close()

    def put(self, store: LocalStore, key: str, data: bytes) -> None:
        try:
            store.put(key, data)
        except ObjectExists:
            assert store.get(key, size_bytes_max=1 << 20) == data
        self.acknowledged[key] = data

    def upload(self, store: LocalStore, key: str, data: bytes) -> None:
        try:
            staged = store.stage(key)
            try:
                held = staged.read_back(0, staged.offset)
                if data[: len(held)] != held:
                    staged.discard()
                    staged = store.stage(key)
                for start in range(staged.offset, len(data), 2000):
                    staged.append(data[start : start + 2000])
                if staged.read_back(0, len(data)) == data:
                    staged.publish()
            finally:
                staged.close()
        except ObjectExists:
            pass
        assert read_whole(store, key) == data, "an object that is not what was staged"
        self.acknowledged[key] = data

    def read(self, store: LocalStore) -> None:
        for key, data in self.acknowledged.items():
            assert store.read(key, 1, len(data) - 1) == data[1:]
            assert store.size(key) == len(data)
        assert list(store.list("log/")) == [key for key in self.acknowledged if key.startswith("log/")]

    def remove(self, store: LocalStore, key: str) -> None:
        self.acknowledged.pop(key, None)
        store.delete(key)

    def check(self) -> None:
        """By a process that starts afterwards."""
        store = LocalStore(self.root)
        found = {
            key: read_whole(store, key) for prefix in ("log/", "segments/") for key in store.list(prefix)
        }
        assert found == self.acknowledged
        store.close()


def read_whole(store: LocalStore, key: str) -> bytes | None:
    try:
        return store.get(key, size_bytes_max=1 << 20)
    except ObjectMissing:
        return None


def replaced(patch: pytest.MonkeyPatch, faulty: FaultyOs) -> None:
    for module in (store_local, files, bases):
        patch.setattr(module, "os", faulty)


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_of_the_local_store_fails_once(
    kind: str, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = FaultyOs()
    with monkeypatch.context() as patch:
        replaced(patch, counting)
        Script(room / "count").run()
    assert counting.count > 40
    struck = set()
    for at in range(1, counting.count + 1):
        faulty = FaultyOs(at, kind)
        script = Script(room / f"{kind}-{at}")
        with monkeypatch.context() as patch:
            replaced(patch, faulty)
            script.run()
        try:
            script.check()
        except BaseException as error:
            error.add_note(f"{kind} at call {at} ({faulty.struck})")
            raise
        struck.add(faulty.struck)
    assert {"write", "fdatasync", "fsync", "link", "pread"} <= struck


def test_a_sync_that_fails_is_never_taken_for_done(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: a store that goes on after a failed sync is caught by the matrix above."""
    real = FaultyOs._call

    def forgiving(self: FaultyOs, name: str, function: Callable[..., object], *rest: object) -> object:
        try:
            return real(self, name, function, *rest)  # type: ignore[arg-type]
        except OSError:
            if name == "fdatasync":
                return None
            raise

    monkeypatch.setattr(FaultyOs, "_call", forgiving)
    with pytest.raises(AssertionError):
        test_every_call_of_the_local_store_fails_once("EIO", room, monkeypatch)


class FileReplica(Replica):
    """Bases are files."""

    directory: Path

    def open_base(self, disk: DiskId, size_bytes: int, known: BaseState | None) -> BaseImage:
        if known is not None:
            return RawBase(known.locator)
        self.made = getattr(self, "made", 0) + 1
        return RawBase.create(self.directory / f"{disk}-{self.made}.raw", size_bytes)

    def base_of(self, disk: DiskId) -> BaseImage | None:
        known = self.journal.state().base(disk)
        return RawBase(known.locator, read_only=True) if known else None


def on_files(directory: Path) -> FileReplica:
    replica = FileReplica(3)
    directory.mkdir()
    replica.directory = directory
    replica.claim()
    for _ in range(4):
        replica.random_point()
    replica.promote(replica.journal.points()[0].number)
    return replica


def promote_last(replica: Replica) -> int:
    """Repeated until it works; how often it failed."""
    target = replica.journal.head().point
    assert target is not None
    for failures in range(4):
        try:
            replica.promote(target.number)
        except BaseFailed:
            continue
        return failures
    raise AssertionError("the promotion never worked")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_of_a_promotion_into_files_fails_once(
    kind: str, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = FaultyOs()
    replica = on_files(room / "count")
    with monkeypatch.context() as patch:
        replaced(patch, counting)
        promote_last(replica)
    assert counting.count > 15
    failed = 0
    for at in range(1, counting.count + 1):
        replica = on_files(room / f"{kind}-{at}")
        with monkeypatch.context() as patch:
            replaced(patch, FaultyOs(at, kind))
            failed += promote_last(replica)
        try:
            replica.check()
            replica.random_point()
            replica.check()
        except BaseException as error:
            error.add_note(f"{kind} at call {at}")
            raise
    assert (failed > 0) == (kind != "short")


# -- a real volume without room -------------------------------------------------------------------


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root (./run test uses sudo)")
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(volume)], check=True)
    yield volume
    subprocess.run(["umount", "-l", str(volume)], check=True)


def test_a_journal_on_a_full_volume_keeps_its_points_and_goes_on_with_room(small_volume: Path) -> None:
    """Commits and merges meet a full store at every fill level; promotion and deletion free it again."""
    replica = Replica(5)
    replica.store = LocalStore(small_volume / "store")  # type: ignore[assignment]
    replica.open_journal()
    replica.claim()
    ballast = small_volume / "ballast"
    chance = random.Random(2)
    full = 0
    for _ in range(12):
        before = {disk: bytes(content) for disk, content in replica.now.items()}
        try:
            replica.random_point()
        except StoreFull:
            full += 1
            for disk, content in before.items():
                replica.now[disk][:] = content
            ballast.unlink(missing_ok=True)
        replica.check()
        listed = [point.number for point in replica.journal.points()]
        try:
            if len(listed) > 4:
                replica.merge(listed[0], listed[3])
        except StoreFull:
            full += 1
            ballast.unlink(missing_ok=True)
        replica.check()
        left = os.statvfs(small_volume)
        spare = left.f_bavail * left.f_frsize - chance.choice([0, 4, 12, 40]) * KIB
        if spare > 0:
            ballast.write_bytes(bytes(spare))
    assert full > 3, "the volume was never full"
    ballast.unlink(missing_ok=True)
    replica.promote(replica.journal.points()[-1].number)
    for name in garbage(replica.journal):
        replica.store.delete(name)
    replica.random_point()
    replica.check()
    replica.store.close()
