"""Targets, headers and bodies of the link's requests, parsed strictly. One table for both ends.

    GET  /v1/health
    GET  /v1/machines/{m}/head                               -> TargetHead
    HEAD /v1/machines/{m}/segments/{epoch}/{disk}/{id}       -> upload-offset, upload-complete
    PUT  /v1/machines/{m}/segments/{epoch}/{disk}/{id}       x-hash, content-range
    PUT  /v1/machines/{m}/keys/{id}
    GET  /v1/machines/{m}/keys/{id}                          -> WrappedKey
    POST /v1/machines/{m}/claims       ClaimRequest          -> Claim
    POST /v1/machines/{m}/points       PointProposal         -> CommittedPoint
    POST /v1/machines/{m}/digests      DigestQuery           -> DigestAnswer, both MessagePack
    POST /v1/machines/{m}/adoption     AdoptionTerms         -> Adoption
    POST /v1/machines/{m}/stop         StopNote

Bodies but segments, keys and digests are JSON; an error's body is `SecondsiteError.as_dict()`.
"""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from typing import TypeVar

import msgspec

from secondsite.base.errors import Outcome, RemoteError, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.base.units import KIB, MIB
from secondsite.journal.format import PROPOSAL_BYTES_MAX
from secondsite.model.ids import KeyId, MachineId, disk_id, key_id, machine_id, segment_id
from secondsite.model.points import PointProposal
from secondsite.transfer.errors import CertificateRefused, PeerNotAllowed, ProtocolViolation
from secondsite.transfer.protocols import AdoptionTerms, ClaimRequest, DigestQuery, SegmentName, StopNote

PORT = 9443
# A segment holds at most 16 MiB of data, and blocks that do not shrink are stored as they are: sealing, index
# and footer add less than 1 % to that. Twice the data leaves room for later formats.
SEGMENT_BYTES_MAX = 32 * MIB
KEY_BYTES_MAX = 4 * KIB
CLAIM_BYTES_MAX = 16 * KIB
# A first copy names all its segments at once, about 200 bytes each: room for 300,000 of them, 4 TiB of data.
POINT_BYTES_MAX = PROPOSAL_BYTES_MAX
# What a target answers: heads and points carry disks but no segments.
ANSWER_BYTES_MAX = 1 * MIB
EPOCH_MAX = 99_999_999
# Hash compare. Sums of 32 GiB, or values of 256 MiB, fit half a MiB; a target reads again at most 64 MiB of
# stored data for one request, some seconds' work.
DIGEST_VERSION = 1
DIGEST_QUERY_BYTES_MAX = 16 * KIB
SUMS_MAX = 32 * 1024
VALUES_MAX = 256
REREAD_MAX = 64
RANGE_NUMBER_MAX = 2**43  # of the largest size an image may have, 2^63 bytes

# Tens of disks, some hundred bytes each.
ADOPTION_BYTES_MAX = 64 * KIB

STOP_BYTES_MAX = 4 * KIB

_OF_MACHINES = ("head", "claims", "points", "digests", "adoption", "stop")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_HEX32 = re.compile(r"[0-9a-f]{32}\Z")
_EPOCH = re.compile(r"[1-9]\d{0,7}\Z")

T = TypeVar("T")


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A request's target, parsed."""

    kind: str  # "health", "head", "segment", "key", "claims", "points", "digests", "adoption" or "stop"
    machine: MachineId = MachineId("")
    segment: SegmentName | None = None
    key: KeyId = KeyId("")


METHODS = {
    "health": ("GET",),
    "head": ("GET",),
    "segment": ("HEAD", "PUT"),
    "key": ("PUT", "GET"),
    "claims": ("POST",),
    "points": ("POST",),
    "digests": ("POST",),
    "adoption": ("POST",),
    "stop": ("POST",),
}


