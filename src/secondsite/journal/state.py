"""What a machine's journal stands on, besides the chain: floor, pins and bases, in one record.

The record is replaced by creating the next generation (compare-and-set by create-if-absent; numbered,
because not every backend can replace conditionally). The newest generation is the state; a few older ones
are kept for the curious, the rest is deleted.

Framing, little-endian: magic ``SSITEST1`` (8 bytes), version u16, required flags u16, body length u32,
blake3 of the body (32 bytes), vault key id (16 bytes), the seal (32 bytes: blake3 of all the rest, keyed with
the machine's log key), body (JSON). Unknown versions and flags are refused.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable

import blake3
import msgspec

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.journal import alive
from secondsite.journal.keys import LogKey, check_current, check_seal, sealed_with
from secondsite.journal.names import state_name, state_prefix
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore
from secondsite.model.ids import DiskId, KeyId, MachineId

MAGIC = b"SSITEST1"
VERSION = 1
HEADER = struct.Struct("<8sHHI32s16s32s")
# Required once there are spans: who does not know them would take the records they replaced for lost.
FLAG_SPANS = 1
# Required once a vault key was rotated: who does not know it would believe what an old key sealed later.
FLAG_KEYED = 2
# Required once points were deleted together: who does not know it would take the records before for lost.
FLAG_DROPPED = 4
# Thousands of pins and disks fit; more means a damaged length.
STATE_BYTES_MAX = 4 * 1024 * 1024
PINS_MAX = 1024
# The generation of a pin under which nobody reads: later than any, still exact as a number of JSON.
NO_READER = 2**53 - 1
# A writer may stall between reading the newest generation and creating the next; while it does, this many
# others may be written before its number could be free again (`update` notices even that).
GENERATIONS_KEPT = 16
ATTEMPTS_MAX = 256


class StateDamaged(SecondsiteError):
    """A state record does not decode."""

    code = "journal.state-damaged"
    outcome = Outcome.DAMAGED
    happened = "The state record {name} cannot be used: {why}."
    cause = "The store's bytes were damaged, or a newer version of secondsite wrote it."
    action = "Use the version that wrote it, or restore it from a copy. See RUNBOOK.md, damaged object."


class StateBusy(SecondsiteError):
    """Other writers were always faster."""

    code = "journal.state-busy"
    outcome = Outcome.UNAVAILABLE
    happened = "The state of machine {machine} could not be changed: others changed it each time."
    cause = "Several processes work on the same machine's journal at once."
    action = "Try again."


class TooManyPins(SecondsiteError):
    """The list of pins is full."""

    code = "journal.too-many-pins"
    outcome = Outcome.REFUSED
    happened = "Machine {machine} has {count} pinned points already."
    cause = "Test failovers or exports were not cleaned up."
    action = "Clean up what is not needed any more; `secondsite points list` shows who holds each pin."


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A point that must stay readable."""

    number: int
    holder: str  # who holds it; one holder has one pin
    reason: str
    until: str | None = None  # RFC 3339 UTC, after which it no longer counts; None: until it is taken away
    # what the base held when the pin was made: its readers may use every segment after that
    base_number: int = 0
    # of the state that made it: its readers may use whatever any state since then named
    generation: int = 0


class SpanRef(msgspec.Struct, frozen=True, kw_only=True):
    """A span in force: its records are read as the point `last` with the span's segments."""

    id: str
    first: int
    last: int
    previous_hash: str  # of the record before `first`
    hash: str  # of the record `last`
    object_hash: str  # blake3 of the span's object


class Retired(msgspec.Struct, frozen=True, kw_only=True):
    """What no reader since `generation` uses: to be deleted once the older readers' pins are gone."""

    first: int
    last: int
    span: str | None = None  # the span's id; None: the segments the records `first` to `last` name themselves
    generation: int


class Keyed(msgspec.Struct, frozen=True, kw_only=True):
    """Since when a vault key seals a machine's log."""

    key: KeyId
    generation: int
    number: int  # the first record sealed with it; later ones must be, too


