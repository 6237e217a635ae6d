"""What is noticed of a machine between captures: why it is off, and whether its images changed meanwhile.

QEMU's own tools keep the bitmaps of an image they write to, and the qcow2 format makes programs that know
nothing of bitmaps clear a bit that voids them ("autoclear"). What neither covers (a copy put in the image's
place, a program that writes past the format) changes the file's inode or its time of modification, so a
machine that is off is looked at every second, and an image that changed is read whole at the next start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import libvirt

from secondsite.model.ids import DiskId

WRITTEN_WHILE_OFF = "its image was written to while the machine was off"

_ENDED = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "it was shut down",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "it was switched off at its host",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "its hypervisor process ended without an orderly end",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "its hypervisor process failed to start or to go on",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "its memory was saved to a file and it will go on from there",
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT: "it was reverted to a snapshot",
}


def why_off(reason: int) -> str:
    """Why a machine is off, from libvirt's reason."""
    return _ENDED.get(reason, "it does not run")


def was_migrated(reason: int) -> bool:
    """Whether it is off because it runs at another host now."""
    return bool(reason == libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)


class Images:
    """Image files of one machine that is off, as they were when last looked at."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, ...]] = {}
        self._lying: dict[str, set[str]] = {}

    def look(self, images: Mapping[DiskId, str], checkpoints: Iterable[str]) -> None:
        """The machine is off: what changed since the last look does away with what `checkpoints` know."""
        names = set(checkpoints)
        for dev, path in images.items():
            now = _stamp(path)
            if now is not None and self._seen.setdefault(dev, now) != now:
                self._lying.setdefault(dev, set()).update(names)
                self._seen[dev] = now

    def ours(self, images: Mapping[DiskId, str]) -> None:
        """We wrote to them ourselves just now."""
        for dev, path in images.items():
            now = _stamp(path)
            if now is not None and dev in self._seen:
                self._seen[dev] = now

    def running(self) -> None:
        """The machine runs: it writes to its images itself."""
        self._seen.clear()

    def lies(self, dev: str, checkpoint: str) -> bool:
        """Whether the disk's image was changed since without its bitmap for the checkpoint knowing it."""
        return checkpoint in self._lying.get(dev, ())


def _stamp(path: str) -> tuple[int, ...] | None:
    # the time of the last change of the inode would do more, but libvirt changes owners at start and stop
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return None
