"""Sizes and times that many modules share, and how people write them."""

import re

from secondsite.base.errors import InvalidInput

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# The unit of change: the source drops 4 KiB sub-blocks whose hash did not change (architecture, data path 1).
SUB_BLOCK_BYTES = 4 * KIB
# QEMU's dirty bitmaps are the qcow2 cluster clamped to 4..64 KiB, 64 KiB by default; a block is at most that.
BLOCK_BYTES_MAX = 64 * KIB


def format_bytes(count: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """``0.0123`` -> ``12 ms``, ``75`` -> ``1:15``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s?(s|min|h|d)?\Z")
_UNITS = {None: 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """``90``, ``90s``, ``5min``, ``2h``, ``7d`` -> seconds. Raises InvalidInput."""
    found = _DURATION.match(text.strip())
    if found is None:
        raise InvalidInput(what=f"the time {text[:40]!r}", why="it is not a number with s, min, h or d")
    return float(found[1]) * _UNITS[found[2]]


_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)\s*(B|KiB|MiB|GiB|TiB|K|M|G|T)?\Z")
_SIZE_UNITS = {None: 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}


def parse_bytes(text: str) -> int:
    """``4GiB``, ``1.5 GiB``, ``512M`` (1024 each time) or plain bytes, as bytes. Raises InvalidInput."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise InvalidInput(what=repr(text), why="it is not a size like 512MiB or 4GiB")
    unit = match[2].removesuffix("iB") if match[2] else None
    return int(float(match[1]) * _SIZE_UNITS[unit or None])
