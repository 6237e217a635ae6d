"""Which file system a path lies on, for rule 10: scratch is local and never beside guest disks.

A full scratch file system pauses guests with an open backup job; a scratch that shares its space with guest
disks would take them all down with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_NETWORK_TYPES = {"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p", "afs", "ocfs2", "gfs2"}


@dataclass(frozen=True)
class FileSystem:
    """One mounted file system. `source` tells subvolumes of one btrfs or ZFS pool to be the same space."""

    device: int
    type: str
    source: str

    @property
    def remote(self) -> bool:
        """Whether its bytes are behind a network."""
        return self.type in _NETWORK_TYPES or self.type.startswith("fuse.")

    def shares_space_with(self, other: FileSystem) -> bool:
        """Whether filling one fills the other."""
        if self.device == other.device:
            return True
        if self.type != other.type:
            return False
        if self.type == "btrfs":
            return self.source == other.source
        return self.type == "zfs" and self.source.split("/")[0] == other.source.split("/")[0]


def _unescaped(text: str) -> str:
    # proc(5): space, tab, newline and backslash are written as octal escapes
    return text.encode().decode("unicode_escape") if "\\" in text else text


def file_system_of(path: Path, mountinfo: str | None = None) -> FileSystem:
    """The file system that holds `path`, which need not exist yet (then its nearest directory that does)."""
    real = Path(os.path.realpath(path))
    while not real.exists():
        real = real.parent
    best, kind, source = "", "", ""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount_point = _unescaped(left.split()[4])
        inside = str(real) == mount_point or f"{real}/".startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):
            best, (kind, source) = mount_point, (right.split()[0], _unescaped(right.split()[1]))
    return FileSystem(device=real.stat().st_dev, type=kind, source=source)


def scratch_reasons(scratch_dir: Path, images: Mapping[str, Iterable[str]]) -> list[str]:
    """Why `scratch_dir` must not be used; `images`: path of a guest's disk -> machines that use it."""
    scratch = file_system_of(scratch_dir)
    reasons = []
    if scratch.remote:
        reasons.append(f"the scratch directory {scratch_dir} is on a network file system ({scratch.type})")
    for path, names in sorted(images.items()):
        if Path(path).is_file() and scratch.shares_space_with(file_system_of(Path(path))):
            reasons.append(
                f"the scratch directory {scratch_dir} lies on the file system of guest disks ({path} of "
                f"{', '.join(sorted(names))}): filling it would stop them"
            )
            break  # one is enough to show why
    return reasons


def free_bytes(directory: Path) -> int:
    """Bytes an unprivileged writer (QEMU) can still put on the file system."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