class BaseState(msgspec.Struct, frozen=True, kw_only=True):
    """A disk's base as the store knows it."""

    disk: DiskId
    locator: str  # where it was last, e.g. a path at the target site
    identity: str  # random, kept with the base itself; another file at the same place is refused
    size_bytes: int
    format: str = "raw"  # never guessed: a guest writes what a raw image begins with


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Up to which record nothing counts any more: all points were deleted, on a person's word."""

    number: int  # of a claim, which stays and begins the chain; what came before it is garbage
    hash: str  # of that record
    epoch: int  # that it began: segments of earlier ones are garbage
    at: str  # RFC 3339 UTC
    bases: tuple[BaseState, ...] = ()  # images that are still to be removed


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """That the source was stopped in order, and has written nothing since the newest record; or may have."""

    operation: str  # of the stop
    number: int  # of the record that was the newest then: while it still is, this counts
    void: bool = False  # the source was let run again, or is about to be


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One generation."""

    machine: MachineId
    generation: int = 0  # 0: no record was written yet
    nonce: str = ""
    floor: int = 0  # points below are gone; 0: none is
    floor_hash: str = ""  # of the record `floor`, where the chain's check begins
    promoted: int = 0  # the bases hold every change up to this point, synced; below `floor`: being promoted
    pins: tuple[Pin, ...] = ()
    bases: tuple[BaseState, ...] = ()
    spans: tuple[SpanRef, ...] = ()  # ascending, disjoint
    retired: tuple[Retired, ...] = ()
    merging: str = ""  # the span being written, if any: what lies under another unknown id is garbage
    keyed: Keyed | None = None  # None: the vault key was never rotated
    # left out where nothing was, so that the bytes of other states are what they always were
    dropped: Dropped | msgspec.UnsetType = msgspec.UNSET
    stopped: Stopped | msgspec.UnsetType = (
        msgspec.UNSET
    )  # who does not know it forgets it, and nothing is proved

    @property
    def begins(self) -> int:
        """The record the chain is read from: what the bases hold, or what ended a deletion; 0: the first."""
        return max(self.promoted, self.dropped.number if isinstance(self.dropped, Dropped) else 0)

    def base(self, disk: DiskId) -> BaseState | None:
        """The disk's base, None when it has none."""
        return next((b for b in self.bases if b.disk == disk), None)

    def pins_at(self, now: str) -> tuple[Pin, ...]:
        """Pins that count at `now` (RFC 3339 UTC); those of this process's readers do at any time."""
        return tuple(
            p for p in self.pins if p.until is None or p.until > now or alive.reads(self.machine, p.holder)
        )

    def span_around(self, number: int) -> SpanRef | None:
        """The span that replaced the record `number`, which is not its last one."""
        return next((s for s in self.spans if s.first <= number < s.last), None)

    @property
    def kept(self) -> frozenset[int]:
        """Records that must stay although what they name themselves may be gone."""
        return frozenset([self.promoted, self.floor, *(span.last for span in self.spans)])


def encode_state(state: State, key: LogKey | None) -> bytes:
    """The record's bytes, sealed with the machine's log key; without a key not sealed."""
    body = msgspec.json.encode(state)
    digest = blake3.blake3(body).digest()
    flags = FLAG_SPANS if state.spans or state.retired else 0
    flags |= FLAG_KEYED if state.keyed is not None else 0
    flags |= FLAG_DROPPED if isinstance(state.dropped, Dropped) else 0
    head = HEADER.pack(MAGIC, VERSION, flags, len(body), digest, sealed_with(key), bytes(32))[:-32]
    return head + (key.seal(head, body) if key is not None else bytes(32)) + body


