"""What a store can do, found out by doing it: servers say much, and some ignore what they do not know.

Everything happens below ``probe/`` under random names, which are removed again. What a journal cannot live
without makes a refusal; what is missed but endangers nothing makes the store degraded:

* refused: creating, reading, listing or deleting fails, or a name can be created twice: two gateways could
  both believe that their point is the one that counts;
* degraded: locks were asked for and the backend has none, or does not keep its word.
"""

from __future__ import annotations

import enum
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import NoReturn, Protocol, TypeVar, runtime_checkable

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import KIB
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore, StoreLocked, StoreUnavailable
from secondsite.journal.store_local import LocalStore
from secondsite.journal.store_object_errors import RequestFailed

T = TypeVar("T")

PROBE = "probe/"
RACERS = 4
BODY_BYTES = 192 * KIB
# A locked object of a probe stays until this has passed; the next probe removes it.
LOCK_SECONDS = 120.0


class Verdict(enum.StrEnum):
    """Whether a journal may live in a store."""

    FULL = "full"
    DEGRADED = "degraded"
    REFUSED = "refused"


class Finding(enum.StrEnum):
    """How one check ended."""

    YES = "yes"
    NO = "no"
    NOT_OFFERED = "not offered"
    NOT_PROVED = "not proved"


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    finding: Finding
    detail: str = ""


@dataclass(frozen=True)
class StoreAbilities:
    """What a store can do."""

    url: str
    verdict: Verdict
    reasons: tuple[str, ...]  # why not full
    checks: tuple[Check, ...]
    probed_at: str  # RFC 3339 UTC

    def finding(self, name: str) -> Finding | None:
        """How the check of this name ended; None when it was not reached."""
        return next((check.finding for check in self.checks if check.name == name), None)


@runtime_checkable
class Updates(Protocol):
    """A store that can replace objects under a condition; journals never do, so only the probe asks."""

    def tag(self, key: str) -> str:
        """What names the object as it is."""

    def update(self, key: str, data: bytes, *, tag: str) -> None:
        """Replace it if its tag is still `tag`. Raises ObjectExists when it is not."""


class ObjectLocks(Protocol):
    """A bucket's object lock."""

    def offers_locks(self) -> bool:
        """Whether the bucket has it."""

    def put_until(self, key: str, data: memoryview, until: datetime) -> None:
        """Create, locked until a time."""

    def shorten(self, key: str, until: datetime) -> None:
        """Ask for an earlier end."""

    def delete(self, key: str) -> None:
        """Remove for good. Raises StoreLocked."""


class _Stop(Exception):
    """A store without this cannot be used at all: what follows needs what failed."""


