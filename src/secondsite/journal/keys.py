"""Keys: one vault key wraps a data key for each disk; each segment has a key of its own.

The vault key never lies in a store; a data key lies there only wrapped; a segment's key is derived from the
data key and 256 random bits in the segment's header, so no key and nonce ever meet twice (rule 8).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import blake3

from secondsite.base.files import create_file, read_limited
from secondsite.journal.box import KEY_BYTES, derive, open_box, seal_box
from secondsite.journal.errors import KeyFileInvalid, KeyMissing, WrongKey, damaged
from secondsite.journal.format import BOX_PLAIN_BYTES_MAX, BOX_WRAPPED_KEY
from secondsite.journal.names import wrapped_key_name
from secondsite.journal.store import ObjectMissing, ObjectStore
from secondsite.model.ids import DiskId, KeyId, MachineId, disk_id, key_id, machine_id

Randomness = Callable[[int], bytes]

FILE_HEAD = "secondsite vault key, version 1"
FILE_BYTES_MAX = 4096
WRAPPED_KEY_BYTES_MAX = 4096


@dataclass(frozen=True)
class LogKey:
    """Seals records and states: a message authentication code, not secrecy."""

    vault_id: KeyId
    secret: bytes = field(repr=False)

    def seal(self, *parts: bytes | memoryview) -> bytes:
        """32 bytes: keyed blake3 of the parts."""
        hasher = blake3.blake3(key=self.secret)
        for part in parts:
            hasher.update(part)
        return hasher.digest()


def sealed_with(key: LogKey | None) -> bytes:
    """The vault key id as a header names it; zeros: not sealed."""
    return bytes.fromhex(key.vault_id) if key is not None else bytes(16)


def check_seal(
    what: str, key: LogKey | None, vault_id: bytes, seal: bytes, *parts: bytes | memoryview
) -> None:
    """Refuse what `key` did not seal; without a key nothing is looked at.

    Raises:
        WrongKey: another vault's key sealed it. ObjectDamaged: nobody's, or it was changed.
    """
    if key is None:
        return
    found = vault_id.hex()
    if found != key.vault_id and vault_id.strip(b"\0"):
        raise WrongKey(what=what, needed=found, given=key.vault_id)
    if not hmac.compare_digest(seal, key.seal(*parts)):
        raise damaged(what, "its seal does not fit: somebody without the vault key wrote or changed it")


@dataclass(frozen=True)
class VaultKey:
    """The one secret a person must keep. `repr` never shows it."""

    id: KeyId
    secret: bytes = field(repr=False)

    @classmethod
    def create(cls, randomness: Randomness = os.urandom) -> VaultKey:
        """A new random key."""
        return cls.of(randomness(KEY_BYTES))

    @classmethod
    def of(cls, secret: bytes) -> VaultKey:
        """From its 32 bytes; the id follows from them and gives nothing away."""
        assert len(secret) == KEY_BYTES
        return cls(KeyId(derive(secret, b"", b"vault key id", 16).hex()), secret)

    def save(self, path: Path) -> bool:
        """Write a key file of mode 0600; False when the name exists (nothing is overwritten)."""
        body = base64.b64encode(self.secret).decode()
        text = f"{FILE_HEAD}\nid: {self.id}\nkey: {body}\nchecksum: {_file_checksum(self.id, body)}\n"
        return create_file(path, text.encode(), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> VaultKey:
        """Read a key file.

        Raises:
            KeyFileInvalid: it is damaged or another file. FileNotFoundError: there is none.
        """
        try:
            lines = read_limited(path, size_bytes_max=FILE_BYTES_MAX).decode("ascii").splitlines()
            if not lines or lines[0].strip() != FILE_HEAD:
                raise KeyFileInvalid(path=path, why=f"its first line is not {FILE_HEAD!r}")
            fields = dict(line.split(": ", 1) for line in lines[1:] if line.strip())
            body = fields["key"].strip()
            if fields["checksum"].strip() != _file_checksum(fields["id"].strip(), body):
                raise KeyFileInvalid(path=path, why="the checksum does not fit the key")
            secret = base64.b64decode(body, validate=True)
        except (UnicodeDecodeError, ValueError, KeyError):
            raise KeyFileInvalid(path=path, why="it has no id, key and checksum lines") from None
        if len(secret) != KEY_BYTES or cls.of(secret).id != fields["id"].strip():
            raise KeyFileInvalid(path=path, why="the id does not fit the key")
        return cls.of(secret)

    def log_key(self, machine: MachineId) -> LogKey:
        """What seals the records and states of a machine: who lacks it cannot add or change one."""
        return LogKey(self.id, derive(self.secret, machine.encode(), b"log"))

    def prove(self, challenge: bytes) -> bytes:
        """Answer a challenge: shows that the key is held without showing it (HMAC-SHA256)."""
        return hmac.new(derive(self.secret, b"", b"proof"), challenge, hashlib.sha256).digest()


def _file_checksum(identity: str, body: str) -> str:
    return hashlib.sha256(f"{identity} {body}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DiskKey:
    """The data key of one disk."""

    id: KeyId
    secret: bytes = field(repr=False)

    @classmethod
    def create(cls, randomness: Randomness = os.urandom) -> DiskKey:
        """A new random key with a random id."""
        return cls(KeyId(randomness(16).hex()), randomness(KEY_BYTES))

    def segment_key(self, salt: bytes) -> bytes:
        """The AES-256 key of the segment whose header holds `salt`."""
        return derive(self.secret, salt, b"segment")

    def digest_seed(self) -> int:
        """The seed of the disk's sub-block digests, 64 bits."""
        return int.from_bytes(derive(self.secret, b"", b"digest seed", 8), "little")


def encode_wrapped(
    vault: VaultKey, machine: MachineId, disk: DiskId, key: DiskKey, randomness: Randomness = os.urandom
) -> bytes:
    """The object that keeps a data key in a store."""
    plain = b"\0".join([machine.encode(), disk.encode(), key.id.encode(), key.secret.hex().encode()])
    return seal_box(BOX_WRAPPED_KEY, vault.id, vault.secret, plain, randomness=randomness)


def decode_wrapped(vault: VaultKey, data: bytes) -> tuple[MachineId, DiskId, DiskKey]:
    """Unwrap a data key.

    Raises:
        WrongKey: another vault key wrapped it. ObjectDamaged: it is not what was written.
    """
    what = "a wrapped key"
    parts = open_box(BOX_WRAPPED_KEY, vault.id, vault.secret, data, what=what).split(b"\0")
    if len(parts) != 4 or len(parts[3]) != 2 * KEY_BYTES:
        raise damaged(what, "its content has another shape")
    machine, disk, identity, secret = (part.decode("ascii", "replace") for part in parts)
    return machine_id(machine), disk_id(disk), DiskKey(key_id(identity), bytes.fromhex(secret))


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

    def read(self, key: KeyId) -> DiskKey:
        """A data key as the store has it now, held or not. Raises as `get` does."""
        name = wrapped_key_name(self._machine, key)
        try:
            data = self._store.get(name, size_bytes_max=WRAPPED_KEY_BYTES_MAX)
        except ObjectMissing:
            raise KeyMissing(key=key, machine=self._machine) from None
        machine, _, unwrapped = decode_wrapped(self._vault, data)
        if machine != self._machine or not secrets.compare_digest(unwrapped.id, key):
            raise damaged(name, "it holds the key of another machine or disk")
        self.add(unwrapped)
        return unwrapped


assert WRAPPED_KEY_BYTES_MAX <= BOX_PLAIN_BYTES_MAX
