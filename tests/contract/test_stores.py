"""One suite for every object store; a new backend joins by one line in `STORES`.

S3 is SeaweedFS, Azure Blob is Microsoft's emulator: real servers, started for the run.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.base.files import FileTooLarge
from secondsite.journal.store import (
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StagedElsewhere,
    StoreFull,
    StoreUnavailable,
)
from secondsite.journal.store_local import STAGING, LocalStore
from secondsite.journal.store_memory import Faults, MemoryStore, PowerCut
from secondsite.journal.stores import open_store


def _object_store(request: pytest.FixtureRequest, path: Path, server: str, scheme: str) -> ObjectStore:
    bucket = request.getfixturevalue(server).bucket()
    return open_store(f"{scheme}://{bucket}/{secrets.token_hex(8)}/here", staging=path / "staging")


STORES: dict[str, Callable[[pytest.FixtureRequest, Path], ObjectStore]] = {
    "local": lambda _, path: LocalStore(path / "store"),
    "memory": lambda *_: MemoryStore(),
    "s3": lambda request, path: _object_store(request, path, "seaweedfs", "s3"),
    "azure": lambda request, path: _object_store(request, path, "azurite", "az"),
}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return STORES[request.param](request, tmp_path)


def test_an_object_reads_back_whole_and_in_part(store: ObjectStore) -> None:
    store.put("a/b/c", b"0123456789")
    assert store.get("a/b/c", size_bytes_max=10) == b"0123456789"
    assert store.read("a/b/c", 3, 4) == b"3456"
    assert store.read("a/b/c", 10, 0) == b""
    assert store.size("a/b/c") == 10


def test_any_bytes_like_data_and_nothing_at_all(store: ObjectStore) -> None:
    store.put("a/empty", b"")
    store.put("a/array", bytearray(b"xy"))
    store.put("a/view", memoryview(b"abcd")[1:3])
    assert store.get("a/empty", size_bytes_max=0) == b""
    assert store.get("a/array", size_bytes_max=9) == b"xy"
    assert store.get("a/view", size_bytes_max=9) == b"bc"


def test_reading_past_the_end_is_an_error(store: ObjectStore) -> None:
    store.put("a", b"0123")
    with pytest.raises(EOFError):
        store.read("a", 2, 3)


def test_a_name_is_created_once(store: ObjectStore) -> None:
    store.put("a", b"first")
    with pytest.raises(ObjectExists):
        store.put("a", b"second")
    with pytest.raises(ObjectExists):
        store.stage("a")
    assert store.get("a", size_bytes_max=9) == b"first"


def test_what_is_missing_says_so(store: ObjectStore) -> None:
    for call in (
        lambda: store.get("a/b", size_bytes_max=1),
        lambda: store.read("a/b", 0, 1),
        lambda: store.size("a/b"),
    ):
        with pytest.raises(ObjectMissing):
            call()
    store.delete("a/b")
    assert list(store.list("a/")) == []


def test_reading_has_a_limit(store: ObjectStore) -> None:
    store.put("a", b"0123")
    with pytest.raises(FileTooLarge):
        store.get("a", size_bytes_max=3)


def test_deleted_names_can_be_created_again(store: ObjectStore) -> None:
    store.put("a/b", b"1")
    assert store.read("a/b", 0, 1) == b"1"
    store.delete("a/b")
    store.delete("a/b")
    with pytest.raises(ObjectMissing):
        store.read("a/b", 0, 1)
    store.put("a/b", b"2")
    assert store.read("a/b", 0, 1) == b"2"


KEYS = ["a-b/x", "a.b", "a/0", "a/1/x", "a/1/y", "a/10", "a/2", "a0", "ab/c/d", "b"]


def test_listing_is_in_byte_order_from_any_name(store: ObjectStore) -> None:
    for key in reversed(KEYS):
        store.put(key, b"")
    assert list(store.list("")) == sorted(KEYS)
    assert list(store.list("a/")) == ["a/0", "a/1/x", "a/1/y", "a/10", "a/2"]
    assert list(store.list("ab/c/")) == ["ab/c/d"]
    assert list(store.list("none/")) == []
    for after in [*KEYS, "a/1/", "a/", "a/1", "a/1/xx", "a/1/\x7f", "zz", ""]:
        assert list(store.list("", after=after)) == [k for k in sorted(KEYS) if k > after], after
        assert list(store.list("a/", after=after)) == [k for k in sorted(KEYS) if k > after and k[:2] == "a/"]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "a/./b",
        ".a",
        "a/.b",
        "A",
        "a b",
        "ä",
        "a\n",
        "a\0b",
        "a" * 129,
        "a/" * 300 + "a",
    ],
)
def test_names_that_leave_the_store_are_refused(store: ObjectStore, key: str) -> None:
    for call in (
        lambda: store.put(key, b""),
        lambda: store.stage(key),
        lambda: store.get(key, size_bytes_max=1),
        lambda: store.read(key, 0, 0),
        lambda: store.size(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidInput):
            call()
    for prefix in (key, key + "/"):
        if prefix not in {"", "a/"}:
            with pytest.raises(InvalidInput):
                list(store.list(prefix))


def test_a_staged_object_is_invisible_until_published_and_resumes(store: ObjectStore) -> None:
    staged = store.stage("a/b")
    staged.append(b"0123")
    staged.append(memoryview(b"45"))
    assert staged.offset == 6
    with pytest.raises(ObjectMissing):
        store.size("a/b")
    assert list(store.list("")) == []
    staged.close()
    staged = store.stage("a/b")
    assert (staged.offset, staged.read_back(2, 100)) == (6, b"2345")
    staged.append(b"6")
    staged.publish()
    assert store.get("a/b", size_bytes_max=99) == b"0123456"
    assert list(store.list("")) == ["a/b"]
    with pytest.raises(ObjectExists):
        store.stage("a/b")


def test_a_discarded_object_begins_anew(store: ObjectStore) -> None:
    staged = store.stage("a")
    staged.append(b"damaged")
    staged.discard()
    staged.discard()
    staged = store.stage("a")
    assert staged.offset == 0
    staged.append(b"whole")
    staged.publish()
    assert store.get("a", size_bytes_max=9) == b"whole"


def test_a_second_stager_takes_over(store: ObjectStore) -> None:
    first = store.stage("a")
    first.append(b"01")
    second = store.stage("a")
    assert second.offset == 2
    with pytest.raises(StagedElsewhere):
        first.append(b"x")
    with pytest.raises(StagedElsewhere):
        first.publish()
    first.discard()  # has nothing left to discard
    second.append(b"2")
    second.publish()
    assert store.get("a", size_bytes_max=9) == b"012"


def test_publishing_a_name_that_was_taken_meanwhile(store: ObjectStore) -> None:
    staged = store.stage("a")
    staged.append(b"mine")
    store.put("a", b"theirs")
    with pytest.raises(ObjectExists):
        staged.publish()
    store.delete("a")
    assert store.stage("a").offset == 0


@pytest.mark.parametrize("staged", [False, True])
def test_sixteen_creators_one_winner(store: ObjectStore, staged: bool) -> None:
    # SeaweedFS takes one to three seconds for sixteen at a time
    for turn in range(8 if store.url.startswith(("file:", "memory:")) else 2):
        key = f"race/{turn}"
        barrier = threading.Barrier(16)
        winners: list[int] = []

        def create(
            writer: int, key: str = key, barrier: threading.Barrier = barrier, winners: list[int] = winners
        ) -> None:
            barrier.wait()
            try:
                if staged and writer % 2:
                    part = store.stage(key)
                    part.append(b"%d" % writer)
                    part.publish()
                else:
                    store.put(key, b"%d" % writer)
                winners.append(writer)
            except (ObjectExists, StagedElsewhere):
                pass

        threads = [threading.Thread(target=create, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        content = int(store.get(key, size_bytes_max=99))
        assert content == winners[0] or (staged and content)


# -- the local store's own dangers ------------------------------------------------------------------


def test_staged_bytes_and_objects_survive_a_restart(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"1")
    store.stage("a/c").append(b"part")
    store.close()
    again = LocalStore(tmp_path)
    assert list(again.list("")) == ["a/b"]
    assert again.stage("a/c").offset == 4


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / STAGING / "tmp-dead").write_bytes(b"x")
    living = tmp_path / STAGING / "tmp-living"
    import fcntl

    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        LocalStore(tmp_path)
        assert living.exists()
    assert not (tmp_path / STAGING / "tmp-dead").exists()
    assert list(store.list("")) == []


def test_every_step_is_synced_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, then name, then directory; and new directories up to the root. Seen at the system calls."""
    store = LocalStore(tmp_path / "store")
    calls: list[str] = []

    def trace(name: str, target: Callable[..., object]) -> None:
        def traced(*args: object, **kwargs: object) -> object:
            path = args[0]
            if isinstance(path, int):
                path = Path(f"/proc/self/fd/{path}").readlink()
            calls.append(f"{name} {Path(str(path)).name}")
            return target(*args, **kwargs)

        monkeypatch.setattr(os, name, traced)

    for name in ("fdatasync", "fsync", "link"):
        trace(name, getattr(os, name))
    store.put("m/log/1", b"data")
    names = [c.split()[0] for c in calls]
    data, link = names.index("fdatasync"), names.index("link")
    assert data < link
    assert calls[-1] == "fsync log"
    assert link < len(calls) - 1
    assert calls.index("fsync store") < link
    assert calls.index("fsync m") < link
    calls.clear()
    store.put("m/log/2", b"data")
    assert [c.split()[0] for c in calls] == ["fdatasync", "link", "fsync"], "known directories cost nothing"


