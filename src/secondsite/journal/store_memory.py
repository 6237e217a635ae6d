"""The store's twin in memory, with the faults a test injects.

Which faults it may show, so that a failing test means a bug and not noise: any call may fail before it took
effect (`StoreUnavailable`) or, for a create, after it (the acknowledgement is lost); the power may be cut at
any call; then staged bytes are lost from any position on, and an object whose creation did not return is
there whole or not at all. An object whose creation returned is never lost.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator

from secondsite.base.files import FileTooLarge
from secondsite.journal.store import (
    ObjectExists,
    ObjectMissing,
    StagedElsewhere,
    StoreUnavailable,
    check_key,
    check_prefix,
)


class PowerCut(BaseException):
    """The simulated machine lost power; not an `Exception`, so that no handler can go on after it."""


class Faults:
    """Counts the operations of the simulated devices and strikes at the chosen one.

    Shared by a store and base images, so that one number enumerates every moment of a commit or promotion.
    """

    def __init__(self) -> None:
        self.count = 0
        self.cut_at: int | None = None  # the operation at which the power goes
        self.fail_at: int | None = None  # the operation that fails once
        self.landed = False  # whether the operation that is struck took effect
        self.dead = False
        self._lock = threading.Lock()

    def operate(self, what: str, effect: Callable[[], None]) -> None:
        """Carry out one operation, or strike instead of, or after, it."""
        with self._lock:
            if self.dead:
                raise PowerCut(what)
            self.count += 1
            cut, fail = self.count == self.cut_at, self.count == self.fail_at
            if not (cut or fail) or self.landed:
                effect()
            if cut:
                self.dead = True
                raise PowerCut(what)
            if fail:
                raise StoreUnavailable(store="memory://", key=what, why="injected failure")


class MemoryStore:
    """Objects in a dictionary; see the module's text for its faults."""

    def __init__(self, faults: Faults | None = None) -> None:
        """An empty store; `faults` is consulted at every operation that changes something."""
        self.faults = faults or Faults()
        self._objects: dict[str, bytes] = {}
        self._keys: list[str] = []  # sorted
        self._parts: dict[str, bytearray] = {}
        self._staged: dict[str, MemoryStagedObject] = {}
        self._lock = threading.RLock()

    def restarted(self, *, staged_bytes_kept: int = 0) -> MemoryStore:
        """What is there after a power cut; of staged objects at most `staged_bytes_kept` bytes."""
        other = MemoryStore()
        with self._lock:
            other._objects = dict(self._objects)
            other._keys = list(self._keys)
            other._parts = {k: v[:staged_bytes_kept] for k, v in self._parts.items()}
        return other

    @property
    def url(self) -> str:
        """``memory://``; cannot be opened by another process."""
        return "memory://"

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Create an object; see the protocol."""
        check_key(key)
        self.faults.operate(f"put {key}", lambda: self._create(key, bytes(data)))

    def _create(self, key: str, data: bytes) -> None:
        with self._lock:
            if key in self._objects:
                raise ObjectExists(key=key, store=self.url)
            self._objects[key] = data
            bisect.insort(self._keys, key)

    def stage(self, key: str) -> MemoryStagedObject:
        """Begin or resume an object; see the protocol."""
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise ObjectExists(key=key, store=self.url)
            earlier = self._staged.get(key)
            if earlier is not None:
                earlier.close()
            self._staged[key] = staged = MemoryStagedObject(
                self, key, self._parts.setdefault(key, bytearray())
            )
            return staged

    def get(self, key: str, *, size_bytes_max: int) -> bytes:
        """A whole object; see the protocol."""
        data = self._object(key)
        if len(data) > size_bytes_max:
            raise FileTooLarge(path=key, size_bytes=len(data), size_bytes_max=size_bytes_max)
        return data

    def read(self, key: str, start: int, length: int) -> bytes:
        """Part of an object; see the protocol."""
        data = self._object(key)
        if start + length > len(data):
            raise EOFError(f"{key} ends before {start + length}")
        return data[start : start + length]

    def size(self, key: str) -> int:
        """An object's size in bytes; see the protocol."""
        return len(self._object(key))

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Names in byte order; see the protocol."""
        check_prefix(prefix)
        if self.faults.dead:
            raise PowerCut("list")
        with self._lock:
            first = bisect.bisect_left(self._keys, prefix)
            first = max(first, bisect.bisect_right(self._keys, after))
            end = (
                bisect.bisect_left(self._keys, prefix[:-1] + "0") if prefix else len(self._keys)
            )  # "0" follows "/"
            found = self._keys[first:end]
        yield from found

    def delete(self, key: str) -> None:
        """Remove an object; see the protocol."""
        check_key(key)
        self.faults.operate(f"delete {key}", lambda: self._remove(key))

    def _remove(self, key: str) -> None:
        with self._lock:
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect.bisect_left(self._keys, key)]

    def _object(self, key: str) -> bytes:
        check_key(key)
        if self.faults.dead:
            raise PowerCut(f"read {key}")
        with self._lock:
            try:
                return self._objects[key]
            except KeyError:
                raise ObjectMissing(key=key, store=self.url) from None

    def close(self) -> None:
        """Nothing is held open."""

    # what staged objects need of their store
    def _let_go(self, staged: MemoryStagedObject, key: str, *, drop: bool) -> None:
        with self._lock:
            if self._staged.get(key) is staged:
                del self._staged[key]
                if drop:
                    self._parts.pop(key, None)


class MemoryStagedObject:
    """An object being written; made by `MemoryStore.stage`."""

    def __init__(self, store: MemoryStore, key: str, part: bytearray) -> None:
        self._store, self._key, self._part = store, key, part
        self._open = True
        self._lock = threading.Lock()  # an append under way ends before another stager takes over

    @property
    def offset(self) -> int:
        """Bytes staged so far."""
        return len(self._part)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end."""
        with self._lock:
            self._check()
            self._store.faults.operate(
                f"append {self._key}", lambda: self._part.extend(memoryview(data).cast("B"))
            )

    def read_back(self, start: int, length: int) -> bytes:
        """Bytes staged so far; short at the end."""
        self._check()
        return bytes(self._part[start : start + length])

    def publish(self) -> None:
        """Make it visible; see the protocol."""
        self._check()
        store = self._store
        try:
            store.faults.operate(f"publish {self._key}", lambda: store._create(self._key, bytes(self._part)))  # noqa: SLF001
        except ObjectExists:
            self._end(drop=True)
            raise
        self._end(drop=True)

    def discard(self) -> None:
        """Drop the staged bytes."""
        self._end(drop=True)

    def close(self) -> None:
        """Let go of it, keeping its bytes."""
        self._end(drop=False)

    def _check(self) -> None:
        if not self._open:
            raise StagedElsewhere(key=self._key, store=self._store.url)

    def _end(self, *, drop: bool) -> None:
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._store._let_go(self, self._key, drop=drop)  # noqa: SLF001
