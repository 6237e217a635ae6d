"""What every message of a gateway's control API stands on: its base, and the bounds of common fields."""

from __future__ import annotations

from typing import Annotated

import msgspec

# A machine has tens of disks and networks at most; names of machines and files fit 255 bytes.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
PathText = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2,128}$")]
# One second is the shortest interval hypervisors were measured to bear, a day the longest that makes sense.
Seconds = Annotated[float, msgspec.Meta(ge=1, le=86400)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of the control API's own structs."""
