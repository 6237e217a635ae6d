"""What the fields of a record may be: the rules behind the JSON of points and claims."""

from __future__ import annotations

import re

from secondsite.base.errors import InvalidInput
from secondsite.journal.format import SEGMENT_BYTES_MAX
from secondsite.journal.segment_head import DISK_BYTES_MAX
from secondsite.model.ids import disk_id, key_id, machine_id, segment_id
from secondsite.model.points import Claim, Point, Record, SegmentRef, Span
from secondsite.model.signals import signals_wrong

_HEX32, _HEX64 = re.compile(r"[0-9a-f]{32}\Z"), re.compile(r"[0-9a-f]{64}\Z")
SPAN_ID = re.compile(r"\d{16}-\d{16}-[0-9a-f]{8}\Z")
NUMBER_MAX = 10**16 - 1  # sixteen digits in its name
EPOCH_MAX = 10**8 - 1  # eight
NAME_CHARACTERS_MAX = 1024


def record_wrong(record: Record) -> str | None:
    """The first rule a record breaks, in words; None when it keeps them all."""
    try:
        if machine_id(record.machine) != record.machine:
            return "its machine id is not in lower case"
        if isinstance(record, Point):
            return _common_wrong(record) or _point_wrong(record)
    except InvalidInput as error:
        return str(error)
    return _common_wrong(record)


def _common_wrong(record: Record) -> str | None:
    if not 1 <= record.number <= NUMBER_MAX:
        return f"its number is {record.number}"
    if not 1 <= record.epoch <= EPOCH_MAX:
        return f"its epoch is {record.epoch}"
    if not _HEX64.match(record.previous_hash):
        return "the hash of the record before does not parse"
    if not _HEX32.match(record.nonce):
        return "its nonce does not parse"
    if isinstance(record, Claim) and isinstance(record.former, int) and not 0 <= record.former < record.epoch:
        return f"it follows epoch {record.former}"
    if isinstance(record, Claim) and isinstance(record.known, int) and not 0 <= record.known < record.epoch:
        return f"it knows of epoch {record.known}"
    names = [record.machine_name]
    names += [record.claimant, record.reason] if isinstance(record, Claim) else [record.checkpoint]
    if any(len(name) > NAME_CHARACTERS_MAX for name in names):
        return "a name is longer than any name"
    return None


def _point_wrong(point: Point) -> str | None:
    for disk in point.disks:
        disk_id(disk.id)
        key_id(disk.key_id)
        if not 0 <= disk.size_bytes <= DISK_BYTES_MAX:
            return f"its disk {disk.id} has {disk.size_bytes} bytes"
        if disk.fingerprint is not None and not _HEX32.match(disk.fingerprint):
            return f"the fingerprint of its disk {disk.id} does not parse"
    if point.measured is not None and (wrong := signals_wrong(point.measured)):
        return wrong
    return next(filter(None, map(_segment_wrong, point.segments)), None)


def span_wrong(span: Span) -> str | None:
    """The first rule a span breaks, in words; None when it keeps them all."""
    try:
        if machine_id(span.machine) != span.machine:
            return "its machine id is not in lower case"
        if not 1 <= span.first <= span.last <= NUMBER_MAX:
            return f"it replaces the records {span.first} to {span.last}"
        if not SPAN_ID.match(span.id) or not span.id.startswith(f"{span.first:016d}-{span.last:016d}-"):
            return "its id does not fit its numbers"
        return next(filter(None, map(_segment_wrong, span.segments)), None)
    except InvalidInput as error:
        return str(error)


def _segment_wrong(segment: SegmentRef) -> str | None:
    disk_id(segment.disk)
    segment_id(segment.id)
    if segment.key_id is not None:
        key_id(segment.key_id)
    if not _HEX64.match(segment.hash):
        return f"the hash of segment {segment.id} does not parse"
    if not 0 <= segment.data_bytes <= DISK_BYTES_MAX:
        return f"segment {segment.id} describes {segment.data_bytes} bytes"
    if not 0 <= segment.stored_bytes <= SEGMENT_BYTES_MAX:
        return f"segment {segment.id} has {segment.stored_bytes} bytes"
    if not 1 <= segment.epoch <= EPOCH_MAX:
        return f"segment {segment.id} is of epoch {segment.epoch}"
    if segment.merged is not None and not SPAN_ID.match(segment.merged):
        return f"segment {segment.id} is of no span"
    return None
