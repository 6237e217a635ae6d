"""Where the lab keeps what is costly to make: downloaded packages, the guest's kernel, QEMU's capabilities.

It counts as installation: it stays when a lab goes, and every entry is named by what it was made from.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """``build/lab`` of a source checkout, else the user's cache directory; made when absent."""
    override = os.environ.get("SECONDSITE_LAB_CACHE")
    checkout = Path(__file__).resolve().parents[3]
    if override:
        directory = Path(override)
    elif (checkout / "pyproject.toml").is_file() and (checkout / "run").is_file():
        directory = checkout / "build" / "lab"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(home) / "secondsite" / "lab"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
