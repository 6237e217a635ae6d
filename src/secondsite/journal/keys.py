"""Keys: one vault key wraps a data key for each disk; each segment has a key of its own.

The vault key never lies in a store; a data key lies there only wrapped; a segment's key is derived from the
data key and 256 random bits in the segment's header, so no key and nonce ever meet twice (rule 8).

A vault key that was rotated carries the keys before it: they open what was sealed with them. What they may
not do any more is told by `journal.chain_records` (nothing after the record of the rotation) and, once the
rotation is finished, by `VaultKey.strict`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import blake3

from secondsite.base.errors import SecondsiteError
from secondsite.base.files import create_file, read_limited
from secondsite.journal.box import KEY_BYTES, box_key_id, derive, open_box, seal_box
from secondsite.journal.errors import (
    FormatUnknown,
    KeyMissing,
    KeyRetired,
    ObjectDamaged,
    TooManyRetired,
    WrongKey,
    damaged,
)
from secondsite.journal.format import BOX_FLAG_LATER_KEY, BOX_PLAIN_BYTES_MAX, BOX_WRAPPED_KEY
from secondsite.journal.key_file import (
    FILE_BYTES_MAX,
    RETIRED_MAX,
    KeyFile,
    RetiredKey,
    decode_key_file,
    encode_key_file,
    key_id_of,
)
from secondsite.journal.names import rewrapped_key_name, wrapped_key_name, wrapped_keys_prefix
from secondsite.journal.store import ObjectMissing, ObjectStore
from secondsite.model.ids import DiskId, KeyId, MachineId, disk_id, key_id, machine_id

Randomness = Callable[[int], bytes]

WRAPPED_KEY_BYTES_MAX = 4096


class Strictness:
    """Shared by a vault key and all that was derived from it: whether its rotation is finished."""

    def __init__(self) -> None:
        self.finished = False


@dataclass(frozen=True)
class LogKey:
    """Seals records and states: a message authentication code, not secrecy."""

    vault_id: KeyId
    secret: bytes = field(repr=False)
    generation: int = 1
    retired: tuple[LogKey, ...] = ()
    strictness: Strictness = field(default_factory=Strictness, compare=False, repr=False)

    def seal(self, *parts: bytes | memoryview) -> bytes:
        """32 bytes: keyed blake3 of the parts."""
        hasher = blake3.blake3(key=self.secret)
        for part in parts:
            hasher.update(part)
        return hasher.digest()

    def named(self, vault_id: bytes) -> LogKey | None:
        """The key a header names: this one, a retired one, or none of them."""
        found = vault_id.hex()
        return next((key for key in (self, *self.retired) if key.vault_id == found), None)

    def generation_of(self, vault_id: bytes) -> int:
        """Which generation a header's key is; 0: none of ours."""
        key = self.named(vault_id)
        return key.generation if key is not None else 0


def sealed_with(key: LogKey | None) -> bytes:
    """The vault key id as a header names it; zeros: not sealed."""
    return bytes.fromhex(key.vault_id) if key is not None else bytes(16)


def check_seal(
    what: str, key: LogKey | None, vault_id: bytes, seal: bytes, *parts: bytes | memoryview
) -> None:
    """Refuse what neither `key` nor one it took the place of sealed; without a key nothing is looked at.

    Raises:
        WrongKey: another vault's key sealed it. ObjectDamaged: nobody's, or it was changed.
    """
    if key is None:
        return
    sealer = key.named(vault_id)
    if sealer is None and vault_id.strip(b"\0"):
        raise WrongKey(what=what, needed=vault_id.hex(), given=key.vault_id)
    if not hmac.compare_digest(seal, (sealer or key).seal(*parts)):
        raise damaged(what, "its seal does not fit: somebody without the vault key wrote or changed it")


def check_current(what: str, key: LogKey | None, vault_id: bytes, since: str) -> None:
    """Refuse what a retired key sealed where only the present one may. since: when that began, in words."""
    if key is not None and vault_id.hex() != key.vault_id:
        raise KeyRetired(what=what, key=vault_id.hex(), since=since, needed=key.vault_id)