def test_a_name_that_was_seen_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed writer may leave a name unsynced: whoever reads it in a new process syncs it first."""
    LocalStore(tmp_path).put("m/1", b"x")
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    reads: list[Callable[[ObjectStore], object]] = [
        lambda s: s.get("m/1", size_bytes_max=1),
        lambda s: s.size("m/1"),
        lambda s: list(s.list("m/")),
    ]
    for read in reads:
        store = LocalStore(tmp_path)
        synced.clear()
        read(store)
        assert tmp_path / "m" in synced
        synced.clear()
        read(store)
        assert not synced


def test_an_exists_answer_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("m/0", b"")
    real, failing = os.fsync, [True]

    def fsync(fd: int) -> None:
        if failing[0] and Path(f"/proc/self/fd/{fd}").readlink() == tmp_path / "m":
            raise OSError(errno.EIO, "I/O error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreUnavailable):
        store.put("m/1", b"x")
    with pytest.raises(StoreUnavailable):
        store.put("m/1", b"x")  # it is there, but its name is not known to be durable: no ObjectExists yet
    with pytest.raises(StoreUnavailable):
        store.size("m/1")
    failing[0] = False
    with pytest.raises(ObjectExists):
        store.put("m/1", b"x")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreUnavailable)],
)
@pytest.mark.parametrize("call", ["write", "fdatasync", "link"])
def test_a_failing_volume_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: type[Exception]
) -> None:
    store = LocalStore(tmp_path)
    store.put("m/0", b"")
    staged = store.stage("m/2")
    staged.append(b"part")
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        patch.setattr(os, call, fail)
        with pytest.raises(expected):
            store.put("m/1", b"x")
        with pytest.raises(expected):
            (staged.append(b"more") if call == "write" else staged.publish())
    assert list(store.list("")) == ["m/0"]
    assert [p.name for p in (tmp_path / STAGING).iterdir() if p.name.startswith("tmp-")] == []
    store.put("m/1", b"x")
    if number == errno.EIO and call != "write":
        assert staged.offset == 0, "bytes whose sync failed are not trusted"
    staged.discard()


def test_a_full_disk_is_named_and_room_can_be_made(tmp_path: Path) -> None:
    """A real short write: the process's file size limit stands in for the volume's end."""
    store = LocalStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        staged = store.stage("b")
        staged.append(b"x" * 90_000)
        with pytest.raises(StoreUnavailable):
            staged.append(b"y" * 20_000)
        assert staged.offset == 90_000
        with pytest.raises(StoreUnavailable):
            store.put("a", b"x" * 100_001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    staged.append(b"z")
    staged.publish()
    assert store.get("b", size_bytes_max=1 << 20) == b"x" * 90_000 + b"z"
    assert list(store.list("")) == ["b"]


def test_many_readers_and_more_files_than_are_kept_open(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for n in range(300):
        store.put(f"s/{n:03d}", b"%03d" % n)
    wrong: list[str] = []

    def read(first: int) -> None:
        for n in range(600):
            key = f"s/{(first * 37 + n * 7) % 300:03d}"
            if store.read(key, 0, 3) != key[2:].encode():
                wrong.append(key)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    before = len(list(Path("/proc/self/fd").iterdir()))
    store.close()
    assert before - len(list(Path("/proc/self/fd").iterdir())) > 200
    assert store.read("s/001", 0, 3) == b"001"


def test_a_store_that_is_not_there_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        open_store((tmp_path / "typing-error").as_uri(), create=False)
    assert not (tmp_path / "typing-error").exists()


def test_urls(tmp_path: Path) -> None:
    url = LocalStore(tmp_path / "a b").url
    store = open_store(url)
    store.put("x", b"1")
    assert open_store(str(tmp_path / "a b")).get("x", size_bytes_max=1) == b"1"
    for bad in ("gs://bucket", "relative/path", "file://host/path"):
        with pytest.raises(InvalidInput):
            open_store(bad)


# -- the twin's faults ------------------------------------------------------------------------------


@pytest.mark.parametrize("landed", [False, True])
def test_the_twin_loses_what_was_not_acknowledged_and_nothing_else(landed: bool) -> None:
    faults = Faults()
    store = MemoryStore(faults)
    store.put("a", b"1")
    store.stage("part").append(b"0123456789")
    faults.cut_at, faults.landed = 3, landed
    with pytest.raises(PowerCut):
        store.put("b", b"2")
    with pytest.raises(PowerCut):
        store.get("a", size_bytes_max=1)
    after = store.restarted(staged_bytes_kept=4)
    assert list(after.list("")) == (["a", "b"] if landed else ["a"])
    assert after.stage("part").offset == 4


def test_the_twin_fails_once() -> None:
    store = MemoryStore()
    store.faults.fail_at = 1
    with pytest.raises(StoreUnavailable):
        store.put("a", b"1")
    store.put("a", b"1")
