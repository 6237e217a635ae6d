"""A cpio archive ("newc") as the Linux kernel unpacks it, made without device nodes, root or another program.

Each entry: a header of 110 ASCII bytes (magic 070701, then 13 numbers of 8 hexadecimal digits), the name with
a final zero byte, padding to 4, the data, padding to 4; the last entry is called TRAILER!!!. Source: the
kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file or directory; everything belongs to root."""

    name: str
    mode: int
    data: bytes = b""


def directory(name: str) -> Entry:
    """A directory, readable by all."""
    return Entry(name, stat.S_IFDIR | 0o755)


def regular(name: str, data: bytes, *, executable: bool) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def encode_archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, in their order; a directory must precede what lies in it."""
    parts = [_encode(number, entry) for number, entry in enumerate(entries, 1)]
    parts.append(_encode(0, Entry("TRAILER!!!", 0)))
    return b"".join(parts)


def _encode(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), device number (2), name length, checksum (unused)
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)