def probe_store(store: ObjectStore, *, lock_days: int = 0, clock: Clock | None = None) -> StoreAbilities:
    """Try everything a journal relies on, and the locks if `lock_days` asks for them.

    Raises:
        StoreUnavailable: nobody answers; nothing is known of the store.
    """
    clock = clock or SystemClock()
    probe = _Probe(store, clock)
    try:
        probe.clear_leftovers()
        for step in (probe.creates, probe.creates_under_a_race, probe.reads, probe.lists, probe.updates):
            step()
        probe.deletes()
        probe.locks(asked_for=lock_days > 0)
    except _Stop:
        pass
    finally:
        probe.clean_up()
    return StoreAbilities(
        url=store.url,
        verdict=Verdict.REFUSED if probe.refusals else Verdict.DEGRADED if probe.misses else Verdict.FULL,
        reasons=tuple(probe.refusals + probe.misses),
        checks=tuple(probe.checks),
        probed_at=clock.utc().strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


@dataclass
class _Probe:
    store: ObjectStore
    clock: Clock
    checks: list[Check] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here = f"{PROBE}{secrets.token_hex(8)}/"
        self.body = secrets.token_bytes(BODY_BYTES)
        self.made: set[str] = set()

    # -- steps ----------------------------------------------------------------------------------

    def creates(self) -> None:
        """Create; a second time with other bytes must be refused and change nothing."""
        key = self._name("once")
        self._must("create", lambda: self.store.put(key, self.body))
        try:
            self.store.put(key, b"another")
        except ObjectExists:
            kept = self._must("create", lambda: self.store.get(key, size_bytes_max=BODY_BYTES)) == self.body
            why = "a create that was refused changed the object all the same"
        else:
            kept, why = False, "a name can be created twice: it ignores the condition on creating"
        self._check("create once", kept, why)

    def creates_under_a_race(self) -> None:
        """Several at the same moment: one wins, and its bytes are what is there."""
        key = self._name("race")
        barrier = threading.Barrier(RACERS)
        won: list[bytes] = []
        trouble: list[SecondsiteError] = []

        def race(body: bytes) -> None:
            barrier.wait()
            try:
                self.store.put(key, body)
                won.append(body)
            except ObjectExists:
                pass
            except SecondsiteError as error:
                trouble.append(error)

        threads = [threading.Thread(target=race, args=(secrets.token_bytes(64),)) for _ in range(RACERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if trouble:
            self._fail("create in a race", trouble[0])
        there = self._must("create in a race", lambda: self.store.get(key, size_bytes_max=64))
        why = f"{len(won)} of {RACERS} writers at the same moment were told that they created a name"
        self._check("create in a race", won == [there], why)

    def reads(self) -> None:
        """A range out of the middle, and one that goes past the end."""
        key, start, length = self._name("once"), 70_001, 4_099
        part = self._must("ranged read", lambda: self.store.read(key, start, length))
        self._check("ranged read", part == self.body[start : start + length], "a range reads other bytes")
        try:
            self.store.read(key, BODY_BYTES - 10, 20)
        except EOFError:
            self._check("read past the end", True)
        else:
            self._check("read past the end", False, "it reads bytes beyond an object's end")

    def lists(self) -> None:
        """What was just written is listed, in order, also from the middle on."""
        names = sorted(self._name(f"list/{name}") for name in ("a/x", "a-b", "a.b", "a0/x", "a1", "b/c/d"))
        for name in reversed(names):
            self._must("list", partial(self.store.put, name, b""))
        prefix = f"{self.here}list/"
        found = self._must("list", partial(self._list, prefix))
        missing = len(set(names) - set(found))
        why = f"{missing} new names are missing in a listing" if missing else "names are listed out of order"
        self._check("list after write", found == names, why)
        rests = [self._must("list", partial(self._list, prefix, after)) for after in names]
        good = rests == [names[position:] for position in range(1, len(names) + 1)]
        self._check("list from a name", good, "a listing from a name on is not what follows it")

    def updates(self) -> None:
        """Conditional replacing: nothing rests on it, but whether conditions are ignored is worth knowing."""
        store = self.store
        if not isinstance(store, Updates):
            self.checks.append(Check("conditional update", Finding.NOT_OFFERED, "and not needed"))
            return
        key = self._name("update")
        self._must("conditional update", lambda: store.put(key, b"first"))
        tag = store.tag(key)
        good = self._outcome(lambda: store.update(key, b"second", tag=tag))
        stale = self._outcome(lambda: store.update(key, b"third", tag=tag))
        if stale is None:
            self.checks.append(Check("conditional update", Finding.NO, "a stale update is carried out"))
            self.misses.append(
                "it ignores conditions on updates; journals never update, so nothing is at risk"
            )
        elif good is not None:
            self.checks.append(Check("conditional update", Finding.NOT_OFFERED, "and not needed"))
        else:
            self._check("conditional update", True)

    def deletes(self) -> None:
        """A deleted name is gone and free; a store under a policy of its administrator refuses it."""
        key = self._name("once")
        try:
            self.store.delete(key)
        except StoreLocked as error:
            detail = f"a policy of the store locks objects until {error.fields['until']}"
            self.checks.append(Check("delete", Finding.NO, detail))
            return
        except SecondsiteError as error:
            self._fail("delete", error)
        try:
            self.store.size(key)
        except ObjectMissing:
            self._must("delete", lambda: self.store.put(key, b"again"))
            self._check("delete", True)
        else:
            self._check("delete", False, "a deleted object is still there")

    def locks(self, *, asked_for: bool) -> None:
        """Retention: a locked object can neither be removed nor have its lock cut short."""
        if any(check.name == "delete" and check.finding is Finding.NO for check in self.checks):
            self.checks.append(Check("object lock", Finding.YES, "by a policy of the bucket or container"))
            return
        locks: ObjectLocks | None = getattr(self.store, "versions", None)
        if locks is None:
            detail = "this kind of store has none that secondsite could set"
            if self.store.url.startswith("az:"):
                detail = "secondsite sets no policy on blobs, and none of the container refused deleting"
            self._no_locks(Finding.NOT_OFFERED, detail, asked_for=asked_for)
            return
        try:
            offered = locks.offers_locks()
        except (RequestFailed, SecondsiteError) as error:
            self._no_locks(Finding.NOT_PROVED, f"it could not be asked: {error}", asked_for=asked_for)
            return
        if not offered:
            detail = "the bucket was made without object lock"
            self._no_locks(Finding.NOT_OFFERED, detail, asked_for=asked_for)
            return
        why = self._lock_broken(locks)
        if why:
            self._no_locks(Finding.NO, why, asked_for=True)
        else:
            self._check("object lock", True)

    def _lock_broken(self, locks: ObjectLocks) -> str:
        """How a lock did not hold; empty when it did."""
        key = f"{self.here}locked"
        until = self.clock.utc() + timedelta(seconds=LOCK_SECONDS)
        refused = "a locked object cannot be made"
        try:
            locks.put_until(key, memoryview(b"locked"), until)
            refused = ""
            locks.shorten(key, self.clock.utc() + timedelta(seconds=1))
        except (RequestFailed, SecondsiteError) as error:
            if refused:  # else the refusal is what was hoped for
                return f"{refused}: {error}"
        else:
            return "a lock can be cut short"
        try:
            locks.delete(key)
        except StoreLocked:
            return "" if self.store.get(key, size_bytes_max=6) == b"locked" else "a locked object changed"
        return "a locked object can be deleted"

    # -- what the steps are made of ---------------------------------------------------------------

    def clear_leftovers(self) -> None:
        """Remove what probes left that were killed, or that locked an object."""
        for name in self._must("list", partial(self._list, PROBE)):
            self._outcome(partial(self.store.delete, name))

    def clean_up(self) -> None:
        """Remove what this one made; what is locked is the next probe's."""
        for name in sorted(self.made):
            self._outcome(partial(self.store.delete, name))
        if isinstance(self.store, LocalStore):
            self.store.remove_directories(self.here)

    def _list(self, prefix: str, after: str = "") -> list[str]:
        return list(self.store.list(prefix, after=after))

    def _name(self, name: str) -> str:
        key = self.here + name
        self.made.add(key)
        return key

    def _outcome(self, call: Callable[[], object]) -> SecondsiteError | None:
        try:
            call()
        except SecondsiteError as error:
            return error
        return None

    def _must(self, name: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except SecondsiteError as error:
            self._fail(name, error)

    def _fail(self, name: str, error: SecondsiteError) -> NoReturn:
        if isinstance(error, StoreUnavailable):
            self.made.clear()  # nobody answers: cleaning up would only wait
            raise error
        self._check(name, False, error.sentences()[0])
        raise _Stop

    def _check(self, name: str, good: bool, why: str = "") -> None:
        self.checks.append(Check(name, Finding.YES if good else Finding.NO, "" if good else why))
        if not good:
            self.refusals.append(why)
            raise _Stop

    def _no_locks(self, finding: Finding, detail: str, *, asked_for: bool) -> None:
        self.checks.append(Check("object lock", finding, detail))
        if asked_for:
            self.misses.append(f"points are not protected against deletion: {detail}")
