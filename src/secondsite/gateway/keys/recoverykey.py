"""Proof that the recovery key exists outside this gateway before anything is sealed with it (rule 8).

The vault key opens every disk key. A gateway that alone held it would seal replicas that nobody can open on
the day the gateway is gone. So a protection needs an answer that only a holder of another copy can give:
HMAC of a fresh nonce under the key, from a file that is neither the gateway's own nor inside a store.

Which file it was, the prover says: device and inode on this host, and an id of the host it was on. A file of
another host is not the gateway's own copy, whatever its numbers. Whoever holds the key could lie about that,
to their own harm alone: the check keeps people from proving the one copy there is by mistake.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from pathlib import Path
from typing import Protocol

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.common.proofs import RECORD, KeyProofs, RecoveryKeyNeeded, host_id
from secondsite.gateway.messages.gateway import ChallengeReply, FileIdentity
from secondsite.gateway.messages.items import KeyState
from secondsite.journal.stores import local_directory

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
        self,
        key: Provable,
        *,
        own_file: Path | None,
        store_root: Path | None,
        clock: Clock,
        name: str = "",
        proofs: KeyProofs | None = None,
        host: str = "",
    ) -> None:
        """own_file: the gateway's copy; store_root: the directory of a local store of this gateway.

        name: the gateway's. proofs: where it is kept that the key was proved. host: this machine's id.
        """
        self._name = name
        self._proofs = proofs
        self._host = host
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

    def check(
        self, nonce: str, proof: str, key_file: FileIdentity, *, by: str = "a command at the gateway"
    ) -> None:
        """Raise unless `proof` answers a question of ours from an exported copy of the key; keep that."""
        with self._lock:
            self._forget_old()
            known = self._asked.pop(nonce, None) is not None
        expected = self._key.prove(bytes.fromhex(nonce)) if known else b""
        if not known or not hmac.compare_digest(expected.hex(), proof):
            raise RecoveryKeyNotProved(path=key_file.path, key_id=self._key.id)
        if not self._is_elsewhere(key_file):
            if self._own_file is not None and _is_file(self._own_file, key_file):
                raise RecoveryKeyNotExported(path=key_file.path)
            if self._store_root is not None and _is_inside(Path(key_file.path), self._store_root):
                raise RecoveryKeyInStore(path=key_file.path, store=self._store_root)
        if self._proofs is not None:
            self._proofs.keep(self._key.id, by=by, file=key_file.path)

    def _is_elsewhere(self, key_file: FileIdentity) -> bool:
        return bool(self._host and key_file.host and key_file.host != self._host)

    def state(self) -> KeyState:
        """Whether the key this gateway seals with was proved."""
        found = self._proofs.of(self._key.id) if self._proofs is not None else None
        return KeyState(
            key_id=self._key.id,
            proved=found is not None,
            proved_at=found.proved_at if found is not None else None,
            proved_by=found.by if found is not None else "",
        )

    def require_proved(self) -> None:
        """Raise RecoveryKeyNeeded unless it was."""
        if not self.state().proved:
            raise RecoveryKeyNeeded(gateway=self._name, key=self._key.id)

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


def open_guard(config: GatewayConfig, key: Provable, clock: Clock) -> RecoveryKeyGuard:
    """The guard of a configured gateway."""
    return RecoveryKeyGuard(
        key,
        own_file=config.vault_key,
        store_root=local_directory(config.store) if config.store else None,
        clock=clock,
        name=config.name,
        proofs=KeyProofs(config.state_dir / RECORD, clock),
        host=host_id(),
    )
