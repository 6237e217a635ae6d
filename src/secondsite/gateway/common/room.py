"""How much room there is for replicas: in the store, and where first copies become images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def free_bytes(directories: Iterable[Path]) -> int | None:
    """Free bytes of the fullest of these directories' volumes; None without any that can be asked."""
    found = []
    for directory in directories:
        try:
            status = os.statvfs(directory)
        except OSError:
            continue  # its volume is not there now: the store says so where it matters
        found.append(status.f_bavail * status.f_frsize)
    return min(found, default=None)
