"""The two ends of a transfer: `Link`, what a source calls, and `Receiver`, what a target implements.

A link carries sealed segments, wrapped keys, claims and point proposals for any number of machines. Both
links of the package (`memory.MemoryLink` calls a `Receiver` in the same process, `link.HttpsLink` goes over
mutual TLS) pass tests/contract/test_links.py. Every call may be repeated after a lost answer:

* a segment or key that is there already with the same bytes is accepted again; with others it is refused;
* a proposal is committed once by its nonce, and the answer to the repetition is the same point;
* a claim is made once by its nonce.

Errors are `SecondsiteError`s; `error.retryable` says whether the same call may succeed later.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.model.ids import DiskId, KeyId, MachineId, SegmentId
from secondsite.model.points import ZERO_HASH, Claim, Consistency, DiskState, Point, PointProposal, SegmentRef

REPAIR_VERSION = 1
# Two numbers of at most 15 digits each: below 150 KiB of an answer.
REPAIR_RANGES_MAX = 4096

# A sealed segment in memory, or the file that holds it (a spooled one).
Payload = bytes | bytearray | memoryview | Path


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end, as its certificate says."""

    name: str  # the certificate's subject alternative name, e.g. "gateway-a.site-a"
    serial: str = ""  # the certificate's serial number, hexadecimal
    address: str = ""  # for events only; never used to decide


class SegmentName(msgspec.Struct, frozen=True, kw_only=True):
    """A segment's place in the store of one machine."""

    machine: MachineId
    epoch: int
    disk: DiskId
    id: SegmentId

    @classmethod
    def of(cls, machine: MachineId, ref: SegmentRef) -> SegmentName:
        """The name of a segment a manifest refers to."""
        return cls(machine=machine, epoch=ref.epoch, disk=ref.disk, id=ref.id)


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What a target lost of its newest point and asks to have again; the source sends it when it can."""

    version: int  # 1; of a higher one the source understands nothing
    ranges: dict[DiskId, tuple[int, ...]]  # start, end, start, end, …: bytes, ascending


class CommittedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a source needs to know of a committed point (a `Point` without segments and definition)."""

    number: int
    epoch: int
    nonce: str
    checkpoint: str
    parent_checkpoint: str | None
    asked_at: str
    given_at: str
    committed_at: str
    consistency: Consistency
    disks: tuple[DiskState, ...]
    sent_bytes: int = 0
    repair: Repair | None = None  # what is missing of it now; None: nothing, or the target does not say

    @classmethod
    def of(cls, point: Point) -> CommittedPoint:
        """Shorten a point."""
        return cls(
            number=point.number,
            epoch=point.epoch,
            nonce=point.nonce,
            checkpoint=point.checkpoint,
            parent_checkpoint=point.parent_checkpoint,
            asked_at=point.asked_at,
            given_at=point.given_at,
            committed_at=point.committed_at,
            consistency=point.consistency,
            disks=point.disks,
            sent_bytes=point.sent_bytes,
        )


class AdoptedDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One disk of an adopted copy."""

    id: DiskId
    size_bytes: int
    key_id: KeyId | None = None  # it is sealed with; None: not known yet


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """A copy the target was given to begin with: no point, read by nobody, compared with by a first copy.

    The source comes to terms with it (`AdoptionTerms`), waits until it is ready, and names it in the proposal
    of the first point (`PointProposal.fresh`), which then holds the copy and what was sent over it.
    """

    id: str  # 32 hexadecimal digits
    disks: tuple[AdoptedDisk, ...]
    ready: bool = False  # sealed, and its digests can be asked for (`DigestQuery`, point 0)
    done_bytes: int = 0  # of the copy, sealed so far
    total_bytes: int = 0


class WrappedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A wrapped data key on its way back."""

    wrapped: bytes


class AdoptionTerms(msgspec.Struct, frozen=True, kw_only=True):
    """A source's disks and their data keys, with which the copy is to be sealed."""

    machine: MachineId
    id: str  # of the adoption
    disks: tuple[DiskState, ...]


class TargetHead(msgspec.Struct, frozen=True, kw_only=True):
    """Where a machine's journal stands at the target; number 0 and epoch 0: nothing there yet."""

    machine: MachineId
    number: int = 0  # of the newest record that counts, claim or point
    hash: str = ZERO_HASH  # of that record
    epoch: int = 0
    claimant: str | None = None  # who may write in that epoch; "": nobody, its replica was deleted
    point: CommittedPoint | None = None  # the newest point that counts, of any epoch
    adoption: Adoption | None = None  # what a first copy may begin with; None where there is a point
    # The sealed record of the claim in force, where it is a failover or undoes one; to who does not write
    # the last such, also when others followed. The source believes what its own key opens, not who tells it.
    claim: bytes | None = None
    committed: bool = False  # that claim's failover was committed: nothing rolls it back any more

    @property
    def point_in_epoch(self) -> CommittedPoint | None:
        """The newest point if it belongs to the current epoch: what an increment may follow."""
        return self.point if self.point is not None and self.point.epoch == self.epoch else None


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A source asks to be the writer from now on (rule 2). `expected_*` is the head it has seen.

    above: the machine's highest epoch in any other journal, as far as the source knows: this one is above it.
    """

    machine: MachineId
    machine_name: str
    reason: str  # "first copy" or "resync"
    nonce: str  # 32 hexadecimal digits, random
    expected_number: int
    expected_hash: str
    above: int = 0


class StopNote(msgspec.Struct, frozen=True, kw_only=True):
    """A source stands still, stopped in order, and `point` holds all it ever wrote; or it is to run again.

    A move in order loses nothing as long as the target has this and has not heard otherwise since: so a
    source lets its machine run only after it has said so, and has seen afterwards that nobody claimed it.
    """

    machine: MachineId
    operation: str  # of the stop: 32 hexadecimal digits
    point: int  # the newest record of the journal; 0: the stop is void


class DigestQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What does the target hold of a disk, as of a point? For hash compare (`journal.compare`).

    Point 0 is the adopted copy, where there is no point yet.

    Level "sums" asks for the sums of `count` ranges of 1 MiB from number `first` on; level "values" for 64
    bits of each 4 KiB of the `ranges`, ascending. From the target's digest table, which holds the newest
    point alone, or, with `reread`, from the stored data of any point, read for this.
    """

    machine: MachineId
    disk: DiskId
    key_id: KeyId  # of the data key our digests are made with
    point: int
    level: Literal["sums", "values"]
    first: int = 0
    count: int = 0
    ranges: tuple[int, ...] = ()
    reread: bool = False
    version: int = 1


class DigestAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, with zeros left out: `used` has a bit for each range (or sub-block), lowest first.

    `digests` holds, for each bit that is set, 16 bytes (sums, two lanes) or 8 (values), little-endian. What
    lies beyond the disk's end reads as zeros.
    """

    point: int
    size_bytes: int  # of the disk at that point
    used: bytes
    digests: bytes
    version: int = 1


class Link(Protocol):
    """A source's way to its target. Thread-safe; each call blocks until answered, failed or cancelled."""

    def head(self, machine: MachineId) -> TargetHead:
        """Where the machine's journal stands (reconcile after a lost acknowledgement, rule 9)."""

    def send_segment(
        self, machine: MachineId, ref: SegmentRef, payload: Payload, *, cancel: threading.Event | None = None
    ) -> None:
        """Make one segment durable at the target; resumes where an earlier attempt was cut off."""

    def put_key(self, machine: MachineId, key: KeyId, wrapped: bytes) -> None:
        """Store a wrapped disk key (it opens only with the vault key, which never travels)."""

    def get_key(self, machine: MachineId, key: KeyId) -> bytes:
        """A wrapped key again, for a source that lost its own. Code: ``store.object-missing``."""

    def claim(self, request: ClaimRequest) -> Claim:
        """Claim a new epoch; raises when the head is not the expected one (read it again then)."""

    def commit(self, proposal: PointProposal) -> CommittedPoint:
        """Commit a point whose segments were all sent; the same proposal again gives the same point."""

    def digests(self, query: DigestQuery) -> DigestAnswer:
        """What the target holds. Codes: ``digests.not-ready`` (ask again), ``digests.other-state``."""

    def adopt(self, terms: AdoptionTerms) -> Adoption:
        """Have the copy that `TargetHead.adoption` names made ready, or see how far it is; ask again.

        Codes: ``adopt.refused`` (it does not fit the disks and is not offered any more), ``adopt.gone``.
        """

    def note_stop(self, note: StopNote) -> None:
        """Tell that the machine was stopped in order, or is to run again. Code: ``link.stop-refused``."""

    def close(self) -> None:
        """End the connections; calls in progress fail."""


class SegmentUpload(Protocol):
    """A segment arriving at the target; bytes appended survive `suspend` and a crash."""

    @property
    def offset(self) -> int:
        """Bytes held so far; the next `append` continues there."""

    def append(self, data: memoryview) -> None:
        """Add bytes. Raises when more than announced, or when the header does not fit the name."""

    def finish(self) -> None:
        """Verify the hash, make it durable and visible. Raises HashMismatch (the bytes are dropped then)."""

    def suspend(self) -> None:
        """Let go for now; the next `open_segment` of the same name resumes. Safe after `finish` as well."""


class Receiver(Protocol):
    """The target's side; called by the ingest listener (or a memory link) with an authenticated peer."""

    def authorise(self, peer: Peer, machine: MachineId) -> None:
        """Raise PeerNotAllowed unless the peer may write this machine."""

    def head(self, peer: Peer, machine: MachineId) -> TargetHead:
        """Where the machine's journal stands."""

    def segment_offset(self, peer: Peer, name: SegmentName) -> tuple[int, bool]:
        """(bytes held, complete): where an upload of this segment would continue."""

    def open_segment(
        self, peer: Peer, name: SegmentName, *, size_bytes: int, digest: str
    ) -> SegmentUpload | None:
        """Begin or resume a segment with the blake3 `digest`; None when the same bytes are there already."""

    def put_key(self, peer: Peer, machine: MachineId, key: KeyId, wrapped: bytes) -> None:
        """Store a wrapped key."""

    def get_key(self, peer: Peer, machine: MachineId, key: KeyId) -> bytes:
        """Give the writer a wrapped key again."""

    def claim(self, peer: Peer, request: ClaimRequest) -> Claim:
        """Make an epoch claim for the peer."""

    def commit(self, peer: Peer, proposal: PointProposal) -> CommittedPoint:
        """Verify and commit a point."""

    def digests(self, peer: Peer, query: DigestQuery) -> DigestAnswer:
        """Answer from the digest table, or from the stored data."""

    def adopt(self, peer: Peer, terms: AdoptionTerms) -> Adoption:
        """Make an adopted copy ready for the peer's first copy; says how far it is."""

    def note_stop(self, peer: Peer, note: StopNote) -> None:
        """Keep it, durably, for as long as nothing follows that point."""


def error_code(error: SecondsiteError) -> str:
    """The stable code of an error of this or the other side, e.g. ``chain.epoch-superseded``."""
    if isinstance(error, RemoteError):
        return str(error.body.get("code", ""))
    return error.code
