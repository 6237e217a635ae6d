"""What a target must have for an adoption: an image that nobody uses, and room for what it holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from secondsite.base.units import format_bytes
from secondsite.gateway.adopt.image import Image
from secondsite.gateway.messages.adopterrors import AdoptionNoRoom, ImageInUse
from secondsite.journal.errors import RecordTooLarge
from secondsite.journal.format import PROPOSAL_BYTES_MAX, REF_BYTES, SEGMENT_DATA_BYTES_MAX
from secondsite.model.machines import Machine, PowerState

# Segments shrink what they hold, rarely grow it by more than this.
_OVERHEAD = 1.01


class Site(Protocol):
    """What is asked of a site before an image is taken."""

    def require_unused(self, image: Image) -> None:
        """Raise ImageInUse when a machine that is not off has one of its files as a disk."""

    def require_room(self, size_bytes: int) -> None:
        """Raise AdoptionNoRoom unless so much fits the store, and later the bases."""


class TargetSite:
    """The site of a gateway."""

    def __init__(self, machines: Callable[[], Sequence[Machine]], volumes: Sequence[Path]) -> None:
        """machines: of the fabric. volumes: directories that will each hold all of a copy."""
        self._machines = machines
        self._volumes = tuple(volumes)

    def require_unused(self, image: Image) -> None:
        """See `Site`."""
        files = {Path(file.path).resolve() for file in image.files}
        for machine in self._machines():
            if machine.power is PowerState.OFF:
                continue
            for disk in machine.disks:
                location = Path(disk.location)
                if location.is_absolute() and location.resolve() in files:
                    why = f"the machine {machine.name} runs on it (disk {disk.id})"
                    raise ImageInUse(path=image.path, why=why)

    def require_room(self, size_bytes: int) -> None:
        """See `Site`."""
        wanted: dict[int, tuple[Path, int]] = {}
        for volume in map(_existing, self._volumes):
            device = volume.stat().st_dev
            before = wanted.get(device, (volume, 0))[1]
            wanted[device] = (volume, before + int(size_bytes * _OVERHEAD))
        for volume, needed in wanted.values():
            free = shutil.disk_usage(volume).free
            if free < needed:
                raise AdoptionNoRoom(path=volume, free=format_bytes(free), needed=format_bytes(needed))


def _existing(directory: Path) -> Path:
    """Where a directory is, or is going to be made."""
    return next(place for place in (directory, *directory.parents) if place.exists())


def require_room_in_a_record(name: str, size_bytes: int) -> None:
    """Raise RecordTooLarge unless the first point can name the copy's segments, and some more."""
    size = -(-size_bytes // SEGMENT_DATA_BYTES_MAX) * REF_BYTES * 5 // 4
    if size > PROPOSAL_BYTES_MAX:
        what = f"the copy of {name} ({format_bytes(size_bytes)})"
        raise RecordTooLarge(what=what, size=size, limit=PROPOSAL_BYTES_MAX)
