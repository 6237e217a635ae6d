"""The records of a chain as a process holds them: checked one after the other, never re-read."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from secondsite.journal.chain_errors import ChainBroken
from secondsite.journal.keys import LogKey, check_current
from secondsite.journal.manifest import decode_record, record_hash, record_key_id
from secondsite.journal.state import Dropped, SpanRef, State
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import ZERO_HASH, Claim, Point, Record, Span


@dataclass(frozen=True)
class Head:
    """Where a chain ends."""

    number: int  # of the newest record; 0: there is none
    epoch: int  # in force; 0: never claimed
    hash: str  # of the newest record; 64 zeros when there is none
    point: Point | None  # the newest point that counts
    claim: Claim | None = None  # the claim in force, where it is still kept


class ChainRecords:
    """Decoded records from the one the chain begins with, with what is asked of them."""

    def __init__(self, machine: MachineId, key: LogKey | None) -> None:
        self._machine = machine
        self._key = key
        self.number = 0  # of the newest record
        self.hash = ZERO_HASH
        self.epoch = 0
        self.claim: Claim | None = None
        self.records: list[Record] = []
        self.points: list[Point] = []
        self.numbered: dict[int, Point] = {}
        self.nonces: dict[str, Record] = {}
        self.segments: set[tuple[DiskId, str]] = set()
        self.hashes: dict[int, str] = {}  # of the points' records
        self.spans: tuple[SpanRef, ...] = ()  # that are taken in
        # The newest vault key met so far, and the first record it sealed; 0: none was (log pages hide it).
        self.generation, self.since = 0, 0

    def head(self) -> Head:
        """Where the chain ends."""
        return Head(self.number, self.epoch, self.hash, self.points[-1] if self.points else None, self.claim)

    def add(self, data: bytes, state: State) -> None:
        """Check the next record against the chain and take it in. Raises ChainBroken."""
        record = decode_record(data, self._key)
        self._check_key(data, record.number, state)
        self.add_checked(record, record_hash(data), state)

    def _check_key(self, data: bytes, number: int, state: State) -> None:
        """After the first record a newer vault key sealed no older one seals any. Raises KeyRetired."""
        if self._key is None:
            return
        found = record_key_id(data)
        generation = self._key.generation_of(found)
        if state.keyed is not None and number >= state.keyed.number and generation < state.keyed.generation:
            since = f"since record {state.keyed.number}"
            check_current(f"record {number} of machine {self._machine}", self._key, found, since)
        if generation < self.generation:
            since = f"since record {self.since}"
            check_current(f"record {number} of machine {self._machine}", self._key, found, since)
        if generation > self.generation:
            self.generation, self.since = generation, number

    def add_checked(self, record: Record, found: str, state: State) -> None:
        """As `add`, of a record whose content and hash `found` are known to be what was written."""
        begins = not self.number
        number = max(state.begins, 1) if begins else self.number + 1
        if record.machine != self._machine or record.number != number:
            raise self._broken(number, f"it is record {record.number} of machine {record.machine}")
        if number == state.floor and found != state.floor_hash:
            raise self._broken(number, "it is not the record the floor was set to")
        if begins and isinstance(state.dropped, Dropped) and state.dropped.number == number:
            if not isinstance(record, Claim) or found != state.dropped.hash:
                raise self._broken(number, "it is not the claim up to which all points were deleted")
            self.epoch = record.epoch - 1  # it counted
        elif begins and state.promoted:
            if not isinstance(record, Point):
                raise self._broken(number, "a claim cannot be what was promoted")
            self.epoch = record.epoch  # it was a point that counted
        elif record.previous_hash != self.hash:
            raise self._broken(number, "the hash of the record before does not match")
        self.number, self.hash = number, found
        self.records.append(record)
        self.nonces[record.nonce] = record
        if isinstance(record, Claim):
            # any other could only be written by a faulty program
            if record.epoch == self.epoch + 1 or record.former == self.epoch < record.epoch:
                self.epoch, self.claim = record.epoch, record
        elif record.epoch == self.epoch > 0:
            self._count(record)

    def _count(self, point: Point) -> None:
        if self.points and self.points[-1].definition == point.definition:
            # one copy in memory of what rarely changes
            point = msgspec.structs.replace(point, definition=self.points[-1].definition)
            self.records[-1] = self.nonces[point.nonce] = point
        self.points.append(point)
        self.numbered[point.number] = point
        self.hashes[point.number] = self.hash
        self.segments.update((s.disk, s.id) for s in point.segments)

    def add_span(self, data: bytes, ref: SpanRef, span: Span, state: State) -> None:
        """Go on over a span: the next record is its last one. Raises ChainBroken."""
        record = decode_record(data, self._key)
        self._check_key(data, record.number, state)
        found = record_hash(data)
        begins = not self.number and state.begins > 0
        if not isinstance(record, Point) or (record.machine, record.number) != (self._machine, ref.last):
            raise self._broken(ref.last, "it is not the point a span ends at")
        if found != ref.hash or begins or ref.previous_hash != self.hash:
            raise self._broken(ref.last, "the span before it does not join what is on its sides")
        if ref.last == state.floor and found != state.floor_hash:
            raise self._broken(ref.last, "it is not the record the floor was set to")
        if self.claim is not None and self.claim.epoch != record.epoch:
            self.claim = None
        self.number, self.hash, self.epoch = ref.last, found, record.epoch
        point = msgspec.structs.replace(record, segments=span.segments)
        self.records.append(point)
        self.nonces[point.nonce] = point
        self._count(point)

    def fold(self, ref: SpanRef, span: Span) -> None:
        """Replace the records of a span by its last one."""
        for record in [r for r in self.records if ref.first <= r.number < ref.last]:
            del self.nonces[record.nonce]
            point = self.numbered.pop(record.number, None)
            if point is not None:
                self.hashes.pop(record.number, None)
                self.segments.difference_update((s.disk, s.id) for s in point.segments)
            elif isinstance(record, Claim) and record is self.claim and self.epoch != record.epoch:
                self.claim = None
        last = self.numbered[ref.last]
        self.segments.difference_update((s.disk, s.id) for s in last.segments)
        self.segments.update((s.disk, s.id) for s in span.segments)
        made = msgspec.structs.replace(last, segments=span.segments)
        self.numbered[ref.last] = self.nonces[last.nonce] = made
        self.records = [
            made if r is last else r for r in self.records if not ref.first <= r.number < ref.last
        ]
        self.points = [made if p is last else p for p in self.points if p.number in self.numbered]

    def drop_below(self, number: int) -> None:
        """Forget records below the one the chain begins with."""
        if not self.records or self.records[0].number >= number:
            return
        gone = [r for r in self.records if r.number < number]
        self.records = self.records[len(gone) :]
        for record in gone:
            del self.nonces[record.nonce]
            if self.numbered.pop(record.number, None) is not None:
                assert isinstance(record, Point)
                del self.hashes[record.number]
                self.segments.difference_update((s.disk, s.id) for s in record.segments)
        self.points = [p for p in self.points if p.number >= number]

    def _broken(self, number: int, why: str) -> ChainBroken:
        return ChainBroken(machine=self._machine, number=number, why=why)