def parse_target(target: str) -> Route | None:
    """The route of a request target; None for one that does not exist. Raises InvalidInput for a bad id."""
    match target.split("/"):
        case ["", "v1", "health"]:
            return Route(kind="health")
        case ["", "v1", "machines", machine, kind] if kind in _OF_MACHINES:
            return Route(kind=kind, machine=_machine(machine))
        case ["", "v1", "machines", machine, "keys", key]:
            return Route(kind="key", machine=_machine(machine), key=key_id(key))
        case ["", "v1", "machines", machine, "segments", epoch, disk, segment] if _EPOCH.match(epoch):
            parsed = _machine(machine)
            name = SegmentName(machine=parsed, epoch=int(epoch), disk=disk_id(disk), id=segment_id(segment))
            return Route(kind="segment", machine=parsed, segment=name)
    return None


def _machine(text: str) -> MachineId:
    # ids are compared as text further in, so only the canonical form may pass
    return machine_id(text)


def segment_target(name: SegmentName) -> str:
    """The path of a segment."""
    return f"/v1/machines/{name.machine}/segments/{name.epoch}/{name.disk}/{name.id}"


def parse_hash(text: str | None, *, peer: str) -> str:
    """A blake3 hash in hexadecimal. Raises ProtocolViolation."""
    if text is None or not _HEX64.match(text):
        raise ProtocolViolation(peer=peer, why="x-hash is not 64 hexadecimal digits")
    return text


def decode(data: bytes | bytearray, kind: type[T], *, peer: str) -> T:
    """A JSON body as `kind`. Raises ProtocolViolation."""
    try:
        return msgspec.json.decode(data, type=kind)
    except JSON_ERRORS as error:
        raise ProtocolViolation(peer=peer, why=f"a body that does not parse ({error})") from None


def decode_packed(data: bytes | bytearray, kind: type[T], *, peer: str) -> T:
    """A MessagePack body as `kind`. Raises ProtocolViolation."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ProtocolViolation(peer=peer, why=f"a body that does not parse ({error})") from None


def check_digests(query: DigestQuery, machine: MachineId, *, peer: str) -> None:
    """Raise ProtocolViolation or InvalidInput unless the query is of its URL's machine and within limits."""
    if query.machine != machine:
        raise ProtocolViolation(peer=peer, why="the query is of another machine than its URL")
    if query.version != DIGEST_VERSION:
        raise ProtocolViolation(
            peer=peer, why=f"digests of version {query.version}, known is {DIGEST_VERSION}"
        )
    disk_id(query.disk)
    key_id(query.key_id)
    if query.level == "sums":
        asked, limit, last = query.count, SUMS_MAX, query.first + query.count
        fits = not query.ranges and query.first >= 0
    else:
        asked, limit, last = len(query.ranges), VALUES_MAX, max(query.ranges, default=0)
        fits = not query.first and not query.count and min(query.ranges, default=0) >= 0
        fits = fits and all(a < b for a, b in itertools.pairwise(query.ranges))
    if query.reread:
        limit = REREAD_MAX
    if not fits or not 0 < asked <= limit or last > RANGE_NUMBER_MAX or not 0 <= query.point < 10**16:
        raise ProtocolViolation(peer=peer, why="a query of digests that is out of its range")


def check_terms(terms: AdoptionTerms, machine: MachineId, *, peer: str) -> None:
    """Raise ProtocolViolation or InvalidInput unless the terms are of their URL's machine and make sense."""
    if terms.machine != machine:
        raise ProtocolViolation(peer=peer, why="the terms are of another machine than their URL")
    sizes = {disk_id(disk.id): disk.size_bytes for disk in terms.disks}
    if not sizes or len(sizes) != len(terms.disks) or min(sizes.values()) < 0 or not _HEX32.match(terms.id):
        raise ProtocolViolation(peer=peer, why="the terms' disks or id do not fit together")
    for disk in terms.disks:
        key_id(disk.key_id)


def check_stop(note: StopNote, machine: MachineId, *, peer: str) -> None:
    """Raise ProtocolViolation unless the note is of its URL's machine and makes sense."""
    if note.machine != machine or not _HEX32.match(note.operation) or not 0 <= note.point < 10**16:
        raise ProtocolViolation(peer=peer, why="a note of a stop that does not parse")


