"""Whether a directory can take a seed: before anything of a long export is begun."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from secondsite.base.files import read_limited, remove_file, replace_file
from secondsite.base.units import MIB, format_bytes
from secondsite.gateway.common.seedmedia import SeedPathRefused
from secondsite.model.machines import Machine

# Segments shrink what they hold, rarely grow it by more than this.
_OVERHEAD = 1.01


def check_path(directory: Path, machine: Machine, ours: Sequence[Path], *, anywhere: bool) -> None:
    """Raise SeedPathRefused unless a seed of the machine may be written to the directory.

    ours: directories of this gateway (cache, state, store) it must not share a file system with, nor with
    the machine's disks, unless `anywhere`.
    """

    def refuse(why: str) -> SeedPathRefused:
        return SeedPathRefused(path=directory, why=why)

    if not directory.is_absolute() or ".." in directory.parts:
        raise refuse("it is not an absolute path")
    if not directory.is_dir():
        raise refuse("there is no such directory")
    probe = directory / ".secondsite-probe"
    try:
        replace_file(probe, b"x" * 4096)
        if read_limited(probe, size_bytes_max=MIB) != b"x" * 4096:
            raise refuse("what is written there is not read back")
        remove_file(probe)
        device = directory.stat().st_dev
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise refuse(f"it cannot be written to: {os.strerror(error.errno or 0)}") from error
    if not anywhere:
        for path in ours:
            if path.exists() and path.stat().st_dev == device:
                raise refuse(f"it lies on the file system of this gateway's {path}")
        for disk in machine.disks:
            image = Path(disk.location)
            if image.is_absolute() and image.exists() and image.stat().st_dev == device:
                raise refuse(f"it lies on the file system of the machine's disk {disk.id} ({image})")
    needed = int(_OVERHEAD * sum(_allocated(Path(disk.location), disk.size_bytes) for disk in machine.disks))
    if free < needed:
        raise refuse(f"it has {format_bytes(free)} free, and the disks hold {format_bytes(needed)}")


def _allocated(image: Path, size_bytes: int) -> int:
    """What a disk holds at most: what its image takes, where it is a file we can see."""
    try:
        status = image.stat()
    except OSError:
        return 0  # not for us to know: a full file system says so later
    return min(size_bytes, status.st_blocks * 512) if image.is_file() else size_bytes
