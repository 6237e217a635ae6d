"""The directory a lab lies in: made, recognised and removed, and nothing that is not a lab's."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.files import create_file
from secondsite.lab.errors import LabRootForeign

# Holds nothing; says that all beside it was made by a lab and goes with it.
MARKER = "made-by-secondsite-lab"
FRESH_ROOT_PREFIX = "secondsite-lab-"
FRESH_ROOT_PARENT = Path("/var/tmp")  # not /tmp: a tmpfs on many machines, and this holds disks  # noqa: S108
# A fresh root younger than this may belong to a lab that is just starting.
STALE_SECONDS_MIN = 600.0


def fresh_root() -> Path:
    """A new root directory for a lab that ends with its process."""
    return Path(tempfile.mkdtemp(prefix=FRESH_ROOT_PREFIX, dir=FRESH_ROOT_PARENT))


def claim_root(root: Path) -> None:
    """Make `root`, or take an empty one, for a lab.

    Raises:
        LabRootForeign: it is somebody else's, or holds something.
    """
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    _require_ours(root)
    root.chmod(0o755)
    create_file(root / MARKER, b"")


def remove_root(root: Path) -> None:
    """Remove `root` with all that is in it, when a lab made it; absent is fine.

    Raises:
        LabRootForeign: it is no lab's; nothing was removed.
    """
    if root.exists() or root.is_symlink():
        _require_ours(root)
        shutil.rmtree(root)


def stale_roots() -> list[Path]:
    """Fresh roots old enough that, if no process of theirs runs, their lab ended without its clean-up."""
    oldest = SystemClock().utc().timestamp() - STALE_SECONDS_MIN
    roots = FRESH_ROOT_PARENT.glob(f"{FRESH_ROOT_PREFIX}*")
    return [root for root in roots if root.stat().st_mtime < oldest and root.stat().st_uid == os.geteuid()]


def _require_ours(root: Path) -> None:
    owner = root.lstat().st_uid
    # in a directory where everybody may write, somebody else may have laid a trap under the name
    if root.is_symlink() or not root.is_dir() or owner != os.geteuid():
        raise LabRootForeign(root=root, why=f"it is user id {owner}'s, or no directory")
    if any(root.iterdir()) and not (root / MARKER).is_file():
        raise LabRootForeign(root=root, why="it holds other things than a lab")
