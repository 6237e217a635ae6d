"""Records of a machine's log: points, claims and spans as bytes, and the definition sealed inside a point."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import blake3
import msgspec

from secondsite.base.parse import JSON_ERRORS
from secondsite.journal.box import seal_box
from secondsite.journal.errors import RecordTooLarge, damaged
from secondsite.journal.format import (
    BOX_DEFINITION,
    RECORD_BODY_BYTES_MAX,
    RECORD_CLAIM,
    RECORD_FLAG_KEYS,
    RECORD_FLAG_LEAP,
    RECORD_HEADER,
    RECORD_MAGIC,
    RECORD_POINT,
    RECORD_SPAN,
    VERSION,
    check_version,
)
from secondsite.journal.keys import LogKey, VaultKey, check_seal, sealed_with
from secondsite.journal.record_rules import record_wrong, span_wrong
from secondsite.model.ids import MachineId
from secondsite.model.machines import Definition
from secondsite.model.points import Claim, Point, Record, SegmentRef, Span

RECORD_BYTES_MAX = RECORD_HEADER.size + RECORD_BODY_BYTES_MAX

_encoder = msgspec.json.Encoder(order="deterministic")
_decoders: dict[int, msgspec.json.Decoder[Point] | msgspec.json.Decoder[Claim]] = {
    RECORD_CLAIM: msgspec.json.Decoder(Claim),
    RECORD_POINT: msgspec.json.Decoder(Point),
}
_KNOWN_FLAGS = {
    RECORD_CLAIM: RECORD_FLAG_LEAP,
    RECORD_POINT: RECORD_FLAG_KEYS,
    RECORD_SPAN: RECORD_FLAG_KEYS,
}
_span = msgspec.json.Decoder(Span)
_definition = msgspec.json.Decoder(tuple[str, Definition])


def encode_record(record: Record, key: LogKey | None) -> bytes:
    """The bytes of a point or claim; the same record gives the same bytes.

    key: the machine's log key, which seals it; None: not sealed, readable only by who asks for no seal.
    """
    kind = RECORD_CLAIM if isinstance(record, Claim) else RECORD_POINT
    required = _flags_of_claim(record) if isinstance(record, Claim) else _flags(record.segments)
    return frame(kind, record.number, _encoder.encode(record), key, required=required)


def encode_span(span: Span, key: LogKey | None) -> bytes:
    """The bytes of a span, framed and sealed as a record is; its number is the last record it replaces."""
    return frame(RECORD_SPAN, span.last, _encoder.encode(span), key, required=_flags(span.segments))


def _flags_of_claim(claim: Claim) -> int:
    return 0 if isinstance(claim.former, msgspec.UnsetType) else RECORD_FLAG_LEAP


def _flags(segments: Sequence[SegmentRef]) -> int:
    return RECORD_FLAG_KEYS if any(segment.key_id is not None for segment in segments) else 0


def frame(kind: int, number: int, body: bytes, key: LogKey | None, *, required: int = 0) -> bytes:
    """Put a record's header before its body and seal it. Raises RecordTooLarge.

    What keeps bodies below that: a source refuses a first copy that would come near it (`gateway.seed`), a
    point that comes over the wire is smaller (`transfer.wire`), a merge leaves so many segments unmerged.
    """
    if len(body) > RECORD_BODY_BYTES_MAX:
        raise RecordTooLarge(what=f"record {number}", size=len(body), limit=RECORD_BODY_BYTES_MAX)
    fields = (VERSION, kind, required, 0, len(body), number)
    head = RECORD_HEADER.pack(RECORD_MAGIC, *fields, bytes(32), sealed_with(key), bytes(32))
    head = head[:32] + blake3.blake3(head[:32]).update(body).digest() + head[64:80]
    return head + (key.seal(head, body) if key is not None else bytes(32)) + body


def decode_record(data: bytes, key: LogKey | None) -> Record:
    """Read a point or claim.

    key: the machine's log key: a record without its seal is refused. None: the seal is not looked at.

    Raises:
        ObjectDamaged, FormatUnknown, WrongKey.
    """
    kind, number, body = open_frame("a record", data, key)
    what = f"record {number}"
    try:
        record = decode_body(kind, body)
    except JSON_ERRORS as error:
        raise damaged(what, f"its body does not parse: {error}") from None
    if record.number != number:
        raise damaged(what, f"its body says it is record {record.number}")
    wrong = record_wrong(record)
    if wrong:
        raise damaged(what, wrong)
    return record


def decode_body(kind: int, body: memoryview) -> Record:
    """The record in a body that is known to be what was written. Raises ObjectDamaged, msgspec's errors."""
    decoder = _decoders.get(kind)
    if decoder is None:
        raise damaged("a record", f"it is of the unknown kind {kind}")
    return decoder.decode(body)


