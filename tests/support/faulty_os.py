"""The operating system's calls, one of which fails: EIO, no room, a short read or write, a failed sync.

Stands in for `os` in the modules that own files. A sync that fails loses what was written since the one
before, as a kernel may that could not write its pages back and took them for clean afterwards
(https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

CALLS = {"open", "write", "pwrite", "pread", "preadv", "fsync", "fdatasync", "link", "ftruncate", "lseek"}
SYNCS = {"fsync", "fdatasync"}


class FaultyOs:
    """`strike_at` counts calls from 1; `kind` is an errno's name, or "short"."""

    def __init__(self, strike_at: int | None = None, kind: str = "EIO") -> None:
        self.strike_at, self.kind = strike_at, kind
        self.count = 0
        self.struck = ""
        self._unsynced: dict[int, list[tuple[int, bytes]]] = {}  # by file: what was there before
        self._appended: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real
        return lambda *arguments, **named: self._call(name, real, arguments, named)

    def _call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], named: Any) -> Any:
        self.count += 1
        if self.count == self.strike_at:
            self.struck = name
            if self.kind == "short":
                return self._short(name, real, arguments, named)
            if name in SYNCS:
                self._lose(arguments[0])
            raise OSError(getattr(errno, self.kind), os.strerror(getattr(errno, self.kind)))
        if name == "pwrite":
            fd, data, offset = arguments
            before = os.pread(fd, len(memoryview(data).cast("B")), offset)
            self._unsynced.setdefault(fd, []).append((offset, before))
        if name == "write":
            self._appended.add(arguments[0])
        if name == "open":
            self._unsynced.pop(fd := real(*arguments, **named), None)
            self._appended.discard(fd)
            return fd
        found = real(*arguments, **named)
        if name in SYNCS:
            self._unsynced.pop(arguments[0], None)
            self._appended.discard(arguments[0])
        return found

    def _short(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], named: Any) -> Any:
        if name in {"write", "pwrite"}:
            data = memoryview(arguments[1]).cast("B")
            return real(arguments[0], data[: max(1, len(data) // 2)], *arguments[2:])
        if name == "pread":
            return real(arguments[0], max(1, arguments[1] // 2), *arguments[2:])
        if name == "preadv":
            buffer = arguments[1][0]
            return real(arguments[0], (buffer[: max(1, len(buffer) // 2)],), *arguments[2:])
        return real(*arguments, **named)

    def _lose(self, fd: int) -> None:
        for offset, before in reversed(self._unsynced.pop(fd, [])):
            os.pwrite(fd, before, offset)
        if fd in self._appended:
            size = os.fstat(fd).st_size
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)  # zeros where the bytes were