def decode_state(name: str, data: bytes, key: LogKey | None, *, newest: bool = False) -> State:
    """Parse and check a record; with a key its seal too. Raises StateDamaged, WrongKey, ObjectDamaged.

    newest: it is to count, so once a rotation is finished no retired key may have sealed it (KeyRetired).
    """
    if len(data) < HEADER.size:
        raise StateDamaged(name=name, why="it is too short")
    magic, version, flags, length, digest, vault, seal = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    if magic != MAGIC:
        raise StateDamaged(name=name, why="it is not a state record")
    if version != VERSION or flags & ~(FLAG_SPANS | FLAG_KEYED | FLAG_DROPPED):
        raise StateDamaged(name=name, why=f"its version is {version}, its flags are {flags:#x}")
    if len(body) != length or blake3.blake3(body).digest() != digest:
        raise StateDamaged(name=name, why="its checksum does not match")
    check_seal(name, key, vault, seal, data[: HEADER.size - 32], body)
    if newest and key is not None and key.strictness.finished:
        check_current(name, key, vault, "since the rotation was finished")
    try:
        state = msgspec.json.decode(body, type=State)
    except JSON_ERRORS as error:
        raise StateDamaged(name=name, why=str(error)) from error
    if name != state_name(state.machine, state.generation):
        raise StateDamaged(name=name, why="it belongs to another machine or generation")
    return state


def state_key_id(data: bytes) -> bytes:
    """The vault key id in the header of a state that was decoded; zeros: not sealed."""
    found: bytes = HEADER.unpack_from(data)[5]
    return found


class StateRecord:
    """The state of one machine in a store; not thread-safe, `Journal` locks around it."""

    def __init__(self, store: ObjectStore, machine: MachineId, key: LogKey | None) -> None:
        self._store, self._machine, self._key = store, machine, key
        self._state = State(machine=machine)
        self._key_id = bytes(16)  # of who sealed it

    def read(self) -> State:
        """The newest generation; a default one when there is none."""
        while True:
            known = state_name(self._machine, self._state.generation)
            newest = max(self._store.list(state_prefix(self._machine), after=known), default="")
            if not newest:
                return self._state
            try:
                data = self._store.get(newest, size_bytes_max=STATE_BYTES_MAX)
            except ObjectMissing:
                continue  # deleted since it was listed: much newer ones exist
            state = decode_state(newest, data, self._key, newest=True)
            if self._generation_of(state_key_id(data)) < self._generation_of(self._key_id):
                check_current(newest, self._key, state_key_id(data), f"after {known} was sealed")
            if state.machine != self._machine:
                raise StateDamaged(name=newest, why="it belongs to another machine")
            self._state, self._key_id = state, state_key_id(data)

    def _generation_of(self, vault_id: bytes) -> int:
        return self._key.generation_of(vault_id) if self._key is not None else 0

    def update(self, change: Callable[[State], State]) -> State:
        """Apply `change` to the newest state and store the result.

        change: pure; called again when another writer was first. It may raise to refuse, and may return
            its argument unchanged, which writes nothing.
        """
        for _ in range(ATTEMPTS_MAX):
            before = self.read()
            after = change(before)
            if after == before:
                return before
            if len(after.pins) > PINS_MAX:
                raise TooManyPins(machine=self._machine, count=len(before.pins))
            after = msgspec.structs.replace(
                after, generation=before.generation + 1, nonce=secrets.token_hex(16)
            )
            name = state_name(self._machine, after.generation)
            try:
                self._store.put(name, encode_state(after, self._key))
            except ObjectExists:
                continue
            # had we stalled for so long that our number was deleted meanwhile, what we wrote would not count
            if self.read().generation - after.generation >= GENERATIONS_KEPT - 1:
                self._store.delete(name)
                continue
            self._delete_old(after.generation)
            return after
        raise StateBusy(machine=self._machine)

    def _delete_old(self, newest: int) -> None:
        end = newest - GENERATIONS_KEPT
        if end <= 0:
            return
        for name in self._store.list(state_prefix(self._machine)):
            if name >= state_name(self._machine, end + 1):
                return
            self._store.delete(name)