@dataclass(frozen=True)
class VaultKey:
    """The one secret a person must keep. `repr` never shows it."""

    id: KeyId
    secret: bytes = field(repr=False)
    generation: int = 1
    retired: tuple[RetiredKey, ...] = ()  # the newest first
    strictness: Strictness = field(default_factory=Strictness, compare=False, repr=False)

    @classmethod
    def create(cls, randomness: Randomness = os.urandom) -> VaultKey:
        """A new random key."""
        return cls.of(randomness(KEY_BYTES))

    @classmethod
    def of(cls, secret: bytes) -> VaultKey:
        """From its 32 bytes; the id follows from them and gives nothing away."""
        assert len(secret) == KEY_BYTES
        return cls(key_id_of(secret), secret)

    def renew(self, at: str, randomness: Randomness = os.urandom) -> VaultKey:
        """The key that takes this one's place, from `at` on, and still opens what this one sealed.

        Raises TooManyRetired.
        """
        if len(self.retired) >= RETIRED_MAX:
            raise TooManyRetired(count=len(self.retired))
        new = VaultKey.create(randomness)
        old = RetiredKey(self.id, self.generation, self.secret, at)
        return replace(new, generation=self.generation + 1, retired=(old, *self.retired))

    def as_of(self, identity: str) -> VaultKey | None:
        """The vault as it was while the retired key `identity` was the newest; None: it is none of ours."""
        for place, old in enumerate(self.retired):
            if old.id == identity:
                older = self.retired[place + 1 :]
                return VaultKey(old.id, old.secret, old.generation, older)
        return None

    def opens(self, identity: str) -> bool:
        """Whether it is this key or a retired one."""
        return identity == self.id or any(old.id == identity for old in self.retired)

    def save(self, path: Path, randomness: Randomness = os.urandom) -> bool:
        """Write a key file of mode 0600; False when the name exists (nothing is overwritten)."""
        content = KeyFile(self.id, self.secret, self.generation, self.retired)
        return create_file(path, encode_key_file(content, randomness), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> VaultKey:
        """Read a key file, of either version.

        Raises:
            KeyFileInvalid: it is damaged or another file. FileNotFoundError: there is none.
        """
        found = decode_key_file(path, read_limited(path, size_bytes_max=FILE_BYTES_MAX))
        return cls(found.id, found.secret, found.generation, found.retired)

    def open(self, kind: int, data: bytes, *, what: str) -> bytes:
        """Open a box that this key or a retired one sealed. Raises as `open_box` does."""
        identity = box_key_id(data)
        for old in self.retired:
            if old.id == identity:
                return open_box(kind, old.id, old.secret, data, what=what)
        return open_box(kind, self.id, self.secret, data, what=what)

    def log_key(self, machine: MachineId) -> LogKey:
        """What seals the records and states of a machine: who lacks it cannot add or change one."""

        def derived(secret: bytes) -> bytes:
            return derive(secret, machine.encode(), b"log")

        retired = tuple(LogKey(old.id, derived(old.secret), old.generation) for old in self.retired)
        return LogKey(self.id, derived(self.secret), self.generation, retired, self.strictness)

    def prove(self, challenge: bytes) -> bytes:
        """Answer a challenge: shows that the key is held without showing it (HMAC-SHA256)."""
        return hmac.new(derive(self.secret, b"", b"proof"), challenge, hashlib.sha256).digest()


@dataclass(frozen=True)
class DiskKey:
    """A data key of one disk.

    A later key keeps the first one's id and digest seed: what was computed with the seed (digests,
    fingerprints, the sums of a base) is compared over years, and outlives every key.
    """

    id: KeyId
    secret: bytes = field(repr=False)
    first_id: KeyId | None = None  # None: it is the first
    seed: int | None = field(default=None, repr=False)  # of the first; None: it is the first

    @classmethod
    def create(cls, randomness: Randomness = os.urandom) -> DiskKey:
        """A new random key with a random id."""
        return cls(KeyId(randomness(16).hex()), randomness(KEY_BYTES))

    def renew(self, randomness: Randomness = os.urandom) -> DiskKey:
        """The key that takes this one's place."""
        made = DiskKey.create(randomness)
        return replace(made, first_id=self.origin, seed=self.digest_seed())

    @property
    def origin(self) -> KeyId:
        """The id of the disk's first key."""
        return self.first_id if self.first_id is not None else self.id

    def segment_key(self, salt: bytes) -> bytes:
        """The AES-256 key of the segment whose header holds `salt`."""
        return derive(self.secret, salt, b"segment")

    def digest_seed(self) -> int:
        """The seed of the disk's sub-block digests, 64 bits."""
        if self.seed is not None:
            return self.seed
        return int.from_bytes(derive(self.secret, b"", b"digest seed", 8), "little")


def encode_wrapped(
    vault: VaultKey, machine: MachineId, disk: DiskId, key: DiskKey, randomness: Randomness = os.urandom
) -> bytes:
    """The object that keeps a data key in a store."""
    parts = [machine, disk, key.id, key.secret.hex()]
    required = 0
    if key.first_id is not None:
        parts += [key.first_id, f"{key.digest_seed():016x}"]
        required = BOX_FLAG_LATER_KEY
    plain = b"\0".join(part.encode() for part in parts)
    return seal_box(BOX_WRAPPED_KEY, vault.id, vault.secret, plain, required=required, randomness=randomness)


def decode_wrapped(vault: VaultKey, data: bytes) -> tuple[MachineId, DiskId, DiskKey]:
    """Unwrap a data key.

    Raises:
        WrongKey: another vault key wrapped it. ObjectDamaged: it is not what was written.
    """
    what = "a wrapped key"
    parts = vault.open(BOX_WRAPPED_KEY, data, what=what).split(b"\0")
    if len(parts) not in (4, 6) or len(parts[3]) != 2 * KEY_BYTES:
        raise damaged(what, "its content has another shape")
    machine, disk, identity, secret, *later = (part.decode("ascii", "replace") for part in parts)
    key = DiskKey(key_id(identity), bytes.fromhex(secret))
    if later:
        key = replace(key, first_id=key_id(later[0]), seed=int(later[1], 16))
    return machine_id(machine), disk_id(disk), key


class KeyRing:
    """Data keys of one machine, unwrapped once. Thread-safe."""

    def __init__(self, store: ObjectStore, machine: MachineId, vault: VaultKey) -> None:
        self._store = store
        self._machine = machine
        self._vault = vault
        self._keys: dict[KeyId, DiskKey] = {}
        self._lock = threading.Lock()

    def add(self, key: DiskKey) -> None:
        """Hold a key that need not be in the store."""
        with self._lock:
            self._keys[key.id] = key

    def get(self, key: KeyId) -> DiskKey:
        """A data key.

        Raises:
            KeyMissing, WrongKey, ObjectDamaged.
        """
        with self._lock:
            found = self._keys.get(key)
        return found if found is not None else self.read(key)

    def name(self, key: KeyId) -> str:
        """The object a data key is read from: the first of its wrappings that is there."""
        names = wrapped_names(self._vault, self._machine, key)
        there = set(self._store.list(wrapped_keys_prefix(self._machine)))
        return next((name for name in names if name in there), names[0])

    def read(self, key: KeyId) -> DiskKey:
        """A data key as the store has it now, held or not. Raises as `get` does.

        While a vault key is rotated a data key is there twice, and one sound wrapping is enough.
        """
        unwrapped = self.unwrap(key)[1]
        self.add(unwrapped)
        return unwrapped

    def unwrap(self, key: KeyId) -> tuple[DiskId, DiskKey]:
        """As `read`, with the disk it is the key of; nothing is held."""
        wrong: SecondsiteError | None = None
        for name in wrapped_names(self._vault, self._machine, key):
            try:
                data = self._store.get(name, size_bytes_max=WRAPPED_KEY_BYTES_MAX)
                machine, disk, unwrapped = decode_wrapped(self._vault, data)
                if machine != self._machine or not secrets.compare_digest(unwrapped.id, key):
                    raise damaged(name, "it holds the key of another machine or disk")
            except ObjectMissing:
                continue
            except (WrongKey, ObjectDamaged, FormatUnknown) as error:
                wrong = wrong or error
                continue
            return disk, unwrapped
        raise wrong or self._missing(key)

    def _missing(self, key: KeyId) -> SecondsiteError:
        """Why a key is not there: gone, or wrapped with a vault key of another generation only."""
        prefix = wrapped_keys_prefix(self._machine)
        for name in self._store.list(prefix):
            found, _, vault_id = name.removeprefix(prefix).partition(".")
            if found == key and vault_id:
                return WrongKey(what=f"the data key {key}", needed=vault_id, given=self._vault.id)
        return KeyMissing(key=key, machine=self._machine)


def wrapped_name(vault: VaultKey, machine: MachineId, key: KeyId) -> str:
    """Where a data key wrapped with the present key of `vault` lies."""
    if vault.generation == 1:
        return wrapped_key_name(machine, key)
    return rewrapped_key_name(machine, key, vault.id)


def wrapped_names(vault: VaultKey, machine: MachineId, key: KeyId) -> list[str]:
    """Everywhere a data key may lie that `vault` can unwrap, the newest wrapping first."""
    later = [(old.id, old.generation) for old in vault.retired]
    names = [
        rewrapped_key_name(machine, key, identity)
        for identity, generation in [(vault.id, vault.generation), *later]
        if generation > 1
    ]
    return [*names, wrapped_key_name(machine, key)]


assert WRAPPED_KEY_BYTES_MAX <= BOX_PLAIN_BYTES_MAX
