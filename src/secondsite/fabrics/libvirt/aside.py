"""What a recovered machine wrote, kept under another name when the machine itself is removed.

The overlays are renamed before the machine's record goes: a crash in between leaves a machine that is found
again, whose files are where they were or where they were to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt

from secondsite.base.crash import crash_point, mark
from secondsite.base.files import fsync_directory, remove_file
from secondsite.fabrics.base import KeptFile, Recovered
from secondsite.fabrics.libvirt import recover

BLOCK_BYTES = 512  # what st_blocks counts in

AFTER_RENAME = mark("aside.after-rename")


def keep(connection: Any, recovered: Recovered, label: str) -> list[KeptFile]:
    """See `Fabric.keep_overlays`."""
    domain = recover.ours(connection, recovered)
    if domain is not None:
        try:
            domain.destroy()
        except libvirt.libvirtError:
            if domain.isActive():
                raise  # its files are not moved beneath it
        for overlay in recovered.overlays:
            path = Path(overlay)
            if path.exists():
                path.rename(recover.kept(path, label))
                fsync_directory(path.parent)
            crash_point(AFTER_RENAME)
        recover.remove(connection, recovered)
    found = [recover.kept(Path(overlay), label) for overlay in recovered.overlays]
    return [KeptFile(str(path), path.stat().st_blocks * BLOCK_BYTES) for path in found if path.exists()]


def remove(paths: Sequence[str]) -> None:
    """See `Fabric.remove_kept`."""
    for path in map(Path, paths):
        if path.name.startswith(recover.FILE_PREFIX) and path.name.endswith(recover.KEPT):
            remove_file(path)
