"""Which process a worker is, so that others on its machine see at once that it is gone."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def own() -> str:
    """This process: the machine's boot, the namespace of process numbers, the number and when it began."""
    return f"{_place()} {os.getpid()} {_began(os.getpid())}"


def surely_gone(process: str) -> bool:
    """Whether that process ran here and is no more; False where it cannot be seen from here."""
    parts = process.split(" ")
    if len(parts) != 4 or f"{parts[0]} {parts[1]}" != _place() or not parts[2].isdigit():
        return False
    return _began(int(parts[2])) != parts[3]


def _place() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(_PROC / 'self/ns/pid').readlink().name}"


def _began(pid: int) -> str:
    """Clock ticks after the boot at which a process began (proc(5), stat's field 22); a zombie has ended."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return "never"
    return "ended" if fields[0] in "ZX" else fields[19]
