"""Proof that the recovery key exists outside this gateway before anything is sealed with it (rule 8).

The vault key opens every disk key. A gateway that alone held it would seal replicas that nobody can open on
the day the gateway is gone. So a protection needs an answer that only a holder of another copy can give:
HMAC of a fresh nonce under the key, from a file that is neither the gateway's own nor inside a store.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from pathlib import Path
from typing import Protocol

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.messages import ChallengeReply, FileIdentity

NONCE_BYTES = 32
NONCE_SECONDS_MAX = 300.0
# A person asks one question at a time; the limit only bounds what a script gone wild can make us hold.
NONCES_MAX = 64


class RecoveryKeyNotProved(SecondsiteError):
    """The proof does not fit the gateway's key."""

    code = "recovery-key.not-proved"
    outcome = Outcome.REFUSED
    happened = "The proof was refused: {path} does not hold the recovery key {key_id}."
    cause = "The file holds the key of another vault, or the question was older than five minutes."
    action = "Give a copy of the file this gateway has as its vault_key; nothing was changed."


class RecoveryKeyNotExported(SecondsiteError):
    """The proof came from the gateway's own copy."""

    code = "recovery-key.not-exported"
    outcome = Outcome.REFUSED
    happened = "The proof was refused: {path} is the gateway's own copy of the recovery key."
    cause = "If that were the only copy, the replica could not be opened once this gateway is lost."
    action = "Copy the key file to another place, off this machine, and prove it from the copy."


class RecoveryKeyInStore(SecondsiteError):
    """The key lies beside what it opens."""

    code = "recovery-key.in-store"
    outcome = Outcome.REFUSED
    happened = "The proof was refused: the recovery key {path} lies inside the store {store}."
    cause = "Whoever gets the store would get the key that opens it with it."
    action = "Move the key file to a place outside every store and prove it from there."


class Provable(Protocol):
    """What is needed of a vault key (`journal.keys.VaultKey`)."""

    @property
    def id(self) -> str:
        """Which key it is."""

    def prove(self, challenge: bytes) -> bytes:
        """HMAC of the challenge."""


class RecoveryKeyGuard:
    """Asks and checks; thread-safe. A nonce serves once."""

    def __init__(
        self, key: Provable, *, own_file: Path | None, store_root: Path | None, clock: Clock
    ) -> None:
        """own_file: the gateway's copy; store_root: the directory of a local store of this gateway."""
        self._key = key
        self._own_file = own_file
        self._store_root = store_root
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: dict[str, float] = {}

    def challenge(self) -> ChallengeReply:
        """A fresh question."""
        nonce = secrets.token_hex(NONCE_BYTES)
        with self._lock:
            self._forget_old()
            if len(self._asked) >= NONCES_MAX:
                self._asked.pop(next(iter(self._asked)))
            self._asked[nonce] = self._clock.monotonic()
        return ChallengeReply(key_id=self._key.id, nonce=nonce)

    def check(self, nonce: str, proof: str, key_file: FileIdentity) -> None:
        """Raise unless `proof` answers a question of ours from an exported copy of the key."""
        with self._lock:
            self._forget_old()
            known = self._asked.pop(nonce, None) is not None
        expected = self._key.prove(bytes.fromhex(nonce)) if known else b""
        if not known or not hmac.compare_digest(expected.hex(), proof):
            raise RecoveryKeyNotProved(path=key_file.path, key_id=self._key.id)
        if self._own_file is not None and _is_file(self._own_file, key_file):
            raise RecoveryKeyNotExported(path=key_file.path)
        if self._store_root is not None and _is_inside(Path(key_file.path), self._store_root):
            raise RecoveryKeyInStore(path=key_file.path, store=self._store_root)

    def _forget_old(self) -> None:
        oldest = self._clock.monotonic() - NONCE_SECONDS_MAX
        self._asked = {nonce: at for nonce, at in self._asked.items() if at >= oldest}


def _is_file(path: Path, identity: FileIdentity) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (identity.device, identity.inode)


def _is_inside(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())
