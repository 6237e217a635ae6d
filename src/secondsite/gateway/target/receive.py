"""The target's side of replication: who may write what, segments, claims, commits.

Rules kept here:

* A peer writes only machines its configuration lists, and only while it is the claimant of the epoch in
  force. A machine nobody claimed yet may be claimed by any peer that may write it: the first claim of a
  machine is made by the receiving gateway, in the store, before a byte of it is taken (rule 2).
* A peer that is not the claimant never gets a new epoch by asking: after a failover the old source stays out.
* A commit is the journal's; what is added here is the fingerprint of each disk and an event for each refusal.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.keys.keyrules import check_sealer, is_same_key, name_of_kept, name_of_wrapped
from secondsite.gateway.messages.adopterrors import AdoptionGone
from secondsite.gateway.target.intake import Upload, is_present, key_of
from secondsite.gateway.target.stops import keep_stop
from secondsite.journal.chain import FingerprintsOf, Head, Journal
from secondsite.journal.chain_errors import EpochSuperseded
from secondsite.journal.keys import VaultKey
from secondsite.journal.manifest import RECORD_BYTES_MAX
from secondsite.journal.names import log_name, machine_prefix
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore
from secondsite.model.events import EventSink, Severity
from secondsite.model.failover import AUTHORITY, MOVED, NOBODY
from secondsite.model.ids import KeyId, MachineId
from secondsite.model.points import Claim, Point, PointProposal
from secondsite.transfer.errors import ClaimRefused, DigestsRefused, PeerNotAllowed, SegmentConflict
from secondsite.transfer.protocols import (
    Adoption,
    AdoptionTerms,
    ClaimRequest,
    CommittedPoint,
    DigestAnswer,
    DigestQuery,
    Peer,
    Repair,
    SegmentName,
    StopNote,
    TargetHead,
)
from secondsite.transfer.wire import KEY_BYTES_MAX

AFTER_KEY = mark("receive.after-key")
AFTER_COMMIT = mark("receive.after-commit")

# A gateway's name has at most 200 characters.
WRITER_BYTES_MAX = 1024
# How old a head may be when it only decides whether a segment is worth taking; the commit reads it afresh.
HEAD_SECONDS_MAX = 1.0


@dataclass(frozen=True)
class PeerRule:
    """What a peer may write: some machines, or (None) any that no other peer is the writer of."""

    machines: frozenset[MachineId] | None = None

    def allows(self, machine: MachineId) -> bool:
        """Whether the machine is in the list."""
        return self.machines is None or machine in self.machines


class AdoptedCopies(Protocol):
    """What a receiver asks about copies that first copies begin with (`adopt.Adoptions`)."""

    def offered(self, machine: MachineId) -> Adoption | None:
        """What a source is told of, where the machine has no point yet."""

    def accept(self, journal: Journal, epoch: int, terms: AdoptionTerms) -> Adoption:
        """Make it ready for the writer in `epoch`. Raises AdoptionGone, AdoptionRefused."""

    def digests(self, query: DigestQuery) -> DigestAnswer:
        """Of the copy. Raises DigestsNotReady, DigestsRefused."""

    def under(self, journal: Journal, proposal: PointProposal) -> AbstractContextManager[PointProposal]:
        """The proposal with the copy beneath; nobody takes that away inside. Raises AdoptionGone."""

    def committed(self, journal: Journal, proposal: PointProposal, point: Point) -> None:
        """The machine has a point, perhaps for the first time; must not block."""


class GatewayReceiver:
    """Implements `transfer.protocols.Receiver` on an object store. Thread-safe.

    vault: seals records and states. peers: by certificate name.
    fingerprints: what the disks hold with a point (`fingerprints.Fingerprints.of`).
    on_commit: called after each new or repeated commit, from the connection's thread; must not block.
    digests: answers hash compare (`fingerprints.Fingerprints.digests`).
    repairs: what is missing of a machine's newest point (`repair.Repairs.wanted`).
    adoptions: copies that first copies may begin with.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        vault: VaultKey | None,
        peers: Mapping[str, PeerRule],
        clock: Clock,
        events: EventSink,
        fingerprints: Callable[[Journal], FingerprintsOf] | None = None,
        on_commit: Callable[[Journal, Point], None] | None = None,
        digests: Callable[[Journal, DigestQuery], DigestAnswer] | None = None,
        repairs: Callable[[MachineId], Repair | None] | None = None,
        adoptions: AdoptedCopies | None = None,
    ) -> None:
        self._store = store
        self._vault = vault
        self._peers = dict(peers)
        self._clock = clock
        self._events = events
        self._fingerprints = fingerprints
        self._on_commit = on_commit
        self._digests = digests
        self._repairs = repairs
        self._adoptions = adoptions
        # why nobody may write a machine now; empty: it may be written
        self.closed: Callable[[MachineId], str] = lambda _: ""
        # whether the failover that made a claim was committed here
        self.committed: Callable[[Claim], bool] = lambda _: False
        self._lock = threading.Lock()
        self._machines: dict[MachineId, _Machine] = {}

    def set_peers(self, peers: Mapping[str, PeerRule]) -> None:
        """Change who may write what, from the next request on."""
        self._peers = dict(peers)

    def journal(self, machine: MachineId) -> Journal:
        """The one `Journal` of a machine in this process."""
        return self._machine(machine).journal

    def forget(self, machine: MachineId) -> None:
        """All of it was deleted: what is known of its journal is of what was."""
        with self._lock:
            self._machines.pop(machine, None)

    def authorise(self, peer: Peer, machine: MachineId) -> None:
        """See `Receiver`."""
        rule = self._peers.get(peer.name)
        if rule is None:
            raise PeerNotAllowed(peer=peer.name, machine=machine, why="this gateway does not know the peer")
        if not rule.allows(machine):
            raise PeerNotAllowed(peer=peer.name, machine=machine, why="the peer's list does not have it")
        if closed := self.closed(machine):
            raise PeerNotAllowed(peer=peer.name, machine=machine, why=closed)

    def head(self, peer: Peer, machine: MachineId) -> TargetHead:
        """See `Receiver`."""
        self.authorise(peer, machine)
        machine_state = self._machine(machine)
        head = machine_state.fresh_head()
        adoption = self._adoptions.offered(machine) if self._adoptions and head.point is None else None
        return TargetHead(
            machine=machine,
            number=head.number,
            hash=head.hash,
            epoch=head.epoch,
            claimant=machine_state.writer(head),
            point=self._answer(head.point) if head.point else None,
            adoption=adoption,
            claim=machine_state.sealed_claim(head, peer.name),
            committed=head.claim is not None and head.claim.reason in MOVED and self.committed(head.claim),
        )

    def segment_offset(self, peer: Peer, name: SegmentName) -> tuple[int, bool]:
        """See `Receiver`."""
        self._check_writer(peer, name.machine, name.epoch, self._machine(name.machine).recent_head())
        key = key_of(name)
        try:
            return self._store.size(key), True
        except ObjectMissing:
            pass
        try:
            staged = self._store.stage(key)
        except ObjectExists:
            return self._store.size(key), True
        offset = staged.offset
        staged.close()
        return offset, False

    def open_segment(self, peer: Peer, name: SegmentName, *, size_bytes: int, digest: str) -> Upload | None:
        """See `Receiver`."""
        self._check_writer(peer, name.machine, name.epoch, self._machine(name.machine).recent_head())
        # Staging comes first also for what is there already: it removes what a kill in the middle of
        # publishing left behind.
        try:
            return Upload(self._store, name, size_bytes=size_bytes, digest=digest, events=self._events)
        except ObjectExists:
            is_present(self._store, name, size_bytes=size_bytes, digest=digest)
            return None

    def put_key(self, peer: Peer, machine: MachineId, key: KeyId, wrapped: bytes) -> None:
        """See `Receiver`."""
        head = self._machine(machine).fresh_head()
        self._check_writer(peer, machine, head.epoch, head)
        name = name_of_wrapped(self._vault, machine, key, wrapped)
        try:
            self._store.put(name, wrapped)
        except ObjectExists:
            there = self._store.get(name, size_bytes_max=KEY_BYTES_MAX)
            if not is_same_key(self._vault, there, wrapped):
                raise SegmentConflict(segment=name, why="another wrapped key has this id") from None
        crash_point(AFTER_KEY)

    def get_key(self, peer: Peer, machine: MachineId, key: KeyId) -> bytes:
        """See `Receiver`. Raises ObjectMissing."""
        head = self._machine(machine).fresh_head()
        self._check_writer(peer, machine, head.epoch, head)
        return self._store.get(
            name_of_kept(self._store, self._vault, machine, key), size_bytes_max=KEY_BYTES_MAX
        )

    def claim(self, peer: Peer, request: ClaimRequest) -> Claim:
        """See `Receiver`."""
        self.authorise(peer, request.machine)
        machine = self._machine(request.machine)
        with machine.lock:
            head = machine.fresh_head()
            self._check_claim(peer, request.machine, head)
            if head.claim is not None:
                machine.keep_writer(head.claim)
            claim = machine.journal.claim(
                name=request.machine_name,
                claimant=peer.name,
                reason=request.reason,
                clock=self._clock,
                expected=Head(request.expected_number, 0, request.expected_hash, None),
                nonce=request.nonce,
                above=request.above,
            )
            machine.keep_writer(claim)
            machine.forget_head()
        self._events.emit(
            "receive.claimed",
            Severity.INFORMATION,
            f"{peer.name} writes {request.machine_name} from epoch {claim.epoch} on: {request.reason}",
            machine=request.machine,
            epoch=claim.epoch,
        )
        return claim

    def commit(self, peer: Peer, proposal: PointProposal) -> CommittedPoint:
        """See `Receiver`."""
        self.authorise(peer, proposal.machine)
        machine = self._machine(proposal.machine)
        # One commit a machine at a time: the fingerprints are counted on from the point before.
        with machine.lock:
            try:
                head = machine.fresh_head()
                self._check_writer(peer, proposal.machine, proposal.epoch, head)
                what = f"the definition of {proposal.machine_name}"
                check_sealer(self._vault, what, proposal.definition)
                if head.claim is not None:
                    machine.keep_writer(head.claim)
                fingerprints = self._fingerprints(machine.journal) if self._fingerprints else None
                with self._under(machine.journal, proposal) as whole:
                    point = machine.journal.commit(whole, clock=self._clock, fingerprints=fingerprints)
            except SecondsiteError as error:
                severity = Severity.INFORMATION if error.retryable else Severity.WARNING
                text = f"a point of {proposal.machine_name} was refused: {error}"
                self._events.emit("receive.point-refused", severity, text, machine=proposal.machine)
                raise
            finally:
                machine.forget_head()
            crash_point(AFTER_COMMIT)
            if self._on_commit is not None:
                self._on_commit(machine.journal, point)
            if self._adoptions is not None:
                self._adoptions.committed(machine.journal, proposal, point)
        self._events.emit(
            "receive.committed",
            Severity.INFORMATION,
            f"point {point.number} of {proposal.machine_name} is committed",
            machine=proposal.machine,
            number=point.number,
            sent_bytes=point.sent_bytes,
        )
        return self._answer(point)

    def _under(self, journal: Journal, proposal: PointProposal) -> AbstractContextManager[PointProposal]:
        if not isinstance(proposal.fresh, str):
            return nullcontext(proposal)
        if self._adoptions is None:
            raise AdoptionGone(machine=proposal.machine_name, why="this gateway adopts no copies")
        return self._adoptions.under(journal, proposal)

    def _answer(self, point: Point) -> CommittedPoint:
        """A point as the source is told of it, with what is missing of it."""
        repair = self._repairs(point.machine) if self._repairs is not None else None
        return msgspec.structs.replace(CommittedPoint.of(point), repair=repair)

    def digests(self, peer: Peer, query: DigestQuery) -> DigestAnswer:
        """See `Receiver`. For the writer alone: digests say where a disk has zeros, and what is the same."""
        machine = self._machine(query.machine)
        head = machine.fresh_head()
        self._check_writer(peer, query.machine, head.epoch, head)
        if not query.point and self._adoptions is not None:
            return self._adoptions.digests(query)
        if self._digests is None:
            why = "this gateway keeps no digests"
            raise DigestsRefused(disk=query.disk, point=query.point, why=why)
        return self._digests(machine.journal, query)

    def adopt(self, peer: Peer, terms: AdoptionTerms) -> Adoption:
        """See `Receiver`. For the writer alone, once it has put its keys."""
        machine = self._machine(terms.machine)
        head = machine.fresh_head()
        self._check_writer(peer, terms.machine, head.epoch, head)
        if self._adoptions is None or head.point is not None:
            raise AdoptionGone(machine=terms.machine, why="there is none, or the machine has a point")
        return self._adoptions.accept(machine.journal, head.epoch, terms)

    def note_stop(self, peer: Peer, note: StopNote) -> None:
        """See `Receiver`. For the writer alone. Raises StopRefused."""
        machine = self._machine(note.machine)
        with machine.lock:
            head = machine.fresh_head()
            self._check_writer(peer, note.machine, head.epoch, head)
            keep_stop(machine.journal, note, head)

    def _check_writer(self, peer: Peer, machine: MachineId, epoch: int, head: Head) -> None:
        """Raise unless `peer` is who writes the machine in `epoch`, now."""
        self.authorise(peer, machine)
        claim = head.claim
        told = f"{claim.claimant}, {claim.reason}, {claim.claimed_at}" if claim else "nobody yet"
        if epoch != head.epoch or head.epoch == 0:
            raise EpochSuperseded(machine=machine, epoch=epoch, current=head.epoch, claim=told)
        writer = self._machine(machine).writer(head)
        if writer is not None and writer != peer.name:
            why = f"its writer is {writer}" if writer != NOBODY else "its replica was deleted"
            raise PeerNotAllowed(peer=peer.name, machine=machine, why=why)

    def _check_claim(self, peer: Peer, machine: MachineId, head: Head) -> None:
        writer = self._machine(machine).writer(head)
        if writer is not None and writer not in (peer.name, NOBODY):
            error = ClaimRefused(peer=peer.name, machine=machine, claimant=writer, epoch=head.epoch)
            self._events.emit("receive.claim-refused", Severity.WARNING, str(error), machine=machine)
            raise error

    def _machine(self, machine: MachineId) -> _Machine:
        with self._lock:
            found = self._machines.get(machine)
            if found is None:
                found = self._machines[machine] = _Machine(
                    Journal(self._store, machine, self._vault), self._clock
                )
            return found


