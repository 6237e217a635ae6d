"""The probe tells stores apart by what they do; each fault is one that a real server was seen to have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import SecondsiteError
from secondsite.journal.probe import PROBE, Finding, StoreAbilities, Verdict, probe_store
from secondsite.journal.store import ObjectExists, StoreLocked, StoreUnavailable
from secondsite.journal.store_local import LocalStore
from secondsite.journal.store_memory import MemoryStore
from secondsite.journal.store_object_errors import Answer, RequestFailed, StoreRefused
from secondsite.journal.stores import open_store
from support.object_servers import Azurite, SeaweedFS, environment


class Overwrites(MemoryStore):
    """s3rver: the condition on creating is silently ignored."""

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        self._objects.pop(key, None)
        self._keys = [name for name in self._keys if name != key]
        super().put(key, data)


class OverwritesAndSaysNo(Overwrites):
    """A refusal that comes after the harm is done."""

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        there = key in self._objects
        super().put(key, data)
        if there:
            raise ObjectExists(key=key, store=self.url)


class LosesRaces(MemoryStore):
    """Ceph's gateway with versions: one after the other is refused, but all of a race win."""

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        if "race" in key and key in self._objects:
            self._objects[key] = bytes(data)
            return
        super().put(key, data)


class ListsLate(MemoryStore):
    """Eventually consistent listings."""

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        yield from list(super().list(prefix, after=after))[:-1]


class ListsOutOfOrder(MemoryStore):
    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        yield from sorted(super().list(prefix, after=after), key=lambda name: name.split("/"))


class IgnoresAfter(MemoryStore):
    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        yield from super().list(prefix)


class ReadsWhole(MemoryStore):
    """A server that ignores the range."""

    def read(self, key: str, start: int, length: int) -> bytes:
        return super().read(key, 0, length)


class ReadsShort(MemoryStore):
    def read(self, key: str, start: int, length: int) -> bytes:
        return self._object(key)[start : start + length]


class KeepsDeleted(MemoryStore):
    def delete(self, key: str) -> None:
        pass


class Refuses(MemoryStore):
    """May read and list only."""

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        raise StoreRefused(key=key, store=self.url, why="AccessDenied")


class PolicyLocks(MemoryStore):
    """An Azure container with a time-based retention policy."""

    def delete(self, key: str) -> None:
        raise StoreLocked(key=key, store=self.url, until="2026-03-01T00:00:00Z")


