"""Identities and the forms they may take; everything that enters from outside is parsed here."""

from __future__ import annotations

import re
import uuid
from typing import NewType

from secondsite.base.errors import InvalidInput

MachineId = NewType("MachineId", str)  # a UUID in lower-case canonical form
DiskId = NewType("DiskId", str)  # the disk's name on its machine, e.g. "vda"
SegmentId = NewType("SegmentId", str)  # 32 hexadecimal digits, random
KeyId = NewType("KeyId", str)  # 32 hexadecimal digits, random

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_HEX32 = re.compile(r"[0-9a-f]{32}\Z")


def machine_id(text: str) -> MachineId:
    """Parse a machine's UUID, any case."""
    try:
        return MachineId(str(uuid.UUID(text)))
    except ValueError:
        raise InvalidInput(what=f"machine id {text[:80]!r}", why="it is not a UUID") from None


def disk_id(text: str) -> DiskId:
    """Parse a disk's name: lower case letters, digits, dot, dash, underscore; at most 63 characters."""
    if not _NAME.match(text):
        raise InvalidInput(what=f"disk id {text[:80]!r}", why="it has characters a disk id cannot have")
    return DiskId(text)


def segment_id(text: str) -> SegmentId:
    """Parse a segment's id: 32 lower-case hexadecimal digits."""
    if not _HEX32.match(text):
        raise InvalidInput(what=f"segment id {text[:80]!r}", why="it is not 32 hexadecimal digits")
    return SegmentId(text)


def key_id(text: str) -> KeyId:
    """Parse a data key's id: 32 lower-case hexadecimal digits."""
    if not _HEX32.match(text):
        raise InvalidInput(what=f"key id {text[:80]!r}", why="it is not 32 hexadecimal digits")
    return KeyId(text)
