"""Sizes that many modules share."""

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
