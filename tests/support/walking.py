"""What makes walks of a model cheap and the same each time: work in turns, a clock, deaths, what was taken.

Nothing waits and no thread is started: what a gateway begins in a thread is done when the walk says so, or
stays undone while other things happen; what polls is put off after some looks, and done again later.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from secondsite.base import files
from secondsite.base.clock import FakeClock
from secondsite.gateway.failover import service as failover
from secondsite.gateway.reverse import kept
from secondsite.gateway.reverse import service as reverse
from secondsite.gateway.source import plannedstop
from secondsite.model import failover as tables

LOOKS_MAX = 12  # of one piece of work, until it is put off

Pair = tuple[str, str]  # a state and an event, as people read them


class Killed(BaseException):
    """The process ended here."""


class PutOff(BaseException):
    """It waits for something: done again when its gateway has its next turn."""


class TurnClock(FakeClock):
    """A fake clock by which nothing waits for ever."""

    looks = 0

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.looks += 1
        if self.looks > LOOKS_MAX:
            raise PutOff
        return super().wait(event, seconds)


class Turns:
    """`workthreads.WorkThreads` without threads: what was begun is done in `wait`, in its order."""

    def __init__(self, what: str, failed: Callable[[str, Exception], None]) -> None:
        self._failed = failed
        self._begun: dict[str, Callable[[], object]] = {}
        self._at: set[str] = set()  # what is being done

    def busy(self, identity: str) -> bool:
        return identity in self._begun or identity in self._at

    def begin(self, identity: str, work: Callable[[], object]) -> None:
        self._begun[identity] = work

    def wait(self, identity: str | None = None, *, seconds_max: float | None = None) -> None:
        put_off = {}
        while found := [
            known for known in self._begun if identity in (None, known) and known not in self._at
        ]:
            known, work = found[0], self._begun.pop(found[0])
            self._at.add(known)
            try:
                work()
            except PutOff:
                put_off[known] = work
            except Exception as error:  # noqa: BLE001 - as the root of a thread does
                self._failed(known, error)
            finally:
                self._at.discard(known)
        self._begun = {**put_off, **self._begun}


class Deaths:
    """Where a gateway dies: at the next pass of the mark `at`. Keeps which marks were passed."""

    def __init__(self) -> None:
        self.at = ""
        self.died = ""
        self.passed: set[str] = set()

    def __call__(self, name: str) -> None:
        self.passed.add(name)
        if name == self.at:
            self.at, self.died = "", name
            raise Killed


class MemoryDirectory:
    """Of `Path` what directories of records need; `base.files` puts into it what it would sync."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._files: dict[str, bytes] = {}
        self._names: dict[str, MemoryDirectory] = {}

    def __truediv__(self, name: str) -> MemoryDirectory:
        if name not in self._names:
            self._names[name] = MemoryDirectory(f"{self.name}/{name}")
            self._names[name]._files = self._files
        return self._names[name]

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: MemoryDirectory) -> bool:
        return self.name < other.name

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2].removesuffix(".json")

    def mkdir(self, **_: object) -> None:
        """It is there."""

    def glob(self, _pattern: str) -> list[MemoryDirectory]:
        return [each for each in self._names.values() if each.name in self._files]

    def put(self, data: bytes) -> None:
        self._files[self.name] = data

    def read(self) -> bytes:
        if self.name not in self._files:
            raise FileNotFoundError(self.name)
        return self._files[self.name]


@contextmanager
def _records_in_memory() -> Iterator[None]:
    """What is durable at once: an order of syncs is not what a walk is about."""
    with (
        mock.patch.object(files, "replace_file", lambda path, data: path.put(data)),
        mock.patch.object(files, "read_limited", lambda path, *, size_bytes_max: path.read()),
        mock.patch.object(files, "remove_leftovers", return_value=0),
    ):
        yield


@contextmanager
def in_turns(deaths: Deaths, modules: tuple[ModuleType, ...]) -> Iterator[None]:
    """Gateways made within, with a `MemoryDirectory`, work in turns and die at the marks of `modules`."""
    with ExitStack() as stack:
        stack.enter_context(_records_in_memory())
        for module in modules:
            stack.enter_context(_set(module, "crash_point", deaths))
        for module in (failover, kept, plannedstop, reverse):
            stack.enter_context(_set(module, "WorkThreads", Turns))
        yield


@contextmanager
def _set(where: ModuleType, name: str, value: object) -> Iterator[None]:
    with mock.patch.object(where, name, value):
        yield


class _Row(dict[Any, Any]):
    """One row of a table, which notes what is taken from it."""

    def __init__(self, row: Mapping[Any, Any], state: enum.Enum, taken: set[Pair]) -> None:
        super().__init__(row)
        self._state, self._taken = state, taken

    def __getitem__(self, event: enum.Enum) -> Any:
        found = super().__getitem__(event)
        self._taken.add((str(self._state), str(event)))
        return found

    def get(self, event: enum.Enum, default: Any = None) -> Any:
        found = super().get(event, default)
        if event in self:
            self._taken.add((str(self._state), str(event)))
        return found


_TABLES: tuple[Any, ...] = (tables.TABLE, tables.HELD_TABLE, tables.KEPT_TABLE)


def all_pairs() -> set[Pair]:
    """Every transition of the tables of failovers, held sources and kept replicas."""
    return {(str(state), str(event)) for table in _TABLES for state, row in table.items() for event in row}


@contextmanager
def transitions_taken() -> Iterator[set[Pair]]:
    """What was taken of them within, by the product's own code."""
    taken: set[Pair] = set()
    former = [dict(table) for table in _TABLES]
    try:
        for table in _TABLES:
            table.update({state: _Row(row, state, taken) for state, row in table.items()})
        yield taken
    finally:
        for table, rows in zip(_TABLES, former, strict=True):
            table.update(rows)