def writer_name(machine: MachineId, epoch: int) -> str:
    """Where the name of an epoch's writer lies: UTF-8 text."""
    return f"{machine_prefix(machine)}writers/{epoch:08d}"


def authority_prefix(machine: MachineId) -> str:
    """Where the records of its claims lie that say whose the machine is, by epoch as writers' names are."""
    return f"{machine_prefix(machine)}authority/"


class _Machine:
    """A machine's journal in this process, with the head it had a moment ago."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self.journal = journal
        self.lock = threading.Lock()
        self._clock = clock
        self._seen: tuple[Head, float] | None = None
        self._writers: dict[int, str] = {}  # by epoch, as far as they were asked for
        self._sealed: tuple[int, bytes] | None = None  # number and bytes of the newest claim that was told
        self._kept: tuple[int, bytes | None] | None = None  # epoch in force, and the claim kept for it

    def writer(self, head: Head) -> str | None:
        """Who writes in the epoch in force; None when nobody claimed it, or nobody knows any more.

        `NOBODY` where the replica was deleted.

        The claim says it while the chain still holds it. Promotion takes the chain's old end away, so the
        name is kept in an object of its own.
        """
        if head.claim is not None:
            return head.claim.claimant
        if head.epoch and head.epoch not in self._writers:
            name = writer_name(self.journal.machine, head.epoch)
            with contextlib.suppress(ObjectMissing):
                found = self.journal.store.get(name, size_bytes_max=WRITER_BYTES_MAX)
                self._writers[head.epoch] = found.decode()
        return self._writers.get(head.epoch)

    def sealed_claim(self, head: Head, peer: str) -> bytes | None:
        """The record of the claim in force, where it says whose the machine is.

        Another one may follow (a comparison), or promotion take it away: who does not write is told it still,
        since a source may return at any time from before it.
        """
        claim = head.claim
        if claim is not None and claim.reason in AUTHORITY:
            return self._record(claim)
        if self.writer(head) in (peer, None):
            return None
        if self._kept is None or self._kept[0] != head.epoch:
            store, newest = self.journal.store, max(self._authorities(), default="")
            data = bytes(store.get(newest, size_bytes_max=RECORD_BYTES_MAX)) if newest else None
            self._kept = (head.epoch, data)
        return self._kept[1]

    def _authorities(self) -> list[str]:
        return list(self.journal.store.list(authority_prefix(self.journal.machine)))

    def _record(self, claim: Claim) -> bytes:
        """As it lies in the log."""
        if self._sealed is None or self._sealed[0] != claim.number:
            name = log_name(claim.machine, claim.number)
            data = bytes(self.journal.store.get(name, size_bytes_max=RECORD_BYTES_MAX))
            self._sealed = (claim.number, data)
        return self._sealed[1]

    def keep_writer(self, claim: Claim) -> None:
        """Remember who made the claim, and what it says, for when the chain no longer holds it."""
        if claim.epoch in self._writers:
            return
        store = self.journal.store
        if claim.reason in AUTHORITY:
            with contextlib.suppress(ObjectExists):
                store.put(f"{authority_prefix(claim.machine)}{claim.epoch:08d}", self._record(claim))
        with contextlib.suppress(ObjectExists):
            store.put(writer_name(claim.machine, claim.epoch), claim.claimant.encode())
        self._writers[claim.epoch] = claim.claimant

    def fresh_head(self) -> Head:
        """The head as it is now."""
        head = self.journal.head()
        self._seen = (head, self._clock.monotonic())
        return head

    def recent_head(self) -> Head:
        """The head as it was within the last second."""
        seen = self._seen
        if seen is not None and self._clock.monotonic() - seen[1] < HEAD_SECONDS_MAX:
            return seen[0]
        return self.fresh_head()

    def forget_head(self) -> None:
        """Read it afresh next time."""
        self._seen = None
