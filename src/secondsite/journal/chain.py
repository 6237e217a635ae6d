"""A machine's journal: points and epoch claims in one numbered chain.

The rules, which every reader and writer of the chain follows:

* Records are numbered without gaps and created once; each holds the hash of the one before.
* A claim raises the epoch: by one, or above what the machine had in other stores.
* A point counts when its epoch is the one in force at its number: it follows its own epoch's claim and
  precedes the next. A point that does not count is as if it were not there.
* A point is committed by creating its record, after all its segments are durable: that is the commit point.
* The chain is checked from the last promoted record on; the floor's hash is in the machine's state. What
  lies between the two is being promoted: views still read it, but it is not listed any more.
* Where all points were deleted together, the chain begins at the claim the state names (`drop`).
* A record sealed with a newer vault key than the one before it ends the older key's time: what that seals
  later is refused, and the state keeps the number.
* A span in the state stands for the records from its first to its last: only the last is listed, with the
  span's segments for its own, and the chain goes on over it by the hashes the state keeps of both ends.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.journal.catalog import machines
from secondsite.journal.chain_errors import (
    EpochSuperseded,
    HeadMoved,
    NotFresh,
    ParentMismatch,
    PointUnknown,
    ProposalInvalid,
    SegmentsMissing,
)
from secondsite.journal.chain_load import ChainLoader, MovedOn
from secondsite.journal.chain_records import ChainRecords, Head
from secondsite.journal.keys import LogKey, VaultKey
from secondsite.journal.manifest import (
    RECORD_BYTES_MAX,
    decode_record,
    decode_span,
    encode_record,
)
from secondsite.journal.names import (
    log_name,
    merged_name,
    segment_name,
    span_name,
)
from secondsite.journal.record_rules import record_wrong
from secondsite.journal.state import NO_READER, Keyed, Pin, SpanRef, State, StateBusy, StateRecord
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore
from secondsite.model.ids import DiskId, MachineId, machine_id
from secondsite.model.points import Claim, Point, PointProposal, Record, SegmentRef, Span

__all__ = ["FingerprintsOf", "Head", "Journal", "machines"]

BEFORE_MANIFEST = mark("commit.before-manifest")
AFTER_MANIFEST = mark("commit.after-manifest")
AFTER_CLAIM = mark("claim.after-record")
AFTER_BOUNDARY = mark("key.after-boundary")

KEY_ROTATION = "key rotation"  # the reason of the claim that raises nothing

# A machine is taken over a few times a year; one faulty or hostile claim must not use all epochs up.
LEAP_MAX = 100_000
# Another writer can be faster only by adding records, each of which costs it a sync; claims end the loop.
COMMIT_ATTEMPTS_MAX = 64
# Promotions and merges take seconds each; reading begins again when one ended in the middle of it.
LOAD_ATTEMPTS_MAX = 16


# What the committing side knows of the disks' content: the proposal and the head it follows -> fingerprints.
FingerprintsOf = Callable[[PointProposal, Head], Mapping[DiskId, str | None]]


class Journal:
    """One machine's chain and state in a store. Thread-safe; several processes may hold one each."""

    def __init__(self, store: ObjectStore, machine: MachineId, vault: VaultKey | None) -> None:
        """vault: seals what is written, and refuses what is not sealed with it; None: neither (tests)."""
        self._store = store
        self._machine = machine_id(machine)
        self._lock = threading.RLock()
        self._key = vault.log_key(self._machine) if vault is not None else None
        self._state = StateRecord(store, self._machine, self._key)
        self._chain = ChainRecords(self._machine, self._key)
        self._loader = ChainLoader(store, self._machine, self._key, self._state)

    @property
    def store(self) -> ObjectStore:
        """Where it lives."""
        return self._store

    @property
    def machine(self) -> MachineId:
        """Whose journal it is."""
        return self._machine

    @property
    def log_key(self) -> LogKey | None:
        """What its records and spans are sealed with."""
        return self._key

    def read_span(self, span: str) -> Span | None:
        """A span's object, also of one no longer in force; None when it is gone. Raises ObjectDamaged."""
        with contextlib.suppress(ObjectMissing):
            data = self._store.get(span_name(self._machine, span), size_bytes_max=RECORD_BYTES_MAX)
            return decode_span(data, self._key)
        return None

    def read_record(self, name: str) -> Record:
        """One record of the log by its object's name. Raises ObjectMissing, ObjectDamaged."""
        return decode_record(self._store.get(name, size_bytes_max=RECORD_BYTES_MAX), self._key)

    def records(self) -> list[Record]:
        """Every record from the floor on, also those that do not count. Raises ChainBroken."""
        with self._lock:
            floor = self._refresh().floor
            return [record for record in self._chain.records if record.number >= floor]

    def points(self) -> list[Point]:
        """The points that count, oldest first. Raises ChainBroken."""
        with self._lock:
            floor = self._refresh().floor
            return self._chain.points[bisect_left(self._chain.points, floor, key=_number) :]

    def points_after(self, number: int) -> list[Point]:
        """The points that count and are younger than `number`, oldest first. Raises ChainBroken.

        Also those below the floor that the bases do not hold yet: what a view is made of.
        """
        with self._lock:
            self._refresh()
            return self._chain.points[bisect_right(self._chain.points, number, key=_number) :]

    def point(self, number: int) -> Point:
        """One of `points`. Raises PointUnknown, ChainBroken."""
        with self._lock:
            floor = self._refresh().floor
            point = self._chain.numbered.get(number)
            if point is None or number < floor:
                raise PointUnknown(machine=self._machine, number=number)
            return point

    def head(self) -> Head:
        """Where the chain ends now. Raises ChainBroken."""
        with self._lock:
            self._refresh()
            return self._chain.head()

    def claim(
        self,
        *,
        name: str,
        claimant: str,
        reason: str,
        clock: Clock,
        expected: Head,
        nonce: str | None = None,
        above: int = 0,
        known: int | None = None,
    ) -> Claim:
        """Raise the epoch: from now on only points of the returned claim's epoch are committed.

        name: the machine's name, for people.
        expected: the head the decision was made on; another writer's record since then refuses the claim.
        nonce: 32 hexadecimal digits; a claim repeated with its nonce returns the first one.
        above: the machine's highest epoch in any other store.
        known: see `Claim`.

        Raises:
            HeadMoved: the journal is not at `expected` any more.
            ProposalInvalid: `above` is far above what is in force here.
        """
        with self._lock:
            self._refresh()
            nonce = nonce or secrets.token_hex(16)
            earlier = self._chain.nonces.get(nonce)
            if isinstance(earlier, Claim):
                return earlier
            head = self._chain.head()
            if (head.number, head.hash) != (expected.number, expected.hash):
                raise HeadMoved(machine=self._machine, expected=expected.number, number=head.number)
            if above - head.epoch > LEAP_MAX:
                why = f"epoch {above} elsewhere is far above {head.epoch} here"
                raise ProposalInvalid(machine=self._machine, why=why)
            claim = Claim(
                machine=self._machine,
                machine_name=name,
                number=head.number + 1,
                previous_hash=head.hash,
                epoch=max(head.epoch, above) + 1,
                claimant=claimant,
                reason=reason,
                nonce=nonce,
                claimed_at=_now(clock),
                former=head.epoch if above > head.epoch else msgspec.UNSET,
                known=msgspec.UNSET if known is None else known,
            )
            if not self._append(claim):
                raise HeadMoved(machine=self._machine, expected=head.number, number=self.head().number)
            crash_point(AFTER_CLAIM)
            return claim

    def seal_from_here(self, *, name: str, claimant: str, clock: Clock) -> Keyed:
        """Let the present vault key seal the log from now on; what an older one adds later is refused.

        The record that says so is a claim of the epoch in force, which changes nothing else: whoever is
        faster has the number, and a writer with the old key finds a record it cannot read. Repeatable.
        """
        key = self._key
        assert key is not None, "without a key nothing is sealed"
        with self._lock:
            for _ in range(COMMIT_ATTEMPTS_MAX):
                keyed = self._refresh().keyed
                if keyed is not None and keyed.generation >= key.generation:
                    return keyed
                head, chain = self._chain.head(), self._chain
                if not head.number or chain.generation >= key.generation:
                    made = Keyed(key=key.vault_id, generation=key.generation, number=chain.since or 1)
                    self._state.update(functools.partial(_keyed, made))
                    continue
                boundary = Claim(
                    machine=self._machine,
                    machine_name=name,
                    number=head.number + 1,
                    previous_hash=head.hash,
                    epoch=head.epoch,
                    claimant=claimant,
                    reason=KEY_ROTATION,
                    nonce=secrets.token_hex(16),
                    claimed_at=_now(clock),
                )
                if self._append(boundary):
                    crash_point(AFTER_BOUNDARY)
            raise StateBusy(machine=self._machine)

    def commit(
        self, proposal: PointProposal, *, clock: Clock, fingerprints: FingerprintsOf | None = None
    ) -> Point:
        """Make a recovery point of `proposal`, once, however often it is asked for (by its nonce).

        fingerprints: what the disks hold with this point; without it they stay as proposed.

        Raises:
            EpochSuperseded: another writer claimed the machine.
            ParentMismatch: the changes are not counted from the newest point.
            SegmentsMissing: send them and repeat.
            ProposalInvalid: the proposal contradicts itself or the journal.
        """
        with self._lock:
            for _ in range(COMMIT_ATTEMPTS_MAX):
                self._refresh()
                earlier = self._chain.nonces.get(proposal.nonce)
                if earlier is not None:
                    return self._committed_earlier(proposal, earlier)
                head = self._chain.head()
                self._check(proposal, head)
                self._check_segments(proposal)
                known = fingerprints(proposal, head) if fingerprints else {}
                point = _point(proposal, head, known, _now(clock))
                crash_point(BEFORE_MANIFEST)
                if self._append(point):
                    crash_point(AFTER_MANIFEST)
                    return point
            raise HeadMoved(machine=self._machine, expected=head.number, number=self.head().number)

    def _committed_earlier(self, proposal: PointProposal, earlier: Record) -> Point:
        if not isinstance(earlier, Point) or earlier.checkpoint != proposal.checkpoint:
            raise ProposalInvalid(machine=self._machine, why="its nonce belongs to another record")
        if self._chain.numbered.get(earlier.number) != earlier:
            raise ProposalInvalid(machine=self._machine, why=f"record {earlier.number} holds it and is void")
        return earlier

    def _check(self, proposal: PointProposal, head: Head) -> None:
        """Everything about a proposal that can be judged without looking at the store."""

        def require(condition: bool, why: str) -> None:
            if not condition:
                raise ProposalInvalid(machine=self._machine, why=why)

        require(proposal.machine == self._machine, f"it is of machine {proposal.machine}")
        if proposal.epoch != head.epoch or head.epoch == 0:
            claim = head.claim
            told = f"{claim.claimant}, {claim.reason}, {claim.claimed_at}" if claim else "nobody yet"
            raise EpochSuperseded(machine=self._machine, epoch=proposal.epoch, current=head.epoch, claim=told)
        newest = head.point.checkpoint if head.point else None
        if proposal.parent_checkpoint is not None and proposal.parent_checkpoint != newest:
            raise ParentMismatch(machine=self._machine, parent=proposal.parent_checkpoint, newest=newest)
        if proposal.fresh is True and head.point is not None:
            raise NotFresh(machine=self._machine, number=head.point.number)
        require(proposal.checkpoint != newest, f"checkpoint {newest} is the newest point's already")
        disks = {disk.id for disk in proposal.disks}
        require(bool(disks) and len(disks) == len(proposal.disks), "it lists no disk, or one twice")
        named = {(s.disk, s.id) for s in proposal.segments}
        require(len(named) == len(proposal.segments), "it names a segment twice")
        for segment in proposal.segments:
            require(segment.disk in disks, f"segment {segment.id} is of disk {segment.disk}, which it lacks")
            # segments of a dead epoch are garbage and may go at any moment
            require(segment.epoch == proposal.epoch, f"segment {segment.id} is of epoch {segment.epoch}")
            require(segment.merged is None, f"segment {segment.id} is not the source's")
            # promotion of the point that named it first would take it away from this one
            require((segment.disk, segment.id) not in self._chain.segments, f"it reuses segment {segment.id}")

    def _check_segments(self, proposal: PointProposal) -> None:
        missing = []
        for segment in proposal.segments:
            name = self.segment_name(segment)
            try:
                if self._store.size(name) != segment.stored_bytes:
                    missing.append(name)
            except ObjectMissing:
                missing.append(name)
        if missing:
            raise SegmentsMissing(machine=self._machine, names=missing)

    def segment_name(self, segment: SegmentRef) -> str:
        """Where a segment lies in the store."""
        if segment.merged is not None:
            return merged_name(self._machine, segment.merged, segment.disk, segment.id)
        return segment_name(self._machine, segment.epoch, segment.disk, segment.id)

    def record_hash(self, number: int) -> str:
        """The hash of a point's record, also of one being promoted. Raises PointUnknown, ChainBroken."""
        with self._lock:
            self._refresh()
            found = self._chain.hashes.get(number)
            if found is None:
                raise PointUnknown(machine=self._machine, number=number)
            return found

    def _append(self, record: Record) -> bool:
        """Create the next record; False when another writer took the number."""
        wrong = record_wrong(record)
        if wrong:  # its readers would refuse it, and with it everything after it
            raise ProposalInvalid(machine=self._machine, why=wrong)
        data = encode_record(record, self._key)
        name = log_name(self._machine, record.number)
        try:
            self._store.put(name, data)
        except ObjectExists:
            return False
        # Had we stalled until our number was promoted or merged away, what we wrote would be in no chain.
        state = self._state.read()
        if max([state.floor, state.begins, *(span.last for span in state.spans)]) >= record.number:
            self._store.delete(name)
            return False
        self._chain.add(data, self._state.read())
        return True

    # -- state ----------------------------------------------------------------------------------

    def state(self) -> State:
        """Floor, pins and bases as of now."""
        with self._lock:
            return self._state.read()

    def update_state(self, change: Callable[[State], State]) -> State:
        """Compare-and-set: apply `change` (pure, may be called again) to the newest state and store it."""
        with self._lock:
            return self._state.update(change)

    def pin(
        self, number: int, holder: str, reason: str, until: str | None = None, *, reads: bool = True
    ) -> Pin:
        """Keep point `number` readable until `unpin` or the time `until` (RFC 3339 UTC).

        A holder has one pin: pinning again moves it. Pin before opening a view, and open the view after:
        promotion then keeps every segment the view may read.

        Not `reads`: it keeps the point, and nothing that promotions and merges make needless.

        Raises:
            PointUnknown: there is no such point (any more).
        """
        with self._lock:
            self.point(number)

            def change(state: State) -> State:
                if number < max(state.floor, state.begins) or state.span_around(number):
                    raise PointUnknown(machine=self._machine, number=number)
                pin = Pin(
                    number=number,
                    holder=holder,
                    reason=reason,
                    until=until,
                    base_number=state.promoted if reads else number,
                    generation=state.generation + 1 if reads else NO_READER,
                )
                mine = next((p for p in state.pins if p.holder == holder), None)
                if mine is not None and mine.number == number:
                    # the same pin again, perhaps by a restarted holder: older readers may still be there
                    pin = msgspec.structs.replace(
                        pin, base_number=mine.base_number, generation=mine.generation
                    )
                    if pin == mine:
                        return state
                others = tuple(p for p in state.pins if p.holder != holder)
                return msgspec.structs.replace(state, pins=(*others, pin))

            state = self._state.update(change)
            return next(p for p in state.pins if p.holder == holder)

    def unpin(self, holder: str) -> None:
        """Take the holder's pin away; none is fine. Close its views before."""

        def change(state: State) -> State:
            return msgspec.structs.replace(state, pins=tuple(p for p in state.pins if p.holder != holder))

        with self._lock:
            self._state.update(change)

    # -- reading the chain ----------------------------------------------------------------------

    def _refresh(self) -> State:
        """Bring the cached chain up to date: a listing of the state, one probe, and what is new."""
        for _ in range(LOAD_ATTEMPTS_MAX):
            state = self._state.read()
            try:
                self._bring_up(state)
            except MovedOn:
                self._chain = ChainRecords(self._machine, self._key)
                continue
            return state
        raise StateBusy(machine=self._machine)

    def _bring_up(self, state: State) -> None:
        """Raises MovedOn when others changed the journal meanwhile, ChainBroken."""
        chain = self._chain
        begins = max(state.floor, state.begins)
        if not chain.number or chain.number < begins or not self._take_in(state.spans):
            self._chain = self._loader.load(state)
            return
        chain.drop_below(state.begins)
        while True:
            try:
                data = self._get(chain.number + 1)
            except ObjectMissing:
                return
            chain.add(data, state)

    def _take_in(self, spans: Sequence[SpanRef]) -> bool:
        """Apply spans the cached chain does not know yet; False when it is too old for that."""
        chain = self._chain
        for ref in spans:
            if ref in chain.spans:
                continue
            if chain.hashes.get(ref.last) != ref.hash:
                return False
            chain.fold(ref, self._loader.span(ref))
        chain.spans = tuple(spans)
        return True

    def _get(self, number: int) -> bytes:
        return self._store.get(log_name(self._machine, number), size_bytes_max=RECORD_BYTES_MAX)


def _number(point: Point) -> int:
    return point.number


def _keyed(keyed: Keyed, state: State) -> State:
    if state.keyed is not None and state.keyed.generation >= keyed.generation:
        return state
    return msgspec.structs.replace(state, keyed=keyed)


def _now(clock: Clock) -> str:
    return clock.utc().isoformat(timespec="microseconds")


def _point(
    proposal: PointProposal, head: Head, fingerprints: Mapping[DiskId, str | None], committed_at: str
) -> Point:
    fields = {f: getattr(proposal, f) for f in PointProposal.__struct_fields__ if f != "fresh"}
    fields["disks"] = tuple(
        msgspec.structs.replace(d, fingerprint=fingerprints[d.id]) if d.id in fingerprints else d
        for d in proposal.disks
    )
    return Point(**fields, number=head.number + 1, previous_hash=head.hash, committed_at=committed_at)
