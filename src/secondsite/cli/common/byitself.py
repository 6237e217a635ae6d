"""What a failover will do by itself, told before somebody decides."""

from __future__ import annotations

from secondsite.base.units import format_seconds, parse_seconds
from secondsite.model.failover import AUTO_COMMIT_BYTES_PER_SECOND


def told_end(commit_after: str | None, roll_back_after: str | None, bytes_per_second: int | None) -> str:
    """How it ends by itself, after times as they were typed; empty: a person ends it. Raises InvalidInput."""
    if commit_after:
        rate = (bytes_per_second or AUTO_COMMIT_BYTES_PER_SECOND) / 1e6
        when = format_seconds(parse_seconds(commit_after))
        return f"committed by itself {when} after its start, its disks copied at {rate:,.0f} MB/s at most"
    if roll_back_after:
        return f"rolled back by itself {format_seconds(parse_seconds(roll_back_after))} after its start"
    return ""