def check_claim(request: ClaimRequest, machine: MachineId, *, peer: str) -> None:
    """Raise ProtocolViolation unless the claim is for the machine of its URL, with sane sizes."""
    if request.machine != machine:
        raise ProtocolViolation(peer=peer, why="the claim is for another machine than its URL")
    if not _HEX32.match(request.nonce) or not _HEX64.match(request.expected_hash):
        raise ProtocolViolation(peer=peer, why="the claim's nonce or hash does not parse")
    if (
        not 0 <= request.expected_number < 10**16
        or len(request.machine_name) > 255
        or len(request.reason) > 255
    ):
        raise ProtocolViolation(peer=peer, why="a field of the claim is out of its range")


def check_proposal(proposal: PointProposal, machine: MachineId, *, peer: str) -> None:
    """Raise ProtocolViolation or InvalidInput unless every field of the proposal has a form it may have."""
    if proposal.machine != machine:
        raise ProtocolViolation(peer=peer, why="the point is of another machine than its URL")
    if not 1 <= proposal.epoch <= EPOCH_MAX or not _are_hex(proposal.nonce, proposal.fresh):
        raise ProtocolViolation(peer=peer, why="the point's epoch, nonce or adopted copy does not parse")
    if len(proposal.machine_name) > 255 or len(proposal.checkpoint) > 255:
        raise ProtocolViolation(peer=peer, why="a name in the point is too long")
    if not _is_time(proposal.asked_at) or not _is_time(proposal.given_at):
        raise ProtocolViolation(peer=peer, why="a time of the point does not parse")
    sizes = {disk_id(disk.id): disk.size_bytes for disk in proposal.disks}
    if not sizes or len(sizes) != len(proposal.disks) or min(sizes.values()) < 0:
        raise ProtocolViolation(peer=peer, why="the point's disks do not fit together")
    for disk in proposal.disks:
        key_id(disk.key_id)
    for segment in proposal.segments:
        segment_id(segment.id)
        if segment.key_id is not None:
            key_id(segment.key_id)
        if segment.disk not in sizes:
            raise ProtocolViolation(
                peer=peer, why=f"segment {segment.id} is of a disk the point does not have"
            )
        if not 1 <= segment.epoch <= EPOCH_MAX or not 0 < segment.stored_bytes <= SEGMENT_BYTES_MAX:
            raise ProtocolViolation(peer=peer, why=f"segment {segment.id} has numbers out of range")
        if not _HEX64.match(segment.hash):
            raise ProtocolViolation(peer=peer, why=f"segment {segment.id} has no hash")


def _are_hex(*ids: object) -> bool:
    """Whether those that are texts are ids of 32 hexadecimal digits."""
    return all(_HEX32.match(text) for text in ids if isinstance(text, str))


def _is_time(text: str) -> bool:
    """Whether it is an RFC 3339 time with its zone: whoever lists points computes with it."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


_STATUS = {
    Outcome.USAGE: 400,
    Outcome.NOT_FOUND: 404,
    Outcome.REFUSED: 409,
    Outcome.UNAVAILABLE: 503,
    Outcome.DAMAGED: 500,
    Outcome.FAILED: 500,
}


def status_of(error: SecondsiteError) -> int:
    """The HTTP status an error travels with."""
    if isinstance(error, PeerNotAllowed | CertificateRefused):
        return 403
    if isinstance(error, ProtocolViolation):
        return 400
    return _STATUS.get(error.outcome, 500)


def remote_error(body: bytes, status: int, *, peer: str) -> SecondsiteError:
    """The error a peer's answer carries."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, str])
    except JSON_ERRORS:
        return ProtocolViolation(peer=peer, why=f"status {status} without an error of ours in the body")
    return RemoteError({key: str(value)[:2000] for key, value in list(fields.items())[:16]})