REFUSED: dict[Callable[[], MemoryStore], tuple[str, str]] = {
    Overwrites: ("create once", "twice"),
    OverwritesAndSaysNo: ("create once", "changed the object"),
    LosesRaces: ("create in a race", "4 of 4 writers"),
    ListsLate: ("list after write", "1 new names are missing"),
    ListsOutOfOrder: ("list after write", "out of order"),
    IgnoresAfter: ("list from a name", "not what follows"),
    ReadsWhole: ("ranged read", "other bytes"),
    ReadsShort: ("read past the end", "beyond"),
    KeepsDeleted: ("delete", "still there"),
    Refuses: ("create", "AccessDenied"),
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_store_that_would_harm_a_journal_is_refused_with_the_reason(
    kind: Callable[[], MemoryStore],
) -> None:
    name, words = REFUSED[kind]
    found = probe_store(kind())
    assert found.verdict is Verdict.REFUSED
    assert found.finding(name) is Finding.NO
    assert words in " ".join(found.reasons)


def test_a_sound_store_is_full_and_left_empty(tmp_path: Path) -> None:
    memory, local = MemoryStore(), LocalStore(tmp_path)
    for store in (memory, local):
        found = probe_store(store)
        assert (found.verdict, found.reasons) == (Verdict.FULL, ())
        assert found.finding("object lock") is Finding.NOT_OFFERED
        assert list(store.list("")) == []


def test_what_a_killed_probe_left_is_removed() -> None:
    store = MemoryStore()
    store.put(f"{PROBE}0123/once", b"left")
    store.put("machines/x", b"not ours to touch")
    probe_store(store)
    assert list(store.list("")) == ["machines/x"]


def test_locks_that_are_asked_for_and_missing_degrade() -> None:
    found = probe_store(MemoryStore(), lock_days=30)
    assert found.verdict is Verdict.DEGRADED
    assert "not protected against deletion" in found.reasons[0]


def test_a_container_with_a_policy_counts_as_locked() -> None:
    found = probe_store(PolicyLocks(), lock_days=30)
    assert (found.verdict, found.finding("object lock")) == (Verdict.FULL, Finding.YES)


def test_a_store_that_does_not_answer_is_not_judged() -> None:
    store = MemoryStore()
    store.faults.fail_at = 3
    with pytest.raises(StoreUnavailable):
        probe_store(store)


class Locks:
    """A bucket's object lock, with faults."""

    def __init__(self, store: MemoryStore, fault: str = "") -> None:
        self.store, self.fault = store, fault

    def offers_locks(self) -> bool:
        if self.fault == "unknown":
            raise RequestFailed(Answer(403, "AccessDenied", "AccessDenied"))
        return self.fault != "none"

    def put_until(self, key: str, data: memoryview, until: datetime) -> None:
        if self.fault == "refuses":
            raise RequestFailed(Answer(400, "InvalidRequest", "InvalidRequest"))
        self.store.put(key, data)

    def shorten(self, key: str, until: datetime) -> None:
        if self.fault != "shortens":
            raise RequestFailed(Answer(403, "AccessDenied", "AccessDenied"))

    def delete(self, key: str) -> None:
        if self.fault == "deletes":
            self.store.delete(key)
        else:
            raise StoreLocked(key=key, store=self.store.url, until="later")


class Lockable(MemoryStore):
    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.versions = Locks(self, fault)


@pytest.mark.parametrize(
    ("fault", "finding", "words"),
    [
        ("none", Finding.NOT_OFFERED, "without object lock"),
        ("unknown", Finding.NOT_PROVED, "could not be asked"),
        ("refuses", Finding.NO, "cannot be made"),
        ("shortens", Finding.NO, "cut short"),
        ("deletes", Finding.NO, "can be deleted"),
    ],
)
def test_locks_are_proved_not_believed(fault: str, finding: Finding, words: str) -> None:
    found = probe_store(Lockable(fault), lock_days=1, clock=FakeClock())
    assert found.finding("object lock") is finding
    assert found.verdict is Verdict.DEGRADED
    assert words in found.reasons[0]
    assert probe_store(Lockable(), lock_days=1).verdict is Verdict.FULL


class Updatable(MemoryStore):
    def __init__(self, *, ignores: bool) -> None:
        super().__init__()
        self._ignores = ignores

    def tag(self, key: str) -> str:
        return str(hash(self._object(key)))

    def update(self, key: str, data: bytes, *, tag: str) -> None:
        if self.tag(key) != tag and not self._ignores:
            raise ObjectExists(key=key, store=self.url)
        self._objects[key] = data


def test_updates_that_ignore_their_condition_degrade() -> None:
    assert probe_store(Updatable(ignores=False)).finding("conditional update") is Finding.YES
    found = probe_store(Updatable(ignores=True))
    assert (found.verdict, found.finding("conditional update")) == (Verdict.DEGRADED, Finding.NO)


# -- real servers -----------------------------------------------------------------------------------

NEEDED = ["create once", "create in a race", "ranged read", "list after write", "list from a name", "delete"]


def _proved(found: StoreAbilities) -> None:
    assert [found.finding(name) for name in NEEDED] == [Finding.YES] * len(NEEDED)
    assert found.finding("conditional update") is Finding.YES


def test_seaweedfs_is_full_and_with_a_locking_bucket_locks(seaweedfs: SeaweedFS) -> None:
    plain = open_store(f"s3://{seaweedfs.bucket()}/probed")
    found = probe_store(plain)
    _proved(found)
    assert (found.verdict, found.finding("object lock")) == (Verdict.FULL, Finding.NOT_OFFERED)
    assert list(plain.list("")) == []
    assert probe_store(plain, lock_days=1).verdict is Verdict.DEGRADED
    locking = open_store(f"s3://{seaweedfs.make_bucket(locks=True)}/probed")
    found = probe_store(locking, lock_days=1)
    _proved(found)
    assert (found.verdict, found.finding("object lock")) == (Verdict.FULL, Finding.YES)
    left = list(locking.list(""))
    assert len(left) == 1, "the locked object stays until its time has come"
    assert probe_store(locking, lock_days=1).verdict is Verdict.FULL


def test_azurite_is_full_and_its_locks_cannot_be_proved(azurite: Azurite) -> None:
    store = open_store(f"az://{azurite.bucket()}/probed")
    found = probe_store(store)
    _proved(found)
    assert (found.verdict, found.finding("object lock")) == (Verdict.FULL, Finding.NOT_OFFERED)
    assert list(store.list("")) == []
    assert probe_store(store, lock_days=1).verdict is Verdict.DEGRADED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "mistyped"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret"}, "AccessDenied"),
    ],
)
def test_wrong_credentials_are_named(seaweedfs: SeaweedFS, change: dict[str, str], words: str) -> None:
    with environment({**seaweedfs.environment(), **change}):
        found = probe_store(open_store(f"s3://{seaweedfs.bucket()}/probed"))
    assert found.verdict is Verdict.REFUSED
    assert words in found.reasons[0]
    assert "mistyped" not in str(found)


def test_wrong_credentials_of_azure_are_named(azurite: Azurite) -> None:
    with environment({**azurite.environment(), "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}):
        found = probe_store(open_store(f"az://{azurite.bucket()}/probed"))
    assert found.verdict is Verdict.REFUSED
    assert "AuthorizationFailure" in found.reasons[0]


@pytest.mark.parametrize(("server", "scheme"), [("seaweedfs", "s3"), ("azurite", "az")])
def test_a_bucket_that_does_not_exist_is_named(
    request: pytest.FixtureRequest, server: str, scheme: str
) -> None:
    request.getfixturevalue(server)
    store = open_store(f"{scheme}://there-is-none")
    assert "does not exist" in probe_store(store).reasons[0]
    with pytest.raises(StoreRefused):
        list(store.list(""))
    with pytest.raises(SecondsiteError):
        store.put("a", b"")
