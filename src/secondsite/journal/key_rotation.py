"""Rotating the vault key of one journal: everything small is sealed again, no data is rewritten.

The order, each step repeatable after a crash (what is there already is not made again):

1. every data key is wrapped with the new key, under a name of its own beside the old wrapping;
2. episodes and dismissals are sealed again in the same way: nothing chains them, so nothing else vouches;
3. a record sealed with the new key ends the old one's time in the log, and the state, sealed with the new
   key from then on, keeps its number (`Journal.seal_from_here`);
4. pages of the log, a cache nobody checks record by record, are dropped: the upkeep makes them again;
5. once the rotation is finished at every reader: what step 1 and 2 replaced goes, in reverse.

Points, segments, spans and definitions stay as they are: records before the boundary are held by the chain of
hashes that ends in it, and open with the retired key that a key file of version 2 carries.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from secondsite.base.clock import Clock
from secondsite.base.crash import crash_point, mark
from secondsite.base.errors import SecondsiteError
from secondsite.journal.box import box_key_id
from secondsite.journal.chain import Journal
from secondsite.journal.episodes import replaced_episodes, reseal_episodes
from secondsite.journal.errors import FormatUnknown, ObjectDamaged, WrongKey
from secondsite.journal.format import BOX_HEADER, RECORD_HEADER
from secondsite.journal.keys import (
    WRAPPED_KEY_BYTES_MAX,
    KeyRing,
    VaultKey,
    decode_wrapped,
    encode_wrapped,
    wrapped_name,
)
from secondsite.journal.log_pages import HEADER as LOG_PAGE_HEADER
from secondsite.journal.log_pages import log_page_key_id
from secondsite.journal.names import log_pages_prefix, log_prefix, state_prefix, wrapped_keys_prefix
from secondsite.journal.state import HEADER as STATE_HEADER
from secondsite.journal.store import ObjectExists, ObjectMissing, ObjectStore, StoreLocked
from secondsite.model.ids import KeyId, MachineId, key_id

AFTER_WRAP = mark("key.after-wrap")
AFTER_STATE = mark("key.after-state")
DURING_PAGES = mark("key.during-pages")
DURING_DELETE = mark("key.during-delete")


@dataclass
class KeyUse:
    """What of one machine still needs one vault key."""

    points: int = 0  # whose record or definition it sealed
    wrapped: int = 0  # data keys that only it unwraps
    copies: int = 0  # wrappings, episodes that are there once more under the present key
    state: bool = False  # what the machine's log stands on

    @property
    def needed(self) -> bool:
        """Whether something would be lost without the key."""
        return bool(self.points or self.wrapped or self.state)


@dataclass
class Resealed:
    """What was done; zeros when all was done before."""

    wrapped: int = 0
    episodes: int = 0
    pages: int = 0
    number: int = field(default=0)  # the record from which on the new key seals


def reseal(journal: Journal, vault: VaultKey, *, claimant: str, clock: Clock) -> Resealed:
    """Steps 1 to 4. Raises what a damaged object or a store that fails raises; repeatable."""
    done = Resealed()
    for key in _data_keys(journal):
        done.wrapped += _wrap(journal, vault, key)
    done.episodes = reseal_episodes(journal)
    points = journal.points()
    name = points[-1].machine_name if points else str(journal.machine)
    done.number = journal.seal_from_here(name=name, claimant=claimant, clock=clock).number
    crash_point(AFTER_STATE)
    done.pages = _drop_pages(journal, vault)
    return done


def is_resealed(journal: Journal, vault: VaultKey) -> bool:
    """Whether steps 1 to 3 were done: the present key alone opens and vouches for all that is current."""
    keyed = journal.state().keyed
    names = _wrapped(journal)
    return (
        keyed is not None
        and keyed.key == vault.id
        and all(wrapped_name(vault, journal.machine, key) in names for key in _data_keys(journal))
    )


def delete_replaced(journal: Journal, vault: VaultKey, *, on_locked: Callable[[StoreLocked], None]) -> int:
    """Step 5: what is there once more under the present key. Returns how many objects went.

    A wrapping goes only when the new one was read back and holds the same key, or when it is damaged itself.
    """
    count = 0
    assert is_resealed(journal, vault), "called before everything was sealed again"
    for name in reversed(_wrapped(journal)):
        key = _key_of(journal, name)
        kept = wrapped_name(vault, journal.machine, key) if key is not None else name
        if key is None or name == kept:
            continue
        with contextlib.suppress(ObjectMissing):
            made, before = decode_wrapped(vault, _get(journal, kept)), None
            with contextlib.suppress(ObjectDamaged, FormatUnknown, WrongKey):
                before = decode_wrapped(vault, _get(journal, name))
            if before not in (None, made):
                raise ObjectDamaged(what=kept, why=f"it holds another key than {name}")
            count += _delete(journal, name, on_locked)
    for name in reversed(replaced_episodes(journal)):
        count += _delete(journal, name, on_locked)
    return count


def uses(journal: Journal, vault: VaultKey) -> dict[str, KeyUse]:
    """What of the machine needs which vault key, by key id. Lists the wrappings; reads no segment."""
    found: dict[str, KeyUse] = {}

    def of(identity: str) -> KeyUse:
        return found.setdefault(identity, KeyUse())

    keyed = journal.state().keyed
    for point in journal.points_after(max(0, journal.state().promoted - 1)):
        needed = {box_key_id(point.definition)} - {""}
        if keyed is not None and point.number < keyed.number:
            # sealed by the key before it, or an older one: their boundaries are in the log
            needed |= {old.id for old in vault.retired[:1]}
        for identity in needed:
            of(identity).points += 1
    names = _wrapped(journal)
    for name in names:
        with contextlib.suppress(ObjectMissing):
            identity = box_key_id(_get(journal, name))
            key = _key_of(journal, name)
            spare = key is not None and name != wrapped_name(vault, journal.machine, key)
            if spare and key is not None and wrapped_name(vault, journal.machine, key) in names:
                of(identity).copies += 1
            else:
                of(identity).wrapped += 1
    sealer = keyed.key if keyed is not None else vault.retired[-1].id if vault.retired else vault.id
    of(sealer).state = True
    return found


def _wrapped(journal: Journal) -> list[str]:
    return list(journal.store.list(wrapped_keys_prefix(journal.machine)))


def _key_of(journal: Journal, name: str) -> KeyId | None:
    """The data key an object of `keys/` is a wrapping of; None: it is none of ours."""
    text = name.removeprefix(wrapped_keys_prefix(journal.machine)).partition(".")[0]
    try:
        return key_id(text)
    except SecondsiteError:
        return None


def _data_keys(journal: Journal) -> Iterator[KeyId]:
    found = {_key_of(journal, name) for name in _wrapped(journal)}
    yield from sorted(key for key in found if key is not None)


def _get(journal: Journal, name: str) -> bytes:
    return journal.store.get(name, size_bytes_max=WRAPPED_KEY_BYTES_MAX)


def _wrap(journal: Journal, vault: VaultKey, key: KeyId) -> int:
    """One data key under the present vault key; 1 when it was not there."""
    name = wrapped_name(vault, journal.machine, key)
    with contextlib.suppress(ObjectMissing):
        with contextlib.suppress(ObjectDamaged, FormatUnknown, WrongKey):
            decode_wrapped(vault, _get(journal, name))
            return 0
        # a damaged new wrapping, while the old one is still good
        journal.store.delete(name)
    disk, found = KeyRing(journal.store, journal.machine, vault).unwrap(key)
    with contextlib.suppress(ObjectExists):
        journal.store.put(name, encode_wrapped(vault, journal.machine, disk, found))
    crash_point(AFTER_WRAP)
    return 1


def _drop_pages(journal: Journal, vault: VaultKey) -> int:
    """Pages of the log another key sealed."""
    count = 0
    for name in list(journal.store.list(log_pages_prefix(journal.machine))):
        with contextlib.suppress(ObjectMissing, EOFError):
            head = journal.store.read(name, 0, LOG_PAGE_HEADER.size)
            if log_page_key_id(head).hex() != vault.id:
                journal.store.delete(name)
                count += 1
                crash_point(DURING_PAGES)
    return count


def _delete(journal: Journal, name: str, on_locked: Callable[[StoreLocked], None]) -> int:
    try:
        journal.store.delete(name)
    except StoreLocked as error:
        on_locked(error)
        return 0
    crash_point(DURING_DELETE)
    return 1


@dataclass
class Sealed:
    """What of a machine names one vault key in its header."""

    records: int = 0
    wrapped: int = 0
    state: bool = False


def sealers(store: ObjectStore, machine: MachineId, on_object: Callable[[], None]) -> dict[str, Sealed]:
    """Which vault keys a machine's objects name, by key id, oldest use first. Needs no key, checks nothing.

    on_object: called for each object looked at; of a log only the headers are read.
    """
    found: dict[str, Sealed] = {}

    def looked(name: str, header: struct.Struct, field: int) -> Sealed | None:
        on_object()
        try:
            identity: bytes = header.unpack(store.read(name, 0, header.size))[field]
        except (ObjectMissing, EOFError):
            return None
        return found.setdefault(identity.hex() if identity.strip(b"\0") else "", Sealed())

    for name in store.list(log_prefix(machine)):
        if (use := looked(name, RECORD_HEADER, 8)) is not None:
            use.records += 1
    for name in store.list(wrapped_keys_prefix(machine)):
        if (use := looked(name, BOX_HEADER, 6)) is not None:
            use.wrapped += 1
    newest = max(store.list(state_prefix(machine)), default=None)
    if newest is not None and (use := looked(newest, STATE_HEADER, 5)) is not None:
        use.state = True
    found.pop("", None)  # not sealed
    return found
