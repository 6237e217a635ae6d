"""A base image's twin in memory, with the faults a test injects."""

from __future__ import annotations

import secrets
import threading

from secondsite.journal.store_memory import Faults
from secondsite.model.extents import Extents


class MemoryBase:
    """A base in memory whose unsynced writes a power cut may undo, each for itself.

    Which faults it may show: any operation may strike (see `Faults`); after a power cut each write since the
    last sync is there or not (`restarted` is told which).
    """

    format = "raw"

    def __init__(self, size_bytes: int, faults: Faults | None = None, *, content: bytes = b"") -> None:
        """All zeros, or `content`."""
        self.faults = faults or Faults()
        self._data = bytearray(content.ljust(size_bytes, b"\0"))
        self._synced = bytes(self._data)
        self._unsynced: list[tuple[int, bytes]] = []
        self._identity = secrets.token_hex(16)
        self._lock = threading.Lock()

    def restarted(self, survives: frozenset[int] = frozenset()) -> MemoryBase:
        """What is there after a power cut: the last sync and the unsynced writes numbered in `survives`."""
        other = MemoryBase(0)
        other._data, other._identity = bytearray(self._synced), self._identity
        for number, (offset, data) in enumerate(self._unsynced):
            if number in survives:
                end = min(offset + len(data), len(other._data))
                other._data[offset:end] = data[: max(0, end - offset)]
        other._synced = bytes(other._data)
        return other

    @property
    def unsynced_count(self) -> int:
        """How many writes a power cut could undo."""
        return len(self._unsynced)

    @property
    def locator(self) -> str:
        """No place."""
        return "memory"

    @property
    def identity(self) -> str:
        """Random."""
        return self._identity

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self._data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`."""
        with self._lock:
            buffer[:] = bytes(self._data[offset : offset + len(buffer)]).ljust(len(buffer), b"\0")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write inside the size."""
        assert offset + len(data) <= len(self._data), "writes stay inside the image"

        def effect() -> None:
            with self._lock:
                self._data[offset : offset + len(data)] = data
                self._unsynced.append((offset, bytes(data)))

        self.faults.operate(f"base write {offset}", effect)

    def zero(self, offset: int, length: int) -> None:
        """Write zeros."""
        length = min(length, len(self._data) - offset)
        if length > 0:
            self.write(offset, bytes(length))

    def resize(self, size_bytes: int) -> None:
        """Grow with zeros, or cut; counts as synced."""

        def effect() -> None:
            with self._lock:
                self._data = bytearray(bytes(self._data[:size_bytes]).ljust(size_bytes, b"\0"))
                self._synced = self._synced[:size_bytes].ljust(size_bytes, b"\0")

        self.faults.operate("base resize", effect)

    def sync(self) -> None:
        """What was written is kept from now on."""

        def effect() -> None:
            with self._lock:
                self._synced = bytes(self._data)
                self._unsynced = []

        self.faults.operate("base sync", effect)

    def data_extents(self, offset: int, length: int) -> Extents:
        """Everything may be data."""
        return Extents.of([(offset, min(offset + length, len(self._data)))])

    def close(self) -> None:
        """Nothing is held."""