def decode_span(data: bytes, key: LogKey | None) -> Span:
    """Read a span. Raises as `decode_record` does."""
    kind, number, body = open_frame("a span", data, key)
    what = f"the span up to record {number}"
    if kind != RECORD_SPAN:
        raise damaged(what, f"it is of kind {kind}")
    try:
        span = _span.decode(body)
    except JSON_ERRORS as error:
        raise damaged(what, f"its body does not parse: {error}") from None
    wrong = span_wrong(span) or (None if span.last == number else f"its body says it ends at {span.last}")
    if wrong:
        raise damaged(what, wrong)
    return span


def open_frame(what: str, data: bytes, key: LogKey | None) -> tuple[int, int, memoryview]:
    """(kind, number, body), all of the frame checked. Raises ObjectDamaged, FormatUnknown, WrongKey."""
    if len(data) < RECORD_HEADER.size:
        raise damaged(what, f"it has only {len(data)} bytes")
    magic, version, kind, required, _, length, number, digest, vault, seal = RECORD_HEADER.unpack_from(data)
    known = _KNOWN_FLAGS.get(kind, 0)
    check_version(what, magic, RECORD_MAGIC, version, required & ~known)
    what = f"{what.removeprefix('a ')} {number}"
    head, body = memoryview(data)[:80], memoryview(data)[RECORD_HEADER.size :]
    if length != len(body):
        raise damaged(what, f"its body has {len(body)} bytes, the header says {length}")
    if blake3.blake3(head[:32]).update(body).digest() != digest:
        raise damaged(what, "its hash does not fit its content")
    check_seal(what, key, vault, seal, head, body)
    return kind, number, body


def record_key_id(data: bytes) -> bytes:
    """The vault key id in the header of a record that was decoded; zeros: not sealed."""
    found: bytes = RECORD_HEADER.unpack_from(data)[8]
    return found


def record_hash(data: bytes) -> str:
    """What the next record names: blake3 of the whole object, 64 hexadecimal digits."""
    return blake3.blake3(data).hexdigest()


def seal_definition(
    definition: Definition,
    vault: VaultKey,
    machine: MachineId,
    *,
    randomness: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """Seal what a target needs to define the machine; it may hold secrets (console passwords, TPM state)."""
    plain = _encoder.encode((machine, definition))
    return seal_box(BOX_DEFINITION, vault.id, vault.secret, plain, randomness=randomness)


def open_definition(sealed: bytes, vault: VaultKey, machine: MachineId) -> Definition:
    """The inverse of `seal_definition`.

    Raises:
        WrongKey, ObjectDamaged (also when it is the definition of another machine).
    """
    what = f"the definition of machine {machine}"
    plain = vault.open(BOX_DEFINITION, sealed, what=what)
    try:
        found, definition = _definition.decode(plain)
    except JSON_ERRORS as error:
        raise damaged(what, f"it does not parse: {error}") from None
    if found != machine:
        raise damaged(what, f"it is the definition of machine {found}")
    return definition
